package kernel

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ovmigrate/ovmigrate/kernel/cfi"
	"github.com/ovmigrate/ovmigrate/kernel/debugfile"
)

// debugFrames returns the call frame information of the first debug file that has
// some. The error wraps debugfile.ErrNothing.
func (k *Kernel) debugFrames() (*cfi.Table, error) {
	l := &k.lazy
	l.framesOnce.Do(func() {
		l.framesErr = fmt.Errorf("call frame information: %w", debugfile.ErrNothing)
		for _, f := range k.debug {
			if l.frames, l.framesErr = f.Frames(k.guest.KASLROffset); !errors.Is(l.framesErr, debugfile.ErrNothing) {
				return
			}
		}
	})
	return l.frames, l.framesErr
}

// SourceLine returns the file and line of kernel code, from the debug files that Open
// was given. Of a Frame that is not Interrupted, Addr-1 is in the line that calls. The
// error wraps debugfile.ErrNothing if they do not say; code of modules is in none.
func (k *Kernel) SourceLine(a Addr) (file string, line int, err error) {
	l := &k.lazy
	l.linesOnce.Do(func() {
		l.linesErr = fmt.Errorf("line numbers: %w", debugfile.ErrNothing)
		for _, f := range k.debug {
			if l.lines, l.linesErr = f.Lines(); !errors.Is(l.linesErr, debugfile.ErrNothing) {
				return
			}
		}
	})
	if l.linesErr != nil {
		return "", 0, l.linesErr
	}
	return l.lines.Find(uint64(a) - k.guest.KASLROffset)
}

// dwarfUnwinder finds callers by a kernel's .debug_frame, which describes its C code.
type dwarfUnwinder struct {
	code  *kernelCode
	table *cfi.Table
}

func (k *Kernel) newDWARFUnwinder(code *kernelCode) (*dwarfUnwinder, error) {
	if err := k.onlyX86("call frame information"); err != nil {
		return nil, err
	}
	table, err := k.debugFrames()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoUnwind, err)
	}
	return &dwarfUnwinder{code, table}, nil
}

func (u *dwarfUnwinder) name() string { return "dwarf" }

func (u *dwarfUnwinder) step(s *unwindState) error {
	pc := s.ip
	if !s.interrupted {
		pc--
	}
	e, err := u.table.Find(uint64(pc))
	if err != nil {
		// Assembly has no entries. Nothing but user code is behind that of entry.
		if f, _ := u.code.frame(s.ip, s.interrupted); inRanges(u.code.entry, pc) || strings.HasPrefix(f.Symbol, "ret_from_fork") {
			return errStackEnd
		}
		return fmt.Errorf("%w: %w", ErrNoUnwind, err)
	}
	regs := &cfi.Regs{}
	if r := s.anyRegs(); r != nil {
		regs = cfiRegs(r)
	}
	regs.Set(cfi.RSP, uint64(s.sp))
	regs.Set(cfi.RBP, uint64(s.bp))
	err = e.Step(regs, uint64(pc), func(a uint64) (uint64, error) {
		w, err := s.deref(u.code.k, Addr(a))
		return uint64(w), err
	})
	if errors.Is(err, cfi.ErrEnd) {
		return errStackEnd
	}
	if err != nil {
		return fmt.Errorf("frame of %s: %w", s.ip, err)
	}
	next := unwindState{ip: Addr(regs.Val[cfi.RA]), sp: Addr(regs.Val[cfi.RSP]), bp: Addr(regs.Val[cfi.RBP]), stacks: s.stacks, unsure: s.unsure}
	if next.sp <= s.sp && s.stackOf(next.sp) == s.stackOf(s.sp) {
		return corrupt(next.sp, "stack", "the frame of %s is not above that of %s", next.ip, s.ip)
	}
	*s = next
	return nil
}
