package elfhdr

import (
	"cmp"
	"debug/elf"
	"fmt"
	"slices"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/segment"
)

// maxPhys bounds physical addresses. Dumps made with paging give all ones to
// virtual ranges that are no RAM.
const maxPhys = 1 << 52

// Loads returns the segments of guest memory, disjoint. With paging a page may be
// in several PT_LOADs, once for each virtual address, with the same content; the
// first by address wins.
func Loads(progs []Prog, size uint64) ([]segment.Segment, error) {
	var all []Prog
	for _, p := range progs {
		if p.Type != elf.PT_LOAD || p.Filesz == 0 || p.Phys >= maxPhys {
			continue
		}
		if p.Off > size || p.Filesz > size-p.Off {
			return nil, fmt.Errorf("%w: memory at %#x (%#x bytes) should be at offset %#x of the file, which has %#x",
				vmi.ErrTruncated, p.Phys, p.Filesz, p.Off, size)
		}
		p.Filesz = min(p.Filesz, p.Memsz) // memsz > filesz: bytes that the dump left out
		all = append(all, p)
	}
	slices.SortStableFunc(all, func(a, b Prog) int { return cmp.Compare(a.Phys, b.Phys) })
	var out []segment.Segment
	end := uint64(0)
	for _, p := range all {
		if p.Phys+p.Filesz <= end {
			continue
		}
		if skip := max(end, p.Phys) - p.Phys; skip > 0 {
			p.Phys, p.Off, p.Filesz = p.Phys+skip, p.Off+skip, p.Filesz-skip
		}
		end = p.Phys + p.Filesz
		out = append(out, segment.Segment{Addr: vmi.Phys(p.Phys), Len: p.Filesz, Off: p.Off})
	}
	return out, nil
}
