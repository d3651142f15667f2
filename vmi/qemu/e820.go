package qemu

import (
	"encoding/binary"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// layout is how a PC splits its RAM: below bytes at 0, the others from above on.
type layout struct{ below, above uint64 }

func (l layout) blocks(ram uint64) []block {
	out := []block{{phys: 0, off: 0, len: l.below}}
	if ram > l.below {
		out = append(out, block{phys: l.above, off: l.below, len: ram - l.below})
	}
	return out
}

// e820Size is the size of QEMU's struct e820_entry, packed: u64 address, u64
// length, u32 type.
const e820Size = 20

// findE820 looks in a part of QEMU's heap for the e820 entries that QEMU makes for
// ram bytes of RAM and serves to the firmware as fw_cfg file "etc/e820": one of
// type RAM at 0, and if that is not all, one above 4 GiB with the rest. Source:
// QEMU hw/i386/pc.c:pc_memory_init, hw/i386/e820_memory_layout.c:e820_add_entry.
func findE820(heap []byte, ram uint64, found map[layout]int) {
	const typeRAM = 1
	le := binary.LittleEndian
	for i := 0; i+e820Size <= len(heap); i += 4 {
		e := heap[i : i+e820Size]
		if le.Uint32(e[16:]) != typeRAM || le.Uint64(e) != 0 {
			continue
		}
		l := layout{below: le.Uint64(e[8:])}
		switch {
		case l.below == ram:
		case l.below == 0 || l.below > ram || l.below%vmi.PageSize != 0 || i+2*e820Size > len(heap):
			continue
		default:
			e = heap[i+e820Size : i+2*e820Size]
			l.above = le.Uint64(e)
			if le.Uint32(e[16:]) != typeRAM || le.Uint64(e[8:]) != ram-l.below ||
				l.above < 1<<32 || l.above%vmi.PageSize != 0 {
				continue
			}
		}
		found[l]++
	}
}
