package kdump

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/ovmigrate/ovmigrate/vmi"
)

const (
	signature    = "KDUMP   "
	oldSignature = "DISKDUMP"

	minVersion, maxVersion = 1, 6

	machineX86 = "x86_64"
)

// The main header is struct disk_dump_header, in block 0, the sub-header struct
// kdump_sub_header, in block 1 (makedumpfile: diskdump_mod.h), as 64-bit machines lay
// them out.
const (
	headerSize = 464
	utsLen     = 65 // a member of struct new_utsname

	atVersion      = 8
	atUTS          = 12 // sysname, nodename, release, version, machine, domainname
	atTimestamp    = 408
	atStatus       = 424
	atBlockSize    = 428
	atSubBlocks    = 432
	atBitmapBlocks = 436
	atMaxMapnr     = 440 // 32 bits of it
	atTotalRAM     = 444
	atWritten      = 452
	atNrCPUs       = 460

	subHeaderSize  = 104
	atPhysBase     = 0
	atDumpLevel    = 8
	atSplit        = 12
	atStart32      = 16
	atEnd32        = 24
	atVMCoreInfo   = 32 // offset, size
	atNotes        = 48 // offset, size
	atStart64      = 80
	atEnd64        = 88
	atMaxMapnr64   = 96
	subHeaderBlock = 1
)

// statusIncomplete in the main header says that the disk was full.
const statusIncomplete = 0x8

// Bounds of what a file may claim.
const (
	minShift, maxShift = 12, 16   // of the block size
	maxPFN             = 1 << 33  // 32 TiB of 4 KiB pages
	maxNotes           = 16 << 20 // 20,000 processors' registers
	maxVMCoreInfo      = 1 << 20
)

// span is a place in the file; len 0: there is none.
type span struct{ off, len uint64 }

// header is what the two headers say, checked against each other but not against the
// size of the file.
type header struct {
	identity    []byte // what all parts of a split dump have in common
	machine     string // uname -m; may be empty
	incomplete  bool
	shift       uint   // log2 of the block size
	end         uint64 // page frames are below
	ram, dumped span   // the bitmaps; the same where there is only one
	descs       uint64 // offset of the descriptors
	dumpLevel   uint32

	split             bool
	splitAt, splitEnd uint64 // page frames of this part

	vmcoreinfo, notes span
}

func parseHeader(in *input) (h header, err error) {
	b := make([]byte, headerSize)
	if err := in.read(b, 0); err != nil {
		return h, fmt.Errorf("main header: %w", err)
	}
	le := binary.LittleEndian
	switch string(b[:8]) {
	case signature:
	case oldSignature:
		return h, fmt.Errorf("%w: written by diskdump, which gave way to kdump in 2006", vmi.ErrFormat)
	default:
		if bytes.HasPrefix(b, []byte("\x7fELF")) {
			return h, fmt.Errorf("%w: an ELF dump in flattened form; rearrange it first: makedumpfile -R NEW < FILE", vmi.ErrFormat)
		}
		return h, vmi.ErrFormat
	}
	version := int32(le.Uint32(b[atVersion:]))
	if version < minVersion || version > maxVersion {
		return h, fmt.Errorf("%w: kdump header version %d", vmi.ErrFormat, version)
	}
	machine, _, _ := bytes.Cut(b[atUTS+utsMachine*utsLen:][:utsLen], []byte{0})
	h.machine = string(machine)
	block := le.Uint32(b[atBlockSize:])
	h.shift = uint(bits.TrailingZeros32(block))
	if bits.OnesCount32(block) != 1 || h.shift < minShift || h.shift > maxShift {
		return h, fmt.Errorf("%w: blocks of %d bytes (machine %q; 32-bit machines are not supported)", vmi.ErrFormat, block, h.machine)
	}
	h.incomplete = le.Uint32(b[atStatus:])&statusIncomplete != 0
	h.end = uint64(le.Uint32(b[atMaxMapnr:]))
	sub, bitmaps := int32(le.Uint32(b[atSubBlocks:])), uint64(le.Uint32(b[atBitmapBlocks:]))
	if sub < 1 {
		return h, fmt.Errorf("%w: %d blocks of sub-header", ErrCorrupt, sub)
	}
	le.PutUint32(b[atStatus:], 0)
	h.identity = b
	if err := h.parseSubHeader(in, version); err != nil {
		return h, err
	}
	if h.end == 0 || h.end > maxPFN {
		return h, fmt.Errorf("%w: %d page frames", ErrCorrupt, h.end)
	}
	return h, h.place(uint64(sub), bitmaps)
}

func (h *header) parseSubHeader(in *input, version int32) error {
	b := make([]byte, subHeaderSize)
	if err := in.read(b, subHeaderBlock<<h.shift); err != nil {
		return fmt.Errorf("sub-header: %w", err)
	}
	le := binary.LittleEndian
	at := func(off int) span { return span{le.Uint64(b[off:]), le.Uint64(b[off+8:])} }
	h.dumpLevel = le.Uint32(b[atDumpLevel:])
	if version >= 2 {
		h.split = le.Uint32(b[atSplit:]) != 0
		h.splitAt, h.splitEnd = le.Uint64(b[atStart32:]), le.Uint64(b[atEnd32:])
	}
	if version >= 3 {
		h.vmcoreinfo = at(atVMCoreInfo)
	}
	if version >= 4 {
		h.notes = at(atNotes)
	}
	if version >= 6 {
		h.splitAt, h.splitEnd = le.Uint64(b[atStart64:]), le.Uint64(b[atEnd64:])
		h.end = le.Uint64(b[atMaxMapnr64:])
	}
	if !h.split {
		h.splitAt, h.splitEnd = 0, h.end
	}
	return nil
}

// place computes where the bitmaps and descriptors are. Offsets cannot overflow: both
// numbers have 32 bits.
func (h *header) place(sub, bitmaps uint64) error {
	start := (1 + sub) << h.shift
	h.descs = start + bitmaps<<h.shift
	need := (h.end + 7) / 8
	blocks := (need + 1<<h.shift - 1) >> h.shift
	switch {
	case bitmaps >= 2*blocks:
		h.ram = span{start, need}
		h.dumped = span{start + bitmaps<<h.shift/2, need}
	case bitmaps >= blocks: // nothing is left out
		h.ram = span{start, need}
		h.dumped = h.ram
	default:
		return fmt.Errorf("%w: bitmaps of %d blocks for %d page frames", ErrCorrupt, bitmaps, h.end)
	}
	return nil
}
