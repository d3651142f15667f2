package paging

// maxSwapTypes is 1 << MAX_SWAPFILES_SHIFT, include/linux/swap.h.
const maxSwapTypes = 32

// SwapConfig counts the swap types that a kernel reserves at the end of its 32
// for entries that are no swap: they depend on its version and configuration
// (include/linux/swap.h, SWP_*_NUM). In the order they follow the real swap files:
//
//	              5.10  6.1  6.12  7.x   configuration
//	HWPoison      1     1    1     1     MEMORY_FAILURE
//	Migration     2     3    3     3     MIGRATION (2 before 5.19)
//	Device        2     4    4     3     DEVICE_PRIVATE (2 before 5.14)
//	Marker        0     1    1     1     always from 5.19, 6.1 only with its option
//	SwapinError   0     1    0     0     6.1
//
// The zero value means unknown: Kind then says Swap for every type.
type SwapConfig struct {
	HWPoison, Migration, Device, Marker, SwapinError uint8
}

// MaxSwapFiles returns MAX_SWAPFILES, the number of types that are real swap:
// the length of the kernel's array swap_info, by which a guess can be checked.
func (c SwapConfig) MaxSwapFiles() int {
	n := maxSwapTypes - int(c.HWPoison) - int(c.Migration) - int(c.Device) - int(c.Marker) - int(c.SwapinError)
	return max(n, 0)
}

// Kind returns what a swap-type entry of the given type stands for: Swap,
// Migration, Device, HWPoison or Marker. A 6.1 swap-in error is HWPoison: the
// page cannot be had.
func (c SwapConfig) Kind(swapType uint8) Kind {
	t := int(swapType) - c.MaxSwapFiles()
	if t < 0 {
		return Swap
	}
	for _, r := range [...]struct {
		n uint8
		k Kind
	}{{c.HWPoison, HWPoison}, {c.Migration, Migration}, {c.Device, Device}, {c.Marker, Marker}, {c.SwapinError, HWPoison}} {
		if t < int(r.n) {
			return r.k
		}
		t -= int(r.n)
	}
	return Swap
}

// SwapType returns the swap type (0-31) of an entry that is not present: the
// index of the swap file, or one of the special types.
func (e Entry) SwapType() uint8 { return e.Format.decoder().swapType(e.Raw) }

// SwapOffset returns the swap offset of an entry that is not present: a page of
// the swap file, or for special types what they define (__swp_offset, which x86
// stores inverted).
func (e Entry) SwapOffset() uint64 { return e.Format.decoder().swapOff(e.Raw) }

func swapTypeX86(raw uint64) uint8 { return uint8(raw >> 59) }
func swapOffX86(raw uint64) uint64 { return ^raw << 5 >> 14 }

// Exclusive says whether the swapped page belongs to this process alone
// (pte_swp_exclusive, 5.19 and newer).
func (e Entry) Exclusive() bool { return e.Kind == Swap && e.Raw&e.Format.decoder().exclusive != 0 }

// Bits of MarkerBits, include/linux/swapops.h PTE_MARKER_*.
const (
	MarkerUffdWP   = 1 << 0
	MarkerPoisoned = 1 << 1
	MarkerGuard    = 1 << 2
)

// MarkerBits returns the bits of a Marker entry, 0 for other kinds.
func (e Entry) MarkerBits() uint64 {
	if e.Kind != Marker {
		return 0
	}
	return e.SwapOffset()
}

// swapPFNMask returns the bits of a migration entry's offset that are the page
// frame number. Above them 6.1 keeps the accessed and dirty bits
// (include/linux/swapops.h SWP_PFN_BITS, from MAX_PHYSMEM_BITS).
func (t *Tables) swapPFNMask() uint64 {
	bits := 46
	switch {
	case t.PhysBits >= 32 && t.PhysBits <= 52:
		bits = t.PhysBits
	case t.levels() == 5:
		bits = 52
	case t.Format.Arch() == ARM64:
		bits = 48
	}
	return 1<<(bits-12) - 1
}
