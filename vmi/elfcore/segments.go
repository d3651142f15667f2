package elfcore

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

// loads returns the segments of guest memory, disjoint. With paging a page may be
// in several PT_LOADs, once for each virtual address, with the same content; the
// first by address wins.
func loads(progs []prog, size uint64) ([]segment.Segment, error) {
	var all []prog
	for _, p := range progs {
		if p.typ != elf.PT_LOAD || p.filesz == 0 || p.phys >= maxPhys {
			continue
		}
		if p.off > size || p.filesz > size-p.off {
			return nil, fmt.Errorf("%w: memory at %#x (%#x bytes) should be at offset %#x of the file, which has %#x",
				vmi.ErrTruncated, p.phys, p.filesz, p.off, size)
		}
		p.filesz = min(p.filesz, p.memsz) // memsz > filesz: bytes that the dump left out
		all = append(all, p)
	}
	slices.SortStableFunc(all, func(a, b prog) int { return cmp.Compare(a.phys, b.phys) })
	var out []segment.Segment
	end := uint64(0)
	for _, p := range all {
		if p.phys+p.filesz <= end {
			continue
		}
		if skip := max(end, p.phys) - p.phys; skip > 0 {
			p.phys, p.off, p.filesz = p.phys+skip, p.off+skip, p.filesz-skip
		}
		end = p.phys + p.filesz
		out = append(out, segment.Segment{Addr: vmi.Phys(p.phys), Len: p.filesz, Off: p.off})
	}
	return out, nil
}
