package kernel

import (
	"errors"
	"fmt"
)

// orcEntry says where the frame of a stretch of code lies and where it keeps its
// return address and the caller's frame pointer. Source:
// arch/x86/include/asm/orc_types.h.
type orcEntry struct {
	SPOffset int16 `k:"sp_offset"`
	BPOffset int16 `k:"bp_offset"`
	SPReg    uint8 `k:"sp_reg"`
	BPReg    uint8 `k:"bp_reg"`
	Type     uint8 `k:"type"`
	Signal   bool  `k:"signal,opt"` // since 6.3
	End      bool  `k:"end,opt"`    // up to 6.3; since then a type
}

var orcEntryLayout = LayoutOf[orcEntry]("orc_entry")

// Registers that a frame may be relative to (ORC_REG_*).
const (
	orcRegUndefined = iota
	orcRegPrevSP
	orcRegDX
	orcRegDI
	orcRegBP
	orcRegSP
	orcRegR10
	orcRegR13
	orcRegBPIndirect
	orcRegSPIndirect
	orcRegUnknown
)

// orcRegisters71 are the registers by the numbers that 7.1 gave them. Numbers that no
// kernel's tables were seen to use are unknown.
var orcRegisters71 = [16]uint8{
	orcRegUndefined, orcRegUnknown, orcRegDX, orcRegSP, orcRegBP, orcRegUnknown, orcRegR10, orcRegR13,
	orcRegPrevSP, orcRegSPIndirect, orcRegBPIndirect, orcRegUnknown, orcRegUnknown, orcRegUnknown, orcRegUnknown, orcRegUnknown,
}

// Types of frames as they are numbered since 6.4.
const (
	orcUndefined = iota
	orcEndOfStack
	orcCall
	orcRegs
	orcRegsPartial
)

// modern gives an entry of a kernel before 6.4 the types of today.
func (e orcEntry) modern(k *Kernel) orcEntry {
	if !orcEntryLayout.Has(k, "End") {
		return e
	}
	switch {
	case e.SPReg != orcRegUndefined:
		e.Type += orcCall
	case e.End:
		e.Type = orcEndOfStack
	default:
		e.Type = orcUndefined
	}
	if !orcEntryLayout.Has(k, "Signal") {
		e.Signal = e.Type == orcRegs || e.Type == orcRegsPartial
	}
	return e
}

// orcTable is a sorted table of code addresses and what holds from each on: of the
// kernel image or of a module.
type orcTable struct {
	ips     Addr // int32 each, relative to its own place
	entries Addr
	n       int
	// renumbered: registers have the numbers of 7.1.
	renumbered bool
}

// maxORC is some ten times the entries of a distribution's kernel.
const maxORC = 32 << 20

// imageORC returns the table of the kernel image. The error wraps ErrNoUnwind.
// Source: include/asm-generic/vmlinux.lds.h:ORC_UNWIND_TABLE.
func (k *Kernel) imageORC() (orcTable, error) {
	var at [4]Addr
	for i, name := range []string{"__start_orc_unwind_ip", "__stop_orc_unwind_ip", "__start_orc_unwind", "__stop_orc_unwind"} {
		var err error
		if at[i], err = k.Symbol(name); err != nil {
			return orcTable{}, fmt.Errorf("%w: the kernel has no ORC tables: %w", ErrNoUnwind, err)
		}
	}
	size, err := orcEntryLayout.Size(k)
	if err != nil {
		return orcTable{}, fmt.Errorf("%w: %w", ErrNoUnwind, err)
	}
	n := uint64(at[1]-at[0]) / 4
	if n == 0 || n > maxORC || uint64(at[3]-at[2]) != n*uint64(size) {
		return orcTable{}, corrupt(at[0], "__start_orc_unwind_ip", "%d addresses for %d bytes of entries", n, uint64(at[3]-at[2]))
	}
	t := orcTable{ips: at[0], entries: at[2], n: int(n)}
	t.renumbered, err = t.findNumbering(k)
	return t, err
}

// findNumbering tells how registers are numbered, which no type says: where a C
// function begins, its frame is one word above the stack pointer.
func (o orcTable) findNumbering(k *Kernel) (renumbered bool, err error) {
	votes := map[uint8]int{}
	for _, name := range []string{"__schedule", "schedule", "do_exit", "vfs_read", "wake_up_process", "start_kernel"} {
		a, err := k.Symbol(name)
		if err != nil {
			continue
		}
		e, err := o.find(k, a)
		if err != nil {
			return false, err
		}
		if e.SPOffset == 8 {
			votes[e.SPReg]++
		}
	}
	const sp71 = 3
	if votes[sp71] == votes[orcRegSP] {
		return false, corrupt(o.entries, "__start_orc_unwind", "registers are numbered in no known way")
	}
	return votes[sp71] > votes[orcRegSP], nil
}

// find returns what holds at ip, which must be code that the table is about. Source:
// arch/x86/kernel/unwind_orc.c:__orc_find.
func (o orcTable) find(k *Kernel, ip Addr) (orcEntry, error) {
	lo, hi := 0, o.n
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		at := o.ips.Add(4 * m)
		rel, err := k.ReadU32(at)
		if err != nil {
			return orcEntry{}, err
		}
		if at.Add(int(int32(rel))) <= ip {
			lo = m + 1
		} else {
			hi = m
		}
	}
	size, err := orcEntryLayout.Size(k)
	if err != nil {
		return orcEntry{}, err
	}
	e, err := orcEntryLayout.Load(k, o.entries.Add(size*max(lo-1, 0)))
	if o.renumbered {
		e.SPReg, e.BPReg = orcRegisters71[e.SPReg&15], orcRegisters71[e.BPReg&15]
	}
	return e.modern(k), err
}

