package elfnote

import (
	"encoding/binary"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// Append appends a note to b, whose length stays a multiple of 4.
func Append(b []byte, name string, typ uint32, desc []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(len(name)+1))
	b = le.AppendUint32(b, uint32(len(desc)))
	b = le.AppendUint32(b, typ)
	b = pad(append(append(b, name...), 0))
	return pad(append(b, desc...))
}

func pad(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }

// AppendDump appends the notes of a dump in QEMU's order: NT_PRSTATUS of each
// processor, then QEMU's note of each if its control registers are known, then
// VMCOREINFO if there is one.
func AppendDump(b []byte, cpus []vmi.CPU, vmcoreinfo []byte) []byte {
	for i := range cpus {
		b = Append(b, "CORE", ntPRStatus, encodePRStatus(&cpus[i]))
	}
	for i := range cpus {
		if cpus[i].Known&vmi.KnownControl != 0 {
			b = Append(b, "QEMU", 0, encodeQEMUState(&cpus[i]))
		}
	}
	if len(vmcoreinfo) > 0 {
		b = Append(b, vmcoreinfoName, 0, vmcoreinfo)
	}
	return b
}

// Size and members of struct elf_prstatus that matter (include/linux/elfcore.h).
const (
	prStatusSize = 336
	prPIDAt      = 32
)

func encodePRStatus(c *vmi.CPU) []byte {
	b := make([]byte, prStatusSize)
	binary.LittleEndian.PutUint32(b[prPIDAt:], uint32(c.ID+1)) // as QEMU
	set := func(i int, v uint64) { binary.LittleEndian.PutUint64(b[regsAt+8*i:], v) }
	for reg, i := range prStatusGPR {
		set(i, c.GPR[reg])
	}
	set(16, c.RIP)
	set(17, uint64(c.CS))
	set(18, c.RFLAGS)
	set(20, uint64(c.SS))
	set(21, c.FSBase)
	set(22, c.GSBase)
	return b
}

func encodeQEMUState(c *vmi.CPU) []byte {
	size := qemuSizeShort
	if c.Known&vmi.KnownKGSBase != 0 {
		size = qemuSize
	}
	b := make([]byte, size)
	le := binary.LittleEndian
	le.PutUint32(b, qemuVersion)
	le.PutUint32(b[4:], uint32(size))
	set := func(i int, v uint64) { le.PutUint64(b[qemuGPRs+8*i:], v) }
	for reg, i := range qemuGPR {
		set(i, c.GPR[reg])
	}
	set(16, c.RIP)
	set(17, c.RFLAGS)
	seg := func(i int) []byte { return b[qemuSegments+i*qemuSegmentSize:] } // cs ds es fs gs ss
	le.PutUint32(seg(0), uint32(c.CS))
	le.PutUint32(seg(5), uint32(c.SS))
	le.PutUint64(seg(3)[16:], c.FSBase)
	le.PutUint64(seg(4)[16:], c.GSBase)
	for i, v := range map[int]uint64{0: c.CR0, 2: c.CR2, 3: c.CR3, 4: c.CR4} {
		le.PutUint64(b[qemuControl+8*i:], v)
	}
	if size == qemuSize {
		le.PutUint64(b[qemuControl+5*8:], c.KGSBase)
	}
	return b
}
