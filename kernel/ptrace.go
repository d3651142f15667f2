package kernel

import "fmt"

// PtRegs are the user-mode registers of a thread, as kernel entry saved them
// (struct pt_regs, arch/x86/include/asm/ptrace.h).
type PtRegs struct {
	R15    uint64 `k:"r15"`
	R14    uint64 `k:"r14"`
	R13    uint64 `k:"r13"`
	R12    uint64 `k:"r12"`
	BP     uint64 `k:"bp"`
	BX     uint64 `k:"bx"`
	R11    uint64 `k:"r11"`
	R10    uint64 `k:"r10"`
	R9     uint64 `k:"r9"`
	R8     uint64 `k:"r8"`
	AX     uint64 `k:"ax"`
	CX     uint64 `k:"cx"`
	DX     uint64 `k:"dx"`
	SI     uint64 `k:"si"`
	DI     uint64 `k:"di"`
	OrigAX uint64 `k:"orig_ax"`
	IP     uint64 `k:"ip"`
	CS     uint64 `k:"cs"`
	Flags  uint64 `k:"flags"`
	SP     uint64 `k:"sp"`
	SS     uint64 `k:"ss"`
}

var ptRegsLayout = LayoutOf[PtRegs]("pt_regs")

// Selectors that user code runs with on x86-64 Linux.
const (
	userCS64 = 0x33
	userCS32 = 0x23
	userDS   = 0x2b
)

// Compat says whether the thread runs 32-bit code.
func (r *PtRegs) Compat() bool { return r.CS&0xffff == userCS32 }

// InSyscall says whether the thread entered the kernel by a system call.
func (r *PtRegs) InSyscall() bool { return int32(r.OrigAX) >= 0 }

func (r *PtRegs) plausible() bool {
	const fixed, interrupts = 1 << 1, 1 << 9 // of RFLAGS; after execve only the second is set
	cs := r.CS & 0xffff
	return (cs == userCS64 || cs == userCS32) && r.SS&0xffff == userDS && r.Flags&(fixed|interrupts) != 0
}

// UserRegs returns the user-mode registers of a thread that is in the kernel, which
// every thread is that is not running. They are meaningless while the thread is on
// a CPU in user mode; the error then wraps ErrCorrupt or is nil by chance, so hold
// the thread first. It wraps ErrArch on another architecture than x86-64. Source: arch/x86/include/asm/processor.h:task_pt_regs.
func (t *Task) UserRegs() (*PtRegs, error) {
	if err := t.k.onlyX86("registers"); err != nil {
		return nil, err
	}
	if t.IsKernelThread() {
		return nil, fmt.Errorf("pid %d (%s): %w", t.PID, t.Comm, ErrNoMM)
	}
	size, err := ptRegsLayout.Size(t.k)
	if err != nil {
		return nil, err
	}
	// Kernels built with FRED leave 16 bytes above pt_regs, whether or not the
	// CPU has it (TOP_OF_KERNEL_STACK_PADDING).
	for _, pad := range []int{0, 16} {
		r, err := ptRegsLayout.Load(t.k, t.Stack.Add(t.k.threadSize()-pad-size))
		if err != nil {
			return nil, fmt.Errorf("pid %d: kernel stack: %w", t.PID, err)
		}
		if r.plausible() {
			r.CS, r.SS = r.CS&0xffff, r.SS&0xffff
			return &r, nil
		}
	}
	return nil, corrupt(t.Stack, "task_struct.stack", "no user registers on the stack of %d", t.PID)
}

// threadSize returns the size of a kernel stack in bytes.
func (k *Kernel) threadSize() int {
	if u, err := k.types.Struct("thread_union"); err == nil && u.Size >= 8<<10 && u.Size <= 128<<10 {
		return u.Size
	}
	return 16 << 10
}

// ThreadState is what the processor keeps for a thread besides general registers
// and FPU (struct thread_struct).
type ThreadState struct {
	FSBase  uint64    `k:"fsbase"`
	GSBase  uint64    `k:"gsbase"`
	FSIndex uint16    `k:"fsindex"`
	GSIndex uint16    `k:"gsindex"`
	DS      uint16    `k:"ds"`
	ES      uint16    `k:"es"`
	TLS     [3]uint64 `k:"tls_array"`
	PKRU    uint32    `k:"pkru,opt"`
}

var threadStateLayout = LayoutOf[ThreadState]("thread_struct")

// ThreadState reads t's segment bases and TLS descriptors. They are up to date
// only while t is off the CPU. Source: arch/x86/kernel/process_64.c:save_fsgs.
func (t *Task) ThreadState() (*ThreadState, error) {
	if err := t.k.onlyX86("thread state"); err != nil {
		return nil, err
	}
	off, err := t.k.offsetOf("task_struct", "thread")
	if err != nil {
		return nil, err
	}
	s, err := threadStateLayout.Load(t.k, t.Addr.Add(off))
	if err != nil {
		return nil, err
	}
	return &s, nil
}
