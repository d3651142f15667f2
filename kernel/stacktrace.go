package kernel

import (
	"errors"
	"fmt"

	"github.com/ovmigrate/ovmigrate/kernel/cfi"
	"github.com/ovmigrate/ovmigrate/kernel/debugfile"
	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// ErrOnCPU is wrapped by errors about a task that runs: what it does is known to
// its processor only. See CPUStack.
var ErrOnCPU = errors.New("is running on a CPU")

// StackTrace is how a task came to where it is in the kernel.
type StackTrace struct {
	// Frames are the functions that have not returned, the innermost first.
	Frames []Frame
	// Err says why the trace ends before the first function of the stack, nil if
	// it does not. Frames are right as far as they go, or marked.
	Err error
	// Unwinder is how the frames were found: "orc"; on arm64 "frame pointer"; "dwarf"
	// for a kernel without ORC tables whose debug file was given to Open.
	Unwinder string

	code *kernelCode
}

// Frame is one function of a StackTrace.
type Frame struct {
	// Addr is where the function goes on: behind a call, or, if Interrupted, at
	// the instruction that was not run yet.
	Addr        Addr
	Interrupted bool
	SP          Addr // the stack pointer there

	Symbol string // of the function, "" if unknown
	Offset uint64 // of Addr from its start
	Size   uint64 // of the function
	Module string // that it is part of, "" for the kernel image

	// Reliable is false behind code that no table describes.
	Reliable bool
}

// String returns the frame as the kernel writes it: "do_wait+0x59/0x110 [module]".
func (f Frame) String() string {
	s := f.Addr.String()
	if f.Symbol != "" {
		s = fmt.Sprintf("%s+%#x/%#x", f.Symbol, f.Offset, f.Size)
	}
	if f.Module != "" {
		s += " [" + f.Module + "]"
	}
	return s
}

// Blocked returns the frames that /proc/PID/stack shows: those that are not part of
// the scheduler. Source: kernel/stacktrace.c:stack_trace_consume_entry_nosched.
func (s *StackTrace) Blocked() []Frame {
	var out []Frame
	for _, f := range s.Frames {
		if !s.code.inScheduler(f.Addr) {
			out = append(out, f)
		}
	}
	return out
}

// inactiveTaskFrame is what a task that was switched away from has on top of its
// stack. Source: arch/x86/include/asm/switch_to.h.
type inactiveTaskFrame struct {
	BP      Addr `k:"bp"`
	RetAddr Addr `k:"ret_addr"`
}

type threadSP struct {
	SP Addr `k:"thread.sp,opt"`
}

var (
	inactiveTaskFrameLayout = LayoutOf[inactiveTaskFrame]("inactive_task_frame")
	threadSPLayout          = LayoutOf[threadSP]("task_struct")
)

// KernelStack returns the kernel stack of a task that does not run. The trace is of
// one moment if the task slept meanwhile. Errors: ErrOnCPU for a task that runs,
// ErrNoUnwind for x86-64 kernels without ORC tables (built with frame pointers) and
// without a debug file, *PathError. A trace that cannot be finished is no error but has one.
// Source: arch/x86/kernel/unwind_orc.c:__unwind_start,
// arch/arm64/kernel/stacktrace.c:arch_stack_walk.
func (t *Task) KernelStack() (*StackTrace, error) {
	k := t.k
	if t.OnCPU != 0 {
		return nil, fmt.Errorf("pid %d (%s): %w (%d)", t.PID, t.Comm, ErrOnCPU, t.CPU)
	}
	if t.Stack == 0 {
		return nil, fmt.Errorf("pid %d (%s): %w: its stack is gone", t.PID, t.Comm, ErrNoTask)
	}
	if k.Arch() == paging.ARM64 {
		return t.armStack()
	}
	code, u, err := k.unwinder()
	if err != nil {
		return nil, err
	}
	return t.stackBy(code, u)
}

func (t *Task) stackBy(code *kernelCode, u unwinder) (*StackTrace, error) {
	k := t.k
	s := unwindState{stacks: []stackRange{t.stackRange()}}
	th, err := threadSPLayout.Load(k, t.Addr)
	if err != nil {
		return nil, err
	}
	size, err := inactiveTaskFrameLayout.Size(k)
	if err != nil {
		return nil, err
	}
	if s.stackOf(th.SP) == nil || s.stackOf(th.SP.Add(size-8)) == nil {
		return nil, corrupt(t.Addr, "task_struct.thread.sp", "%s is not on the stack at %s", th.SP, t.Stack)
	}
	f, err := inactiveTaskFrameLayout.Load(k, th.SP)
	if err != nil {
		return nil, err
	}
	s.sp, s.bp, s.ip = th.SP.Add(size), f.BP, f.RetAddr
	s.interrupted = k.isForkReturn(s.ip)
	return unwind(code, u, s), nil
}

// isForkReturn says whether a is where a task begins that never ran; nothing has
// called that.
func (k *Kernel) isForkReturn(a Addr) bool {
	for _, name := range []string{"ret_from_fork_asm", "ret_from_fork"} {
		if b, err := k.Symbol(name); err == nil && a == b {
			return true
		}
	}
	return false
}

func (t *Task) stackRange() stackRange { return stackRange{t.Stack, t.Stack.Add(t.k.threadSize())} }

// unwinder returns the way to unwind this kernel's stacks.
func (k *Kernel) unwinder() (*kernelCode, unwinder, error) {
	code, err := k.code()
	if err != nil {
		return nil, nil, err
	}
	if code.dwarf, err = k.newDWARFUnwinder(code); errors.Is(err, cfi.ErrFormat) || errors.Is(err, debugfile.ErrFormat) {
		return nil, nil, err
	}
	u, err := newORCUnwinder(code)
	if errors.Is(err, ErrNoUnwind) && code.dwarf != nil {
		return code, code.dwarf, nil
	}
	return code, u, err
}

// CPUStack returns the kernel stack of what a virtual processor does: the task that
// it runs, or the interrupt that came between. The guest must be paused since before
// the registers were read. The trace has no frames while the processor runs user
// code. Frames behind a place whose frame no table describes are not Reliable: they
// were found by looking at the stack. Errors as of KernelStack.
func (k *Kernel) CPUStack(c vmi.CPU) (*StackTrace, error) {
	if err := k.onlyX86("registers"); err != nil {
		return nil, err
	}
	code, u, err := k.unwinder()
	if err != nil {
		return nil, err
	}
	regs := ptRegsOf(c)
	if regs.userMode() {
		return &StackTrace{Unwinder: u.name(), code: code}, nil
	}
	cpu, err := k.CPUNumber(c)
	if err != nil {
		return nil, err
	}
	rq, err := k.RunQueue(cpu)
	if err != nil {
		return nil, err
	}
	s := unwindState{
		ip: Addr(regs.IP), sp: Addr(regs.SP), bp: Addr(regs.BP), interrupted: true, regs: regs,
		stacks: k.cpuStacks(cpu),
	}
	// While it changes from one task to another, the two are different.
	current, err := k.hotPerCPU("current_task", cpu)
	if err != nil {
		current = rq.Curr
	}
	for _, a := range []Addr{rq.Curr, current} {
		t, err := k.TaskAt(a)
		if err != nil {
			return nil, err
		}
		s.stacks = append(s.stacks, t.stackRange())
	}
	return unwind(code, u, s), nil
}

// hotPerCPU reads a pointer that a processor has in a variable of its own or, from 6.2
// to 6.14, in its pcpu_hot.
func (k *Kernel) hotPerCPU(name string, cpu int) (Addr, error) {
	p, err := k.PerCPU(name, cpu)
	if err != nil {
		var off int
		if off, err = k.offsetOf("pcpu_hot", name); err != nil {
			return 0, err
		}
		if p, err = k.PerCPU("pcpu_hot", cpu); err != nil {
			return 0, err
		}
		p = p.Add(off)
	}
	return k.ReadAddr(p)
}

// ptRegsOf arranges the registers of a virtual processor as the kernel does.
func ptRegsOf(c vmi.CPU) *PtRegs {
	g := &c.GPR
	return &PtRegs{
		AX: g[0], CX: g[1], DX: g[2], BX: g[3], SP: g[4], BP: g[5], SI: g[6], DI: g[7],
		R8: g[8], R9: g[9], R10: g[10], R11: g[11], R12: g[12], R13: g[13], R14: g[14], R15: g[15],
		IP: c.RIP, Flags: c.RFLAGS, CS: uint64(c.CS), SS: uint64(c.SS),
	}
}

// CPUNumber returns the number that the guest gives to a virtual processor: the one
// whose per-CPU area its GS register points to. Just before or after it was in user
// mode, GS may be that of the user, and not all sources know the other one: a machine
// with more than one processor then cannot tell. The error wraps ErrCorrupt. Source: arch/x86/kernel/cpu/common.c:switch_gdt_and_percpu_base.
func (k *Kernel) CPUNumber(c vmi.CPU) (int, error) {
	cpus, err := k.OnlineCPUs()
	if err != nil {
		return 0, err
	}
	if len(cpus) == 1 {
		return cpus[0], nil
	}
	table, err := k.Symbol("__per_cpu_offset")
	if err != nil {
		return 0, err
	}
	// Kernels before 6.15 have the per-CPU area begin at address 0 of GS.
	for _, cpu := range cpus {
		off, err := k.ReadU64(table + Addr(8*cpu))
		if err != nil {
			return 0, err
		}
		if off == c.GSBase || c.Known&vmi.KnownKGSBase != 0 && off == c.KGSBase {
			return cpu, nil
		}
	}
	return 0, fmt.Errorf("%w: vCPU %d has no per-CPU area: GS is %#x", ErrCorrupt, c.ID, c.GSBase)
}

// cpuStacks returns the stacks that interrupts and exceptions of a CPU run on, those
// of them that the kernel has. Source: arch/x86/kernel/dumpstack_64.c:get_stack_info.
func (k *Kernel) cpuStacks(cpu int) []stackRange {
	var all []stackRange
	if top, err := k.hotPerCPU("hardirq_stack_ptr", cpu); err == nil && top.IsKernel() {
		top = (top + 8) &^ 0xfff // it points to the last word, or behind it
		all = append(all, stackRange{top.Add(-k.threadSize()), top})
	}
	return append(all, k.entryStacks(cpu)...)
}

// entryStacks returns the stacks of a CPU's cpu_entry_area: those of exceptions that
// have their own, and the one that every entry from user code begins on. Source:
// arch/x86/mm/cpu_entry_area.c.
func (k *Kernel) entryStacks(cpu int) []stackRange {
	p, err := k.PerCPU("cea_exception_stacks", cpu)
	if err != nil {
		return nil
	}
	a, err := k.ReadAddr(p)
	c, terr := k.types.Struct("cea_exception_stacks")
	if err != nil || terr != nil || !a.IsKernel() || c.Size >= 1<<20 {
		return nil
	}
	all := []stackRange{{a, a.Add(c.Size)}}
	estacks, err := k.offsetOf("cpu_entry_area", "estacks")
	entry, eerr := k.offsetOf("cpu_entry_area", "entry_stack_page")
	if err == nil && eerr == nil {
		a = a.Add(entry - estacks)
		all = append(all, stackRange{a, a.Add(vmi.PageSize)})
	}
	return all
}
