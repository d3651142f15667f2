package paging

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// ErrLimit is wrapped by Walk's error when the tree has more tables than the
// guest has memory for: tables that are shared in a loop or by the million.
var ErrLimit = errors.New("page tables larger than guest memory")

// spareTables is added to the bound of a walk, for kernels that map the same
// table several times.
const spareTables = 1 << 14

// walker is the state of one Walk.
type walker struct {
	Tables
	start, last uint64 // both inclusive
	fn          func(Entry) bool
	viewer      vmi.Viewer
	path        [6]vmi.Phys // table in use at each level
	bufs        [6]*[tableSize]byte
	budget      uint64
	depth       int // levels of the tree
	first       int // index of the first entry of the top-level table in its page
}

// errStop ends a walk because fn returned false; it never leaves the package.
var errStop = errors.New("stop")

// Walk calls fn for every entry of [start, end) that is not empty, in address
// order: leaves, pages that are swapped out or on the move, and as kind Bad the
// subtrees that cannot be read. end 0 is the end of the address space. A huge page
// that begins before start is given whole. fn returns false to stop.
//
// The error is nil at the end and after a stop; a *TableError if not even the root
// can be read; or wraps ErrLimit. Tables are read a page at a time, so that the
// 512 entries of one table are nearly of one moment; on a running guest the walk
// as a whole is not.
func (t Tables) Walk(start, end uint64, fn func(Entry) bool) error {
	if end != 0 && start >= end {
		return nil
	}
	w := walker{Tables: t, start: start, last: end - 1, fn: fn, depth: t.levels()}
	w.viewer, _ = t.Mem.(vmi.Viewer)
	for _, r := range t.Mem.Ranges() {
		w.budget += r.Len() / tableSize
	}
	w.budget += spareTables
	w.Root = w.root()
	w.first = int(w.Root%tableSize) / 8

	root, err := w.load(w.depth, w.Root&^(tableSize-1))
	if err != nil {
		return &TableError{VA: start, Level: w.depth, Table: w.Root, Err: err}
	}
	if err := w.table(root, w.depth, 0); err != nil && err != errStop {
		return err
	}
	return nil
}

// Entries is Walk as an iterator. It ends early where Walk would return an error;
// use Walk to tell.
func (t Tables) Entries(start, end uint64) iter.Seq[Entry] {
	return func(yield func(Entry) bool) { _ = t.Walk(start, end, yield) }
}

// load returns the table at a; the bytes may change under the caller.
func (w *walker) load(level int, a vmi.Phys) (*[tableSize]byte, error) {
	if w.budget == 0 {
		return nil, fmt.Errorf("%w: gave up at table %#x", ErrLimit, uint64(a))
	}
	w.budget--
	w.path[level] = a
	if w.viewer != nil {
		if b := w.viewer.View(a, tableSize); len(b) >= tableSize {
			return (*[tableSize]byte)(b), nil
		}
	}
	if w.bufs[level] == nil {
		w.bufs[level] = new([tableSize]byte)
	}
	if _, err := w.Mem.ReadPhys(w.bufs[level][:], a); err != nil {
		return nil, err
	}
	return w.bufs[level], nil
}

// table visits the entries of tab, whose first one maps base.
func (w *walker) table(tab *[tableSize]byte, level int, base uint64) error {
	shift := shiftOf(level)
	first, last := 0, entries-1
	top := level == w.depth
	if top {
		last = w.topEntries() - 1
	}
	if !top {
		// The parent made sure that the table overlaps [start, last].
		if w.start > base {
			first = int((w.start - base) >> shift)
		}
		if end := base + uint64(entries)<<shift - 1; w.last < end {
			last = int((w.last - base) >> shift)
		}
	}
	if level == LevelPTE {
		if w.Format != FormatX86 {
			return w.leavesARM64(tab, first, last, base)
		}
		return w.leaves(tab, first, last, base)
	}
	skip := 0
	if top {
		skip = w.first
	}
	for i := first; i <= last; i++ {
		at := (skip + i) * 8
		raw := binary.LittleEndian.Uint64(tab[at : at+8])
		if raw == 0 {
			continue
		}
		va := base + uint64(i)<<shift
		if top {
			va = w.signExtend(va)
			if va+(1<<shift-1) < w.start || va > w.last {
				continue
			}
		}
		k := w.classify(level, raw)
		switch k {
		case none:
			continue
		case table:
			if err := w.descendTo(va, raw, level-1); err != nil {
				return err
			}
			continue
		}
		if !w.fn(w.entry(va, raw, level, k)) {
			return errStop
		}
	}
	return nil
}

// descendTo visits the table that raw points to, or yields raw as Bad.
func (w *walker) descendTo(va, raw uint64, level int) error {
	at := w.next(raw)
	bad := false
	for l := level + 1; l <= w.depth; l++ {
		bad = bad || w.path[l] == at
	}
	if !bad {
		tab, err := w.load(level, at)
		if err == nil {
			return w.table(tab, level, va)
		}
		if errors.Is(err, ErrLimit) {
			return err
		}
	}
	e := Entry{VA: va, Raw: raw, Size: 1 << shiftOf(level+1), PFN: uint64(at) >> 12, Kind: Bad, Level: uint8(level + 1), Format: w.Format}
	if !w.fn(e) {
		return errStop
	}
	return nil
}

// leaves visits entries first to last of a lowest-level table. It is the hot loop
// of a walk: present entries, nearly all there are, take the short way.
func (w *walker) leaves(tab *[tableSize]byte, first, last int, base uint64) error {
	fn, enc := w.fn, w.EncMask
	for i := first; i <= last; i++ {
		raw := binary.LittleEndian.Uint64(tab[i&(entries-1)*8:])
		if raw == 0 {
			continue
		}
		va := base + uint64(i)<<12
		if raw&bitPresent != 0 {
			if !fn(Entry{VA: va, Raw: raw, Size: vmi.PageSize, PFN: raw & addrMask &^ enc >> 12, Kind: Present, Level: LevelPTE}) {
				return errStop
			}
			continue
		}
		if k := classifyX86(LevelPTE, raw); k != none {
			if !fn(w.entry(va, raw, LevelPTE, k)) {
				return errStop
			}
		}
	}
	return nil
}
