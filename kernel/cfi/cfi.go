// Package cfi finds the caller of a function by DWARF call frame information of
// x86-64: the .debug_frame of a kernel, the .eh_frame of programs.
//
// Input may be hostile: entries are checked before delve's parser sees them, and what
// is not believed is an error that wraps [ErrFormat].
package cfi

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/go-delve/delve/pkg/dwarf/frame"
	"github.com/go-delve/delve/pkg/dwarf/op"
)

// ErrFormat is wrapped by errors about frame information that is damaged, or of a
// kind that is not supported.
var ErrFormat = errors.New("call frame information makes no sense")

// ErrNone is wrapped by errors about code that no entry describes.
var ErrNone = errors.New("no call frame information")

// ErrEnd is returned by Step for the outermost function.
var ErrEnd = errors.New("no caller")

// Registers by their DWARF numbers on x86-64. RA is the return address: where the
// caller goes on.
const (
	RBX, RBP, RSP = 3, 6, 7
	R12, R15      = 12, 15
	RA            = 16
)

// Regs are registers of a frame, by DWARF number. Only those in Known are.
type Regs struct {
	Val   [RA + 1]uint64
	Known uint32 // one bit each
}

// Set sets a register.
func (r *Regs) Set(reg int, v uint64) {
	r.Val[reg] = v
	r.Known |= 1 << reg
}

// Get returns a register, and whether it is known.
func (r *Regs) Get(reg uint64) (uint64, bool) {
	if reg > RA || r.Known&(1<<reg) == 0 {
		return 0, false
	}
	return r.Val[reg], true
}

// Entry describes one function, or a part of one.
type Entry struct {
	// Signal is set for the code that a signal handler returns to: its caller was
	// interrupted, and did not call.
	Signal bool

	fde *frame.FrameDescriptionEntry
}

// Begin and End return the addresses of the code.
func (e *Entry) Begin() uint64 { return e.fde.Begin() }

// End returns the address behind the code.
func (e *Entry) End() uint64 { return e.fde.End() }

// ParseEH returns an entry of an .eh_frame section. fde lies at address at; common is
// the entry that it names. Both are whole, with their lengths. Errors: ErrFormat.
func ParseEH(common, fde []byte, at uint64) (*Entry, error) {
	cieBody, rest, err := entry(common)
	if err != nil || len(rest) != 0 || len(cieBody) == 0 || binary.LittleEndian.Uint32(cieBody) != 0 {
		return nil, fmt.Errorf("%w: no common entry (%w)", ErrFormat, orNil(err))
	}
	fdeBody, rest, err := entry(fde)
	if err != nil || len(rest) != 0 || len(fdeBody) == 0 || binary.LittleEndian.Uint32(fdeBody) == 0 {
		return nil, fmt.Errorf("%w: no entry of a function (%w)", ErrFormat, orNil(err))
	}
	c, err := checkCIE(cieBody[4:], true)
	if err == nil {
		err = c.checkFDE(fdeBody[4:])
	}
	if err != nil {
		return nil, err
	}
	// The two as a section of their own, that lies so that the second is in its place.
	section := make([]byte, 0, len(common)+len(fde))
	section = append(append(section, common...), fde...)
	binary.LittleEndian.PutUint32(section[len(common)+4:], uint32(len(common)+4))
	base := at - uint64(len(common))
	if base == 0 {
		return nil, fmt.Errorf("%w: at address 0", ErrFormat)
	}
	all, err := frame.Parse(section, binary.LittleEndian, 0, 8, base)
	if err != nil || len(all) != 1 {
		return nil, fmt.Errorf("%w: %w", ErrFormat, orNil(err))
	}
	return &Entry{c.signal, all[0]}, nil
}

func orNil(err error) error {
	if err == nil {
		return errors.New("another kind")
	}
	return err
}

// Table is a whole .debug_frame section. It is safe for concurrent use.
type Table struct{ fdes frame.FrameDescriptionEntries }

