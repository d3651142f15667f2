package paging

import (
	"encoding/binary"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// Bits of an arm64 stage 1 descriptor, arch/arm64/include/asm/pgtable-hwdef.h and
// pgtable-prot.h.
const (
	armValid      = 1 << 0
	armTable      = 1 << 1 // a table, or a page on the last level; else a block
	armUser       = 1 << 6 // AP[1]
	armRDOnly     = 1 << 7 // AP[2]
	armAF         = 1 << 10
	armWrite      = 1 << 51 // PTE_WRITE is the hardware's DBM
	armContiguous = 1 << 52
	armPXN        = 1 << 53
	armUXN        = 1 << 54
	armDirty      = 1 << 55
	armSpecial    = 1 << 56
	armUffdWP     = 1 << 58 // since 6.10, if valid

	// Of entries that are not valid.
	armProtNone       = 1 << 58 // PTE_PROT_NONE, until 6.9
	armPMDInvalid     = 1 << 59 // PMD_PRESENT_INVALID, until 6.9
	armPresentInvalid = 1 << 11 // PTE_PRESENT_INVALID (PTE_NG), since 6.10: both of these

	armAddrMask = 0x0000_ffff_ffff_f000
	lpa2Mask    = 0x0003_ffff_ffff_f000 // bits 49:12; 51:50 are in 9:8
)

// classifyARM64v5 is classify up to Linux 6.9.
func classifyARM64v5(level int, raw uint64) Kind {
	present := uint64(armProtNone)
	if level > LevelPTE {
		present |= armPMDInvalid
	}
	return classifyARM64(level, raw, present)
}

// classifyARM64v6 is classify since Linux 6.10.
func classifyARM64v6(level int, raw uint64) Kind {
	return classifyARM64(level, raw, armPresentInvalid)
}

func classifyARM64(level int, raw, present uint64) Kind {
	switch {
	case raw&armValid != 0 && raw&armTable != 0:
		if level == LevelPTE {
			return Present
		}
		return table
	case raw&armValid != 0 && level > LevelPTE && level <= LevelPUD:
		return Present
	case raw&armValid != 0: // a block where there are none
		return Bad
	case raw == 0:
		return none
	case level > LevelPUD:
		return Bad
	case raw&present != 0:
		return ProtNone
	}
	return Swap
}

// addrARM64 returns the address in a descriptor.
func addrARM64(raw uint64, lpa2 bool) uint64 {
	if lpa2 {
		return raw&lpa2Mask | raw>>8&3<<50
	}
	return raw & armAddrMask
}

func swapOffARM64v5(raw uint64) uint64 { return raw >> 8 & (1<<50 - 1) }

// leavesARM64 is leaves for arm64.
func (w *walker) leavesARM64(tab *[tableSize]byte, first, last int, base uint64) error {
	fn, lpa2, format := w.fn, w.LPA2, w.Format
	for i := first; i <= last; i++ {
		raw := binary.LittleEndian.Uint64(tab[i&(entries-1)*8:])
		if raw == 0 {
			continue
		}
		va := base + uint64(i)<<12
		if raw&(armValid|armTable) == armValid|armTable {
			if !fn(Entry{
				VA: va, Raw: raw, Size: vmi.PageSize, PFN: addrARM64(raw, lpa2) >> 12,
				Kind: Present, Level: LevelPTE, Format: format,
			}) {
				return errStop
			}
			continue
		}
		if !fn(w.entry(va, raw, LevelPTE, w.classify(LevelPTE, raw))) {
			return errStop
		}
	}
	return nil
}

// arm64 flags of an Entry: see its methods of the same names.

func (e Entry) writableARM64() bool { return e.Raw&armWrite != 0 }

func (e Entry) nxARM64() bool {
	if e.Raw&armUser != 0 {
		return e.Raw&armUXN != 0
	}
	return e.Raw&armPXN != 0 && e.Raw&armUXN != 0
}

// dirtyARM64 is pte_dirty: the software's bit, or writable in hardware by now.
func (e Entry) dirtyARM64() bool {
	return e.Raw&armDirty != 0 || e.Raw&armWrite != 0 && e.Raw&armRDOnly == 0
}
