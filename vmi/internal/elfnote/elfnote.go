// Package elfnote reads and writes the notes of ELF core dumps of x86-64 machines.
package elfnote

import (
	"encoding/binary"
	"iter"
	"strings"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// Note is one ELF note. Desc is part of the input.
type Note struct {
	Name string
	Type uint32
	Desc []byte
}

// All yields the notes of a PT_NOTE segment and stops at the first that is cut.
func All(b []byte) iter.Seq[Note] {
	return func(yield func(Note) bool) {
		for len(b) >= 12 {
			nameLen := binary.LittleEndian.Uint32(b)
			descLen := binary.LittleEndian.Uint32(b[4:])
			typ := binary.LittleEndian.Uint32(b[8:])
			b = b[12:]
			if uint64(nameLen) > uint64(len(b)) {
				return
			}
			name := strings.TrimRight(string(b[:min(nameLen, 64)]), "\x00")
			b = b[min(uint64(len(b)), align4(nameLen)):]
			if uint64(descLen) > uint64(len(b)) {
				return
			}
			desc := b[:descLen]
			b = b[min(uint64(len(b)), align4(descLen)):]
			if !yield(Note{name, typ, desc}) {
				return
			}
		}
	}
}

func align4(n uint32) uint64 { return (uint64(n) + 3) &^ 3 }

// CPUs returns the processors that notes describe, in the order of the notes: one
// for each NT_PRSTATUS note, completed by the QEMU note of the same rank.
func CPUs(notes []byte) []vmi.CPU {
	var status, state []vmi.CPU
	for n := range All(notes) {
		switch {
		case n.Name == "CORE" && n.Type == ntPRStatus:
			if c, ok := prStatus(n.Desc); ok {
				status = append(status, c)
			}
		case n.Name == "QEMU":
			if c, ok := qemuState(n.Desc); ok {
				state = append(state, c)
			}
		}
	}
	// QEMU's notes hold all that the others do, and more.
	out := status
	if len(state) >= len(status) {
		out = state
	}
	for i := range out {
		out[i].ID = i
	}
	return out
}

const ntPRStatus = 1

// regsAt is the offset of pr_reg in struct elf_prstatus of x86-64, which has 27
// registers in the order of struct user_regs_struct (arch/x86/include/asm/user_64.h).
const regsAt, regsCount = 112, 27

// prStatusGPR says which of these each register of [vmi.CPU.GPR] is.
var prStatusGPR = [16]int{10, 11, 12, 5, 19, 4, 13, 14, 9, 8, 7, 6, 3, 2, 1, 0}

func prStatus(b []byte) (c vmi.CPU, ok bool) {
	if len(b) < regsAt+8*regsCount {
		return c, false
	}
	r := func(i int) uint64 { return binary.LittleEndian.Uint64(b[regsAt+8*i:]) }
	for reg, i := range prStatusGPR {
		c.GPR[reg] = r(i)
	}
	c.RIP, c.CS, c.RFLAGS, c.SS = r(16), uint16(r(17)), r(18), uint16(r(20))
	c.FSBase, c.GSBase = r(21), r(22)
	return c, true
}

// QEMU's note is struct QEMUCPUState of target/i386/arch_dump.c, version 1.
const (
	qemuVersion     = 1
	qemuSize        = 0x1b8 // with kernel_gs_base
	qemuSizeShort   = 0x1b0 // before QEMU 3.0
	qemuGPRs        = 8     // rax rbx rcx rdx rsi rdi rsp rbp r8-r15 rip rflags
	qemuSegments    = qemuGPRs + 18*8
	qemuSegmentSize = 24 // u32 selector, limit, flags, pad; u64 base
	qemuControl     = qemuSegments + 10*qemuSegmentSize
)

// qemuGPR says which of its general registers each of [vmi.CPU.GPR] is.
var qemuGPR = [16]int{0, 2, 3, 1, 6, 7, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15}

func qemuState(b []byte) (c vmi.CPU, ok bool) {
	le := binary.LittleEndian
	if len(b) < qemuSizeShort || le.Uint32(b) != qemuVersion || int(le.Uint32(b[4:])) != len(b) {
		return c, false
	}
	r := func(i int) uint64 { return le.Uint64(b[qemuGPRs+8*i:]) }
	for reg, i := range qemuGPR {
		c.GPR[reg] = r(i)
	}
	c.RIP, c.RFLAGS = r(16), r(17)
	seg := func(i int) []byte { return b[qemuSegments+i*qemuSegmentSize:] } // cs ds es fs gs ss
	c.CS, c.SS = le.Uint16(seg(0)), le.Uint16(seg(5))
	c.FSBase, c.GSBase = le.Uint64(seg(3)[16:]), le.Uint64(seg(4)[16:])
	cr := func(i int) uint64 { return le.Uint64(b[qemuControl+8*i:]) }
	c.CR0, c.CR2, c.CR3, c.CR4 = cr(0), cr(2), cr(3), cr(4)
	c.Known = vmi.KnownControl
	if len(b) >= qemuSize {
		c.KGSBase = le.Uint64(b[qemuControl+5*8:])
		c.Known |= vmi.KnownKGSBase
	}
	return c, true
}

const vmcoreinfoName = "VMCOREINFO"

// VMCoreInfo returns the text of the VMCOREINFO note, or nil.
func VMCoreInfo(notes []byte) []byte {
	for n := range All(notes) {
		if n.Name == vmcoreinfoName {
			return n.Desc
		}
	}
	return nil
}
