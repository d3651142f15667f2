// Package paging walks the page tables of an x86-64 or arm64 guest in its physical
// memory.
//
// A page table is a tree of 4 KiB pages with 512 eight-byte entries each. Linux
// keeps more in it than the processor reads: an entry whose present bit is clear
// may hold a page that nobody may touch (PROT_NONE), the place of a page in swap,
// a page on its way to another frame, or a mere marker. [Tables.Walk] yields all
// of them, leaf by leaf, in address order; [Tables.Translate] follows one address.
//
// Everything read here was written by the guest and is not trusted: a table
// outside RAM or one that contains itself becomes an [Entry] of kind [Bad], and a
// walk reads no more tables than the guest has pages.
//
// Virtual addresses are uint64 here; the typed ones belong to package kernel.
// The bits are those of Linux 5.10 to 7.x; a [Format] says which. Code outside this
// package asks an Entry's methods, never its bits, so that another architecture is
// another decoder and not another caller.
package paging

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// Tables is one page-table tree. It is a small value; copies share nothing but
// Mem. Safe for concurrent use if Mem is.
type Tables struct {
	Mem vmi.Memory

	// Root is the guest-physical address of the top-level table (CR3, or the
	// physical address behind mm->pgd). The low 12 bits are ignored; but the low 7
	// on an arm64 with five levels, where that table is smaller than a page.
	Root vmi.Phys

	// Levels is 4, or 5 with CR4.LA57. On arm64 it is 3 for 39-bit virtual
	// addresses, 4 for 48 and 5 for 52. 0 means 4.
	Levels int

	// Format is that of the entries; it tells the architecture.
	Format Format

	// Upper says that the tree is an arm64 kernel's (TTBR1), which translates the
	// upper half of the address space, and not a process's.
	Upper bool

	// LPA2 says that arm64 entries have addresses of 52 bits, the upper two out of
	// their place.
	LPA2 bool

	// PhysBits is the kernel's MAX_PHYSMEM_BITS if it is not what x86-64 has: 46,
	// or 52 with five levels. Migration entries depend on it.
	PhysBits int

	// EncMask is cleared from every entry: sme_mask of a guest that marks
	// encrypted pages, else 0.
	EncMask uint64

	// Swap tells the special swap types of this kernel apart. The zero value
	// makes every swap-type entry a [Swap].
	Swap SwapConfig
}

// Levels of a table in the tree, as Entry.Level and NotMappedError.Level give
// them. With four levels there is no P4D and the PGD counts as level 4.
const (
	LevelPTE = 1
	LevelPMD = 2
	LevelPUD = 3
	LevelP4D = 4
	LevelPGD = 5
)

const (
	tableSize = vmi.PageSize
	entries   = tableSize / 8
)

// NotMappedError says that no memory is behind a virtual address. Entry is the
// table entry that ended the walk at Level, 0 for an empty one or for an address
// that is not canonical.
type NotMappedError struct {
	VA    uint64
	Level int
	Entry uint64
}

func (e *NotMappedError) Error() string {
	if e.Entry == 0 {
		return fmt.Sprintf("virtual %#x: not mapped (level %d entry is empty)", e.VA, e.Level)
	}
	return fmt.Sprintf("virtual %#x: not mapped (level %d entry %#x)", e.VA, e.Level, e.Entry)
}

// TableError says that a page table lies where it cannot be read. Unwrap gives
// the *vmi.FaultError.
type TableError struct {
	VA    uint64 // address that was looked up, or the first one below the table
	Level int    // level of the unreadable table
	Table vmi.Phys
	Err   error
}

func (e *TableError) Error() string {
	return fmt.Sprintf("virtual %#x: level %d page table at %#x: %v", e.VA, e.Level, uint64(e.Table), e.Err)
}

func (e *TableError) Unwrap() error { return e.Err }

// levels returns the depth of the tree; what is no depth is read as 4.
func (t *Tables) levels() int {
	if t.Levels == 5 || t.Levels == 3 && t.Format.Arch() == ARM64 {
		return t.Levels
	}
	return 4
}

func (t *Tables) classify(level int, raw uint64) Kind {
	if t.Format == FormatX86 {
		return classifyX86(level, raw)
	}
	return t.Format.decoder().classify(level, raw)
}

// next returns the table that an entry of kind table points to.
func (t *Tables) next(raw uint64) vmi.Phys {
	if t.Format.Arch() == ARM64 {
		return vmi.Phys(addrARM64(raw, t.LPA2))
	}
	return vmi.Phys(raw & addrMask &^ t.EncMask)
}

