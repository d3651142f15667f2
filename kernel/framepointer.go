package kernel

// armContext is where an arm64 task goes on that was switched away from. Source:
// arch/arm64/include/asm/processor.h:struct cpu_context.
type armContext struct {
	FP Addr `k:"thread.cpu_context.fp,opt"`
	SP Addr `k:"thread.cpu_context.sp,opt"`
	PC Addr `k:"thread.cpu_context.pc,opt"`
}

var armContextLayout = LayoutOf[armContext]("task_struct")

// armStack is KernelStack on arm64, where every function keeps a frame record.
func (t *Task) armStack() (*StackTrace, error) {
	k := t.k
	code, err := k.code()
	if err != nil {
		return nil, err
	}
	c, err := armContextLayout.Load(k, t.Addr)
	if err != nil {
		return nil, err
	}
	s := unwindState{stacks: []stackRange{t.stackRange()}}
	if s.stackOf(c.SP) == nil {
		return nil, corrupt(t.Addr, "task_struct.thread.cpu_context.sp", "%s is not on the stack at %s", c.SP, t.Stack)
	}
	s.ip, s.sp, s.bp = k.withoutPAC(c.PC), c.SP, c.FP
	s.interrupted = k.isForkReturn(s.ip)
	return unwind(code, &framePointerUnwinder{k}, s), nil
}

// withoutPAC returns a return address without the code that authenticates it, which is
// in the bits that all kernel addresses have alike. Source:
// arch/arm64/include/asm/pointer_auth.h:ptrauth_strip_kernel_insn_pac.
func (k *Kernel) withoutPAC(a Addr) Addr {
	const upper = 1 << 55 // which half of the address space it is of
	mask := Addr(1)<<uint(k.guest.ARM64.VABits) - 1
	if a&upper != 0 {
		return a | ^mask
	}
	return a & mask
}

// framePointerUnwinder finds callers on arm64 by the chain of frame records: the
// caller's record, and where it goes on.
type framePointerUnwinder struct{ k *Kernel }

func (u *framePointerUnwinder) name() string { return "frame pointer" }

// Types of records that no function made, which are zero and have a type behind them
// since 6.14. Source: arch/arm64/include/asm/stacktrace/frame.h.
const armFrameRegs = 2

// step is arch/arm64/kernel/stacktrace.c:unwind_next.
func (u *framePointerUnwinder) step(s *unwindState) error {
	if s.bp == 0 { // below the first function of a kernel thread of 5.10
		return errStackEnd
	}
	fp, err := s.deref(u.k, s.bp)
	if err != nil {
		return err
	}
	lr, err := s.deref(u.k, s.bp.Add(8))
	if err != nil {
		return err
	}
	if fp == 0 && lr == 0 {
		return u.boundary(s)
	}
	next := unwindState{ip: u.k.withoutPAC(lr), sp: s.bp.Add(16), bp: fp, stacks: s.stacks}
	if fp <= s.bp && s.stackOf(fp) == s.stackOf(s.bp) {
		return corrupt(s.bp, "stack", "the frame record at %s is not above", fp)
	}
	*s = next
	return nil
}

// boundary goes over a record that stands for saved registers, or ends at the last one.
func (u *framePointerUnwinder) boundary(s *unwindState) error {
	k := u.k
	record, err := k.offsetOf("pt_regs", "stackframe")
	if _, terr := k.types.Struct("frame_record_meta"); err != nil || terr != nil {
		return errStackEnd //nolint:nilerr // a kernel without such records
	}
	kind, err := s.deref(k, s.bp.Add(16))
	if err != nil {
		return err
	}
	if kind != armFrameRegs {
		return errStackEnd
	}
	regs := s.bp.Add(-record)
	var w [3]Addr
	for i, path := range []string{"pc", "regs[29]", "sp"} {
		off, err := k.offsetOf("pt_regs", path)
		if err != nil {
			return err
		}
		if w[i], err = s.deref(k, regs.Add(off)); err != nil {
			return err
		}
	}
	if !w[0].IsKernel() {
		return errStackEnd
	}
	if w[2] <= s.bp && s.stackOf(w[2]) == s.stackOf(s.bp) {
		return corrupt(regs, "stack", "the stack pointer %s is not above", w[2])
	}
	*s = unwindState{ip: w[0], sp: w[2], bp: w[1], interrupted: true, stacks: s.stacks}
	return nil
}
