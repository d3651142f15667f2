package paging

import "fmt"

// Arch is the architecture of a guest.
type Arch uint8

// Architectures whose page tables this package reads. The zero value is x86-64.
const (
	X86_64 Arch = iota
	ARM64       // stage 1 tables of 4 KiB pages
)

func (a Arch) String() string {
	switch a {
	case X86_64:
		return "x86-64"
	case ARM64:
		return "arm64"
	}
	return fmt.Sprintf("arch%d", uint8(a))
}

// Format says which bits of an [Entry] mean what: its architecture, and for what
// Linux keeps in entries that the processor does not read, an age of the kernel.
type Format uint8

// Formats of entries. That of an arm64 kernel is told by the release in which its
// bits came; see arm64.go.
const (
	FormatX86        Format = iota // x86-64, 5.10 to 7.x
	FormatARM64v5_10               // to 5.18
	FormatARM64v5_19               // to 6.9
	FormatARM64v6_10               // and newer
)

// decoder is what an architecture knows of its entries.
type decoder struct {
	classify  func(level int, raw uint64) Kind
	swapType  func(raw uint64) uint8
	swapOff   func(raw uint64) uint64
	exclusive uint64 // bits of an entry that is not present
	softDirty uint64
	uffdWP    uint64
}

var decoders = [...]decoder{
	FormatX86: {
		classify: classifyX86, swapType: swapTypeX86, swapOff: swapOffX86,
		exclusive: bitSwpExcl, softDirty: bitRW, uffdWP: bitUser,
	},
	FormatARM64v5_10: {
		classify: classifyARM64v5, swapOff: swapOffARM64v5,
		swapType: func(raw uint64) uint8 { return uint8(raw >> 2 & 0x1f) },
	},
	FormatARM64v5_19: {
		classify: classifyARM64v5, swapOff: swapOffARM64v5, exclusive: 1 << 2,
		swapType: func(raw uint64) uint8 { return uint8(raw >> 3 & 0x1f) },
	},
	FormatARM64v6_10: {
		classify: classifyARM64v6, exclusive: 1 << 2, uffdWP: 1 << 3,
		swapType: func(raw uint64) uint8 { return uint8(raw >> 6 & 0x1f) },
		swapOff:  func(raw uint64) uint64 { return raw >> 12 & (1<<50 - 1) },
	},
}

// decoder returns that of the format; of one that does not exist it is x86-64's.
func (f Format) decoder() *decoder {
	if int(f) < len(decoders) {
		return &decoders[f]
	}
	return &decoders[FormatX86]
}

// Arch returns the architecture that the format belongs to.
func (f Format) Arch() Arch {
	if f == FormatX86 || int(f) >= len(decoders) {
		return X86_64
	}
	return ARM64
}
