package ramfile

import (
	"encoding/binary"
	"io"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// Where Firecracker and Cloud Hypervisor put what they tell the kernel about memory
// at boot: struct boot_params for Linux's own protocol, struct hvm_start_info for
// PVH. Linux on x86 never gives the lowest 64 KiB to anybody, so that both are there
// as long as the guest runs. Sources: Firecracker src/vmm/src/arch/x86_64/layout.rs,
// Cloud Hypervisor arch/src/x86_64/layout.rs; arch/x86/include/uapi/asm/bootparam.h;
// include/xen/interface/hvm/start_info.h.
const (
	zeroPage   = 0x7000
	startInfo  = 0x6000
	bootMapEnd = 0x8000

	bootFlagAt  = 0x1fe // u16 0xaa55
	headerAt    = 0x202 // "HdrS"
	e820CountAt = 0x1e8 // u8
	e820At      = 0x2d0 // u64 address, u64 size, u32 type
	e820Size    = 20
	e820Max     = 128

	startMagic  = 0x336ec578
	memmapAt    = 40 // u64 address, u32 number
	memmapSize  = 24 // u64 address, u64 size, u32 type, u32 0
	memmapMax   = 128
	typeRAM     = 1
	oneMiB      = 1 << 20
	maxBootSize = 64 << 40
)

// BootLayout returns the layout of the RAM in a file of size bytes as the machine's
// memory map says that the virtual machine monitor left in it, at the places where
// Firecracker and Cloud Hypervisor put it. ok is false if there is none, or if it
// does not account for every byte of the file: then it is not of this file.
func BootLayout(file io.ReaderAt, size uint64) (layout []Block, ok bool) {
	b := make([]byte, bootMapEnd)
	if size > maxBootSize {
		return nil, false
	}
	if n, err := file.ReadAt(b, 0); n < len(b) && err != nil {
		return nil, false
	}
	for _, entries := range [][]vmi.Range{e820(b[zeroPage:]), memmap(b)} {
		below, above := uint64(0), uint64(0)
		sound := true
		for _, r := range entries {
			switch {
			case r.End <= fourGiB && r.Start <= oneMiB:
				below = max(below, uint64(r.End))
			case uint64(r.Start) == fourGiB && above == 0:
				above = r.Len()
			default:
				sound = false // a machine of another kind
			}
		}
		if sound && below > oneMiB && below%vmi.PageSize == 0 && below+above == size && (above > 0 || size <= fourGiB) {
			return Below4G(size, below), true
		}
	}
	return nil, false
}

// e820 returns the RAM that boot_params tell of.
func e820(b []byte) (out []vmi.Range) {
	le := binary.LittleEndian
	if le.Uint16(b[bootFlagAt:]) != 0xaa55 || string(b[headerAt:headerAt+4]) != "HdrS" {
		return nil
	}
	return ram(b[e820At:], min(int(b[e820CountAt]), e820Max), e820Size)
}

// memmap returns the RAM that hvm_start_info tells of.
func memmap(b []byte) []vmi.Range {
	le := binary.LittleEndian
	if le.Uint32(b[startInfo:]) != startMagic {
		return nil
	}
	at, n := le.Uint64(b[startInfo+memmapAt:]), le.Uint32(b[startInfo+memmapAt+8:])
	if n > memmapMax || at > bootMapEnd-memmapMax*memmapSize {
		return nil
	}
	return ram(b[at:], int(n), memmapSize)
}

// ram returns the entries of type RAM of a table: address, size, type.
func ram(table []byte, n, size int) (out []vmi.Range) {
	le := binary.LittleEndian
	for i := range n {
		e := table[i*size:]
		if start, n := le.Uint64(e), le.Uint64(e[8:]); le.Uint32(e[16:]) == typeRAM && n > 0 && start+n > start {
			out = append(out, vmi.Range{Start: vmi.Phys(start), End: vmi.Phys(start + n)})
		}
	}
	return out
}
