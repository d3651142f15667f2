package kernel

import (
	"errors"
	"fmt"

	"github.com/ovmigrate/ovmigrate/kernel/paging"
)

// ErrNoUnwind is wrapped by errors about code whose frames cannot be found.
var ErrNoUnwind = errors.New("cannot unwind")

// unwinder finds the caller of a frame. One that works from other tables (DWARF call
// frame information, frame pointers) needs no more than this.
type unwinder interface {
	name() string
	// step replaces s by the caller's state, or returns errStackEnd or the reason
	// why there is none. It leaves s alone then.
	step(s *unwindState) error
}

// unwindState is what is known of the processor in one frame.
type unwindState struct {
	ip, sp, bp Addr
	// interrupted: ip is the instruction to run next, not one behind a call.
	interrupted bool
	// regs are all registers of a frame that was interrupted; partial: only those
	// that the processor saves itself. earlier are those of an interrupted frame
	// further in, which had not changed them yet.
	regs    *PtRegs
	partial bool
	earlier *PtRegs
	// unsure: an assumption was made on the way here.
	unsure bool
	stacks []stackRange
}

// stackRange is memory that is a kernel stack.
type stackRange struct{ start, end Addr }

// register returns a register that calls do not preserve, if the frame has it.
func (s *unwindState) register(get func(*PtRegs) uint64) (uint64, bool) {
	switch {
	case s.regs != nil && !s.partial:
		return get(s.regs), true
	case s.earlier != nil:
		return get(s.earlier), true
	}
	return 0, false
}

// stackOf returns the stack that a word at a lies in, nil if none.
func (s *unwindState) stackOf(a Addr) *stackRange {
	for i := range s.stacks {
		if r := &s.stacks[i]; a >= r.start && a < r.end && r.end-a >= 8 {
			return r
		}
	}
	return nil
}

// deref reads a word of a stack.
func (s *unwindState) deref(k *Kernel, a Addr) (Addr, error) {
	if s.stackOf(a) == nil {
		return 0, corrupt(a, "stack", "a frame of %s lies outside", s.ip)
	}
	return k.ReadAddr(a)
}

func (s *unwindState) loadRegs(k *Kernel, a Addr) (*PtRegs, error) {
	size, err := ptRegsLayout.Size(k)
	if err != nil {
		return nil, err
	}
	if s.stackOf(a) == nil || s.stackOf(a.Add(size-8)) == nil {
		return nil, corrupt(a, "stack", "registers of %s lie outside", s.ip)
	}
	r, err := ptRegsLayout.Load(k, a)
	return &r, err
}

// loadIretFrame reads what the processor itself puts on the stack: the end of a
// struct pt_regs.
func (s *unwindState) loadIretFrame(k *Kernel, a Addr) (*PtRegs, error) {
	var w [5]Addr
	for i := range w {
		var err error
		if w[i], err = s.deref(k, a.Add(8*i)); err != nil {
			return nil, err
		}
	}
	return &PtRegs{IP: uint64(w[0]), CS: uint64(w[1]), Flags: uint64(w[2]), SP: uint64(w[3]), SS: uint64(w[4])}, nil
}

func (r *PtRegs) userMode() bool { return r.CS&3 == 3 }

// maxFrames bounds a trace: a kernel stack of 16 KiB has room for some hundred
// frames, the stacks that interrupts switch to for as many.
const maxFrames = 1024

// unwind follows the callers from s on.
func unwind(code *kernelCode, u unwinder, s unwindState) *StackTrace {
	tr := &StackTrace{Unwinder: u.name(), code: code}
	for range maxFrames {
		text, err := code.isText(s.ip)
		if err != nil || !text {
			tr.Err = errors.Join(err, fmt.Errorf("%w: %s is no code", ErrCorrupt, s.ip))
			return tr
		}
		f, err := code.frame(s.ip, s.interrupted)
		if err != nil {
			tr.Err = err
			return tr
		}
		f.SP, f.Reliable = s.sp, !s.unsure
		tr.Frames = append(tr.Frames, f)
		if err := code.caller(u, &s); err != nil {
			if !errors.Is(err, errStackEnd) {
				tr.Err = err
			}
			return tr
		}
	}
	tr.Err = &PathError{Path: "stack", Addr: s.sp, Err: ErrLimit}
	return tr
}

// caller replaces s by the caller's state. Where tables are not exact and say what
// cannot be, the debug file is asked if there is one, and then the stack itself.
func (c *kernelCode) caller(u unwinder, s *unwindState) error {
	if left, err := c.leaveThunk(s); left {
		return err
	}
	next := *s
	err := u.step(&next)
	exact := c.k.Arch() != paging.X86_64 || !s.interrupted && !inRanges(c.entry, s.ip)
	if exact || errors.Is(err, errStackEnd) || err == nil && !c.doubtful(&next) {
		if err == nil {
			*s = next
		}
		return err
	}
	if c.dwarf != nil {
		other := *s
		if derr := c.dwarf.step(&other); derr == nil && !c.doubtful(&other) {
			*s = other
			return nil
		}
	}
	switch found, end := c.scan(s); {
	case end:
		return errStackEnd
	case found:
		return nil
	case err == nil:
		*s = next
	}
	return err
}