// ParseDebugFrame reads a .debug_frame section, of code that runs slide bytes from
// where it was linked. Errors: ErrFormat.
func ParseDebugFrame(section []byte, slide uint64) (*Table, error) {
	commons := map[uint32]*cie{}
	for rest, at := section, 0; len(rest) > 0; at = len(section) - len(rest) {
		body, next, err := entry(rest)
		if err != nil {
			return nil, err
		}
		rest = next
		if len(body) == 0 {
			continue
		}
		id := binary.LittleEndian.Uint32(body)
		if id == 0xffffffff {
			c, err := checkCIE(body[4:], false)
			if err != nil {
				return nil, err
			}
			commons[uint32(at)] = &c
			continue
		}
		c := commons[id]
		if c == nil {
			return nil, fmt.Errorf("%w: no common entry at %#x", ErrFormat, id)
		}
		if err := c.checkFDE(body[4:]); err != nil {
			return nil, err
		}
	}
	all, err := frame.Parse(section, binary.LittleEndian, slide, 8, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return &Table{frame.FrameDescriptionEntries(nil).Append(all)}, nil // sorts
}

// Len returns the number of entries.
func (t *Table) Len() int { return len(t.fdes) }

// Find returns the entry of the code at pc. The error wraps ErrNone.
func (t *Table) Find(pc uint64) (*Entry, error) {
	e, err := t.fdes.FDEForPC(pc)
	if err != nil {
		return nil, fmt.Errorf("%w: at %#x", ErrNone, pc)
	}
	return &Entry{fde: e}, nil
}

// Step replaces the registers of a frame by those of its caller. pc is an address in
// the code that is being executed: that of the next instruction, or one less if that
// is behind a call. read reads a word of the stack. Errors: ErrEnd, ErrNone, ErrFormat,
// those of read.
func (e *Entry) Step(regs *Regs, pc uint64, read func(addr uint64) (uint64, error)) error {
	if !e.fde.Cover(pc) {
		return fmt.Errorf("%w: at %#x", ErrNone, pc)
	}
	row, err := e.fde.EstablishFrame(pc)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	s := step{regs: regs, read: read}
	if s.cfa, err = s.value(row.CFA, false); err != nil {
		return err
	}
	next := Regs{}
	for reg := range uint64(RA + 1) {
		rule, ok := row.Regs[reg]
		kept := reg == RBX || reg == RBP || reg >= R12 && reg <= R15
		switch {
		case ok && rule.Rule == frame.RuleUndefined && reg == RA:
			return ErrEnd
		case !ok || rule.Rule == frame.RuleSameVal || rule.Rule == frame.RuleUndefined:
			// A rule that was restored is undefined to delve.
			if v, known := regs.Get(reg); known && kept {
				next.Set(int(reg), v)
			}
			continue
		}
		v, err := s.value(rule, true)
		if err != nil {
			return err
		}
		next.Set(int(reg), v)
	}
	if _, ok := row.Regs[RSP]; !ok {
		next.Set(RSP, s.cfa)
	}
	if _, ok := next.Get(RA); !ok {
		return fmt.Errorf("%w: no rule for the return address at %#x", ErrFormat, pc)
	}
	*regs = next
	return nil
}

// step evaluates rules.
type step struct {
	regs *Regs
	cfa  uint64
	read func(uint64) (uint64, error)
}

// value returns what a rule says, of a register if saved.
func (s *step) value(r frame.DWRule, saved bool) (uint64, error) {
	switch r.Rule {
	case frame.RuleCFA, frame.RuleRegister:
		v, ok := s.regs.Get(r.Reg)
		if !ok {
			return 0, fmt.Errorf("%w: register %d is not known", ErrNone, r.Reg)
		}
		return v + uint64(r.Offset), nil
	case frame.RuleOffset:
		if saved {
			return s.read(s.cfa + uint64(r.Offset))
		}
	case frame.RuleExpression:
		v, err := s.expression(r.Expression, saved)
		if err != nil || !saved {
			return v, err
		}
		return s.read(v)
	case frame.RuleValExpression:
		return s.expression(r.Expression, saved)
	}
	return 0, fmt.Errorf("%w: rule %d", ErrFormat, r.Rule)
}

// expression evaluates an expression that was checked. Those of saved registers begin
// with the address of the frame on the stack.
func (s *step) expression(program []byte, saved bool) (uint64, error) {
	const callFrameCFA = 0x9c
	regs := op.DwarfRegisters{CFA: int64(s.cfa), ByteOrder: binary.LittleEndian}
	for reg := range uint64(RA + 1) {
		if v, ok := s.regs.Get(reg); ok {
			regs.AddReg(reg, op.DwarfRegisterFromUint64(v))
		}
	}
	if saved {
		program = append([]byte{callFrameCFA}, program...)
	}
	v, _, err := op.ExecuteStackProgram(regs, program, 8, func(b []byte, addr uint64) (int, error) {
		w, err := s.read(addr)
		if err != nil || len(b) != 8 {
			return 0, err
		}
		binary.LittleEndian.PutUint64(b, w)
		return 8, nil
	})
	if err != nil {
		return 0, fmt.Errorf("%w: expression: %w", ErrFormat, err)
	}
	return uint64(v), nil
}