// orcFramePointer is what the kernel assumes of code that no table describes, such
// as that of BPF programs: that it keeps a frame pointer. Source:
// arch/x86/kernel/unwind_orc.c:orc_fp_entry.
var orcFramePointer = orcEntry{Type: orcCall, SPReg: orcRegBP, SPOffset: 16, BPReg: orcRegPrevSP, BPOffset: -16}

// orcUnwinder finds callers by the tables that objtool made for the kernel.
type orcUnwinder struct {
	code  *kernelCode
	image orcTable
}

func newORCUnwinder(code *kernelCode) (*orcUnwinder, error) {
	image, err := code.k.imageORC()
	return &orcUnwinder{code, image}, err
}

func (u *orcUnwinder) name() string { return "orc" }

func (u *orcUnwinder) entry(s *unwindState) (orcEntry, error) {
	k, ip := u.code.k, s.ip
	if !s.interrupted {
		ip-- // the call may be the last instruction of its function
	}
	table := u.image
	if !u.code.inImage(ip) {
		m, err := u.code.moduleAt(ip)
		if err != nil {
			return orcEntry{}, err
		}
		if m == nil || m.orc.n == 0 {
			s.unsure = true
			return orcFramePointer, nil
		}
		table = m.orc
		table.renumbered = u.image.renumbered
	}
	return table.find(k, ip)
}

// step is arch/x86/kernel/unwind_orc.c:unwind_next_frame.
func (u *orcUnwinder) step(s *unwindState) error {
	e, err := u.entry(s)
	if err != nil {
		return err
	}
	switch e.Type {
	case orcUndefined:
		return fmt.Errorf("%w: no frame is known at %s", ErrNoUnwind, s.ip)
	case orcEndOfStack:
		return errStackEnd
	}
	sp, err := u.previousSP(s, e)
	if err != nil {
		return err
	}
	if sp&7 != 0 {
		return corrupt(sp, "stack", "frame of %s is not aligned", s.ip)
	}
	next := unwindState{stacks: s.stacks, unsure: s.unsure, interrupted: e.Signal, bp: s.bp}
	switch e.Type {
	case orcCall:
		next.sp = sp
		next.ip, err = s.deref(u.code.k, sp-8)
	case orcRegs:
		next.regs, err = s.loadRegs(u.code.k, sp)
	case orcRegsPartial:
		next.regs, err = s.loadIretFrame(u.code.k, sp)
	default:
		err = corrupt(s.ip, "orc_entry", "type %d", e.Type)
	}
	if err != nil {
		return err
	}
	if r := next.regs; r != nil {
		next.ip, next.sp = Addr(r.IP), Addr(r.SP)
		if r.userMode() {
			return errStackEnd
		}
		if e.Type == orcRegsPartial && s.regs != nil && !s.partial {
			next.earlier = s.regs
		}
		next.partial = e.Type == orcRegsPartial
	}
	if err := u.previousBP(s, &next, e, sp); err != nil {
		return err
	}
	// The stack grows down: a caller's frame lies above.
	if in := s.stackOf(s.sp); in != nil && in == s.stackOf(next.sp) && next.sp <= s.sp {
		return corrupt(next.sp, "stack", "the frame of %s is not above that of %s", next.ip, s.ip)
	}
	*s = next
	return nil
}

func (u *orcUnwinder) previousSP(s *unwindState, e orcEntry) (Addr, error) {
	off := int(e.SPOffset)
	register := func(get func(*PtRegs) uint64) (Addr, error) {
		r, ok := s.register(get)
		if !ok {
			return 0, fmt.Errorf("%w: a register is not known at %s", ErrNoUnwind, s.ip)
		}
		return Addr(r), nil
	}
	switch e.SPReg {
	case orcRegSP:
		return s.sp.Add(off), nil
	case orcRegBP:
		return s.bp.Add(off), nil
	case orcRegSPIndirect:
		// The offset is that of the result since 5.12, and of its place before.
		sp, err := s.deref(u.code.k, s.sp)
		if err == nil && s.stackOf(sp.Add(off)) != nil {
			return sp.Add(off), nil
		}
		return s.deref(u.code.k, s.sp.Add(off))
	case orcRegBPIndirect:
		return s.deref(u.code.k, s.bp.Add(off))
	case orcRegR10:
		return register(func(r *PtRegs) uint64 { return r.R10 })
	case orcRegR13:
		return register(func(r *PtRegs) uint64 { return r.R13 })
	case orcRegDI:
		return register(func(r *PtRegs) uint64 { return r.DI })
	case orcRegDX:
		return register(func(r *PtRegs) uint64 { return r.DX })
	}
	return 0, corrupt(s.ip, "orc_entry", "frame relative to register %d", e.SPReg)
}

func (u *orcUnwinder) previousBP(s, next *unwindState, e orcEntry, sp Addr) (err error) {
	switch e.BPReg {
	case orcRegUndefined:
		if bp, ok := next.register(func(r *PtRegs) uint64 { return r.BP }); ok {
			next.bp = Addr(bp)
		}
	case orcRegPrevSP:
		next.bp, err = s.deref(u.code.k, sp.Add(int(e.BPOffset)))
	case orcRegBP:
		next.bp, err = s.deref(u.code.k, s.bp.Add(int(e.BPOffset)))
	default:
		err = corrupt(s.ip, "orc_entry", "frame pointer relative to register %d", e.BPReg)
	}
	return err
}

// errStackEnd is how a step says that there is no caller.
var errStackEnd = errors.New("end of stack")