// shiftOf returns the number of address bits below one entry of a level.
func shiftOf(level int) uint { return 12 + 9*uint(level-1) }

// canonical says whether the bits above the translated ones are what they must be.
func (t *Tables) canonical(va uint64) bool { return t.signExtend(va) == va }

// signExtend sets the bits above the translated ones: on x86-64 they are copies of
// the highest translated one, on arm64 they choose between two trees.
func (t *Tables) signExtend(va uint64) uint64 {
	if t.Format.Arch() == ARM64 {
		above := ^uint64(0) << t.armBits()
		if t.Upper {
			return va | above
		}
		return va &^ above
	}
	unused := 64 - shiftOf(t.levels()+1)
	return uint64(int64(va<<unused) >> unused)
}

// armBits returns the number of bits of a virtual address of an arm64 tree. The top
// table of five levels has only 16 entries.
func (t *Tables) armBits() uint { return min(shiftOf(t.levels()+1), 52) }

// smallTop is how many entries the top-level table of an arm64 with 52 bits of
// virtual address has.
const smallTop = 16

// topEntries returns how many entries the top-level table has.
func (t *Tables) topEntries() int {
	if t.Format.Arch() == ARM64 && t.levels() == 5 {
		return smallTop
	}
	return entries
}

// root returns where the top-level table begins.
func (t *Tables) root() vmi.Phys { return t.Root &^ vmi.Phys(t.topEntries()*8-1) }

// Translate returns the guest-physical address behind va and the size in bytes of
// the page it is in (4 KiB, 2 MiB or 1 GiB). A PROT_NONE page translates: its
// bytes are there though the process may not touch them. The error is a
// *NotMappedError or a *TableError. It does not allocate unless it fails.
func (t Tables) Translate(va uint64) (pa vmi.Phys, pageSize uint64, err error) {
	level, raw, err := t.descend(va)
	if err != nil {
		return 0, 0, err
	}
	if c := t.classify(level, raw); c != Present && c != ProtNone {
		return 0, 0, &NotMappedError{VA: va, Level: level, Entry: raw}
	}
	size := uint64(1) << shiftOf(level)
	return vmi.Phys(t.frame(level, raw) | va&(size-1)), size, nil
}

// Lookup returns the entry that decides about va: a leaf, or the non-zero entry
// that says where its page went. The error is a *NotMappedError if there is none,
// or a *TableError.
func (t Tables) Lookup(va uint64) (Entry, error) {
	level, raw, err := t.descend(va)
	if err != nil {
		return Entry{}, err
	}
	k := t.classify(level, raw)
	if k == none || k == table {
		return Entry{}, &NotMappedError{VA: va, Level: level, Entry: raw}
	}
	return t.entry(va&^(1<<shiftOf(level)-1), raw, level, k), nil
}

// descend follows va to the entry that is not a pointer to another table.
func (t *Tables) descend(va uint64) (level int, raw uint64, err error) {
	var w *[8]byte
	level, raw, err = t.follow(va, &w)
	if w != nil {
		words.Put(w)
	}
	return level, raw, err
}

// follow is descend; it takes a word from words if it has to read a copy.
func (t *Tables) follow(va uint64, w **[8]byte) (level int, raw uint64, err error) {
	level = t.levels()
	if !t.canonical(va) {
		return level, 0, &NotMappedError{VA: va, Level: level}
	}
	viewer, _ := t.Mem.(vmi.Viewer)
	at := t.root()
	for {
		index := va >> shiftOf(level) & (entries - 1)
		if level == 5 {
			index &= uint64(t.topEntries() - 1)
		}
		slot := at + vmi.Phys(index*8)
		if b := view(viewer, slot); b != nil {
			raw = binary.LittleEndian.Uint64(b)
		} else {
			if *w == nil {
				*w = words.Get().(*[8]byte)
			}
			if _, err = t.Mem.ReadPhys((*w)[:], slot); err != nil {
				return level, 0, &TableError{VA: va, Level: level, Table: at, Err: err}
			}
			raw = binary.LittleEndian.Uint64((*w)[:])
		}
		if level == LevelPTE || t.classify(level, raw) != table {
			return level, raw, nil
		}
		at = t.next(raw)
		level--
	}
}

// words are where ReadPhys puts an entry: a variable on the stack would move to the
// heap with every call through the interface.
var words = sync.Pool{New: func() any { return new([8]byte) }}

func view(v vmi.Viewer, at vmi.Phys) []byte {
	if v == nil {
		return nil
	}
	if b := v.View(at, 8); len(b) >= 8 {
		return b
	}
	return nil
}
