package paging

import (
	"fmt"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// Bits of an x86-64 entry, arch/x86/include/asm/pgtable_types.h.
const (
	bitPresent    = 1 << 0
	bitRW         = 1 << 1 // soft-dirty in a swap-type entry
	bitUser       = 1 << 2 // uffd-wp in a swap-type entry
	bitSwpExcl    = 1 << 3 // anon-exclusive in a swap-type entry, 5.19+
	bitAccessed   = 1 << 5
	bitDirty      = 1 << 6
	bitPSE        = 1 << 7 // huge, in a PMD or PUD
	bitProtNone   = 1 << 8 // global if present
	bitSpecial    = 1 << 9
	bitUffdWP     = 1 << 10
	bitSoftDirty  = 1 << 11
	bitSavedDirty = 1 << 58 // 6.6+; devmap before
	bitNX         = 1 << 63

	addrMask = 0x000f_ffff_ffff_f000

	// Linux ignores these two in an entry that is otherwise empty
	// (_PAGE_KNL_ERRATUM_MASK: a Xeon Phi sets them by mistake).
	noneMask = bitAccessed | bitDirty
)

// Kind says what an entry of a page table stands for.
type Kind uint8

const (
	none  Kind = iota // empty: never yielded
	table             // points to the next level: never yielded

	Present   // a page the processor can reach
	ProtNone  // a page of a PROT_NONE mapping, or one hidden for NUMA balancing or a THP split; its bytes are there
	Swap      // in swap at SwapType, SwapOffset; or a special type that Tables.Swap does not name
	Migration // on its way to another frame; PFN is the one it is moved from
	Device    // in device memory
	HWPoison  // the frame PFN had a hardware memory error
	Marker    // no page: a marker left by userfaultfd, poison or a guard region (see MarkerBits)
	Bad       // the table it points to is outside RAM or is its own ancestor, or the bits make no sense
)

func (k Kind) String() string {
	names := [...]string{"none", "table", "present", "protnone", "swap", "migration", "device", "hwpoison", "marker", "bad"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Entry is one leaf of a page table, or one non-zero entry that stands for an
// absent page. Its flags are those of the leaf alone; Linux leaves the levels
// above permissive.
type Entry struct {
	VA   uint64 // first virtual address it covers
	Raw  uint64 // the entry as the guest wrote it
	PFN  uint64 // first page frame (4 KiB units) if Present, ProtNone, Migration or HWPoison; of the missing table if Bad; else 0
	Size uint64 // bytes covered: 4 KiB, 2 MiB, 1 GiB; more for a Bad entry of a higher level

	Kind   Kind
	Level  uint8 // LevelPTE, LevelPMD, LevelPUD; higher only if Bad
	Format Format
}

// classifyX86 says what raw stands for at level, swap types not yet told apart.
func classifyX86(level int, raw uint64) Kind {
	if raw&bitPresent != 0 {
		switch {
		case level == LevelPTE:
			return Present
		case raw&bitPSE == 0:
			return table
		case level <= LevelPUD:
			return Present
		}
		return Bad
	}
	switch {
	case raw&^noneMask == 0:
		return none
	case level > LevelPUD:
		return Bad
	case raw&bitProtNone != 0 || level > LevelPTE && raw&bitPSE != 0:
		return ProtNone
	}
	return Swap
}

// frameX86 returns the physical address in a Present or ProtNone leaf. An entry
// whose present bit is clear holds it inverted, so that a processor that
// speculates on it reaches no real memory (asm/pgtable-invert.h).
func frameX86(level int, raw, encMask uint64) uint64 {
	if raw&bitPresent == 0 {
		raw = ^raw
	}
	return raw & addrMask &^ encMask &^ (1<<shiftOf(level) - 1)
}

func (t *Tables) frame(level int, raw uint64) uint64 {
	if t.Format == FormatX86 {
		return frameX86(level, raw, t.EncMask)
	}
	return addrARM64(raw, t.LPA2) &^ (1<<shiftOf(level) - 1)
}

// entry builds the Entry for a leaf that classify called k.
func (t *Tables) entry(va, raw uint64, level int, k Kind) Entry {
	e := Entry{VA: va, Raw: raw, Size: 1 << shiftOf(level), Kind: k, Level: uint8(level), Format: t.Format}
	switch k {
	case Present, ProtNone:
		e.PFN = t.frame(level, raw) >> 12
	case Swap:
		e.Kind = t.Swap.Kind(e.SwapType())
		if e.Kind == Migration || e.Kind == HWPoison {
			e.PFN = e.SwapOffset() & t.swapPFNMask()
		}
	}
	return e
}

// Present says whether a page is behind the entry, reachable or not (pte_present).
func (e Entry) Present() bool { return e.Kind == Present || e.Kind == ProtNone }

// Phys returns the guest-physical address of the first byte of PFN.
func (e Entry) Phys() vmi.Phys { return vmi.Phys(e.PFN << 12) }

// Huge says whether the entry covers more than one base page.
func (e Entry) Huge() bool { return e.Size > vmi.PageSize }

// Writable says whether the processor may write the page (pte_write).
func (e Entry) Writable() bool {
	if e.arm64() {
		return e.Present() && e.writableARM64()
	}
	return e.Present() && e.Raw&bitRW != 0
}

// User says whether user mode may reach the page. False for ProtNone.
func (e Entry) User() bool {
	return e.Kind == Present && e.flag(bitUser, armUser)
}

// NX says whether the page must not be executed: on arm64 by user mode if it is a
// user's, else by the kernel.
func (e Entry) NX() bool {
	if e.arm64() {
		return e.Present() && e.nxARM64()
	}
	return e.Present() && e.Raw&bitNX != 0
}

// Accessed says whether the page was used since Linux last cleared the bit.
func (e Entry) Accessed() bool { return e.Present() && e.flag(bitAccessed, armAF) }

// Contiguous says whether an arm64 processor may take the page and its 15
// neighbours for one.
func (e Entry) Contiguous() bool { return e.arm64() && e.Present() && e.Raw&armContiguous != 0 }

func (e Entry) arm64() bool { return e.Format != FormatX86 }

// flag tests a bit that has one place per architecture.
func (e Entry) flag(x86, arm64 uint64) bool {
	if e.arm64() {
		return e.Raw&arm64 != 0
	}
	return e.Raw&x86 != 0
}

// Dirty says whether the page was written since Linux last cleaned it (pte_dirty:
// the hardware bit, or from 6.6 on the one saved for shadow stacks). On kernels
// before 6.6 bit 58 marks device memory, which then reads as dirty.
func (e Entry) Dirty() bool {
	if e.arm64() {
		return e.Present() && e.dirtyARM64()
	}
	return e.Present() && e.Raw&(bitDirty|bitSavedDirty) != 0
}

// SoftDirty says whether the page was written since /proc/PID/clear_refs. arm64 does
// not know.
func (e Entry) SoftDirty() bool {
	if e.Present() {
		return !e.arm64() && e.Raw&bitSoftDirty != 0
	}
	return e.swapType() && e.Raw&e.Format.decoder().softDirty != 0
}

// UffdWP says whether userfaultfd write-protects the page. arm64 can since 6.10.
func (e Entry) UffdWP() bool {
	if e.Present() {
		return e.Format == FormatX86 && e.Raw&bitUffdWP != 0 ||
			e.Format == FormatARM64v6_10 && e.Raw&(armValid|armUffdWP) == armValid|armUffdWP
	}
	return e.swapType() && e.Raw&e.Format.decoder().uffdWP != 0
}

// Special says whether the page has no struct page that may be used (pte_special):
// the zero page, vdso data, device memory. Only base pages carry the mark on all
// kernels.
func (e Entry) Special() bool { return e.Present() && e.flag(bitSpecial, armSpecial) }

// swapType says whether the entry has the layout of a swap entry.
func (e Entry) swapType() bool { return e.Kind >= Swap && e.Kind <= Marker }
