package qemu

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ovmigrate/ovmigrate/vmi/internal/segment"
)

// piece is a line of the flat view that "info mtree -f" prints: [start, end] of
// guest-physical memory is the memory region name, from off on.
type piece struct {
	start, end uint64 // end inclusive
	kind       string // "ram", "rom", "i/o", …
	name       string
	off        uint64
}

// block is a part of guest RAM: len bytes at guest-physical phys are the memory
// backend id, from off on.
type block struct {
	id             string
	phys, off, len uint64
	probe          uint64 // an address in it that QEMU itself calls RAM
}

// The window below 1 MiB where the firmware switches, region by region and while
// it runs, between RAM, ROM and devices (PAM, SMRAM).
const legacyStart, legacyEnd = 0xa0000, 0x100000

// parseMtree returns the pieces of the flat view of address space "memory".
//
//	FlatView #1
//	 AS "memory", root: system
//	 Root memory region: system
//	  0000000000000000-00000000000bffff (prio 0, ram): pc.ram
//	  0000000100000000-000000017fffffff (prio 0, ram): pc.ram @0000000080000000 KVM
func parseMtree(text string) ([]piece, error) {
	var view []piece
	ours := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "FlatView"):
			if ours {
				return view, nil
			}
			view = nil
		case strings.HasPrefix(line, `AS "memory",`):
			ours = true
		default:
			if p, ok := parsePiece(line); ok {
				view = append(view, p)
			}
		}
	}
	if !ours {
		return nil, errors.New(`QEMU's "info mtree -f" shows no address space "memory"`)
	}
	return view, nil
}

func parsePiece(line string) (p piece, ok bool) {
	head, rest, ok := strings.Cut(line, " (prio ")
	if !ok {
		return p, false
	}
	lo, hi, ok := strings.Cut(head, "-")
	if !ok {
		return p, false
	}
	var err1, err2 error
	p.start, err1 = strconv.ParseUint(lo, 16, 64)
	p.end, err2 = strconv.ParseUint(hi, 16, 64)
	_, rest, ok1 := strings.Cut(rest, ", ")
	kind, name, ok2 := strings.Cut(rest, "): ")
	if err1 != nil || err2 != nil || !ok1 || !ok2 || p.end < p.start {
		return p, false
	}
	p.kind = kind
	// What may follow the name: the offset, then the accelerator that knows it.
	if i := strings.LastIndex(name, " @"); i >= 0 {
		off, _, _ := strings.Cut(name[i+2:], " ")
		if n, err := strconv.ParseUint(off, 16, 64); err == nil {
			p.off, name = n, name[:i]
		}
	}
	for _, accel := range []string{" KVM", " hvf", " NVMM", " whpx"} {
		name = strings.TrimSuffix(name, accel)
	}
	p.name = name
	return p, true
}

// ramBlocks picks the pieces that belong to the memory backends in sizes (by id)
// and joins what the legacy window had split: RAM lies behind it all the time.
func ramBlocks(view []piece, sizes map[string]uint64) ([]block, error) {
	var out []block
	for _, p := range view {
		id := p.name[strings.LastIndexByte(p.name, '/')+1:] // old machine types: "/objects/ram"
		size, ok := sizes[id]
		if !ok || !slices.Contains([]string{"ram", "rom", "romd", "nv-ram"}, p.kind) {
			continue
		}
		n := p.end - p.start + 1
		if n == 0 || p.off > size || n > size-p.off {
			return nil, fmt.Errorf("RAM block %s: piece at %#x exceeds its size", id, p.start)
		}
		out = append(out, block{id: id, phys: p.start, off: p.off, len: n, probe: p.start})
	}
	slices.SortFunc(out, func(a, b block) int { return cmp.Compare(a.phys, b.phys) })
	joined := out[:0]
	for _, b := range out {
		if len(joined) > 0 {
			last := &joined[len(joined)-1]
			end := last.phys + last.len
			gapLegacy := end >= legacyStart && b.phys <= legacyEnd
			if last.id == b.id && b.phys-b.off == last.phys-last.off && (b.phys == end || gapLegacy) {
				last.len = b.phys + b.len - last.phys
				continue
			}
		}
		joined = append(joined, b)
	}
	if len(joined) == 0 {
		return nil, errors.New("QEMU shows no guest RAM")
	}
	return joined, nil
}

func sortExtents(e []segment.Extent) {
	slices.SortFunc(e, func(a, b segment.Extent) int { return cmp.Compare(a.Off, b.Off) })
}
