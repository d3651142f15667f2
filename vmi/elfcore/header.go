package elfcore

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/ovmigrate/ovmigrate/vmi"
)

const (
	ehdrSize = 64
	phdrSize = 56
	shdrSize = 64

	// pnXNum in e_phnum says that the number is in sh_info of section 0, because
	// it does not fit (elf(5)). debug/elf does not know.
	pnXNum = 0xffff

	// maxNotes bounds the note segments that are looked at, in bytes.
	maxNotes = 64 << 20
)

// prog is a program header, the fields that matter.
type prog struct {
	typ           elf.ProgType
	off           uint64 // in the file
	phys          uint64
	filesz, memsz uint64
}

// reader reads n bytes at off of the file; it fails if the file has less.
type reader func(off uint64, n int) ([]byte, error)

// parseHeader returns the program headers of a 64-bit little-endian core file of
// size bytes. It reads them in pieces: their number is the file's claim.
func parseHeader(read reader, size uint64) (progs []prog, machine elf.Machine, err error) {
	h, err := read(0, ehdrSize)
	if err != nil {
		return nil, 0, fmt.Errorf("ELF header: %w", err)
	}
	le := binary.LittleEndian
	switch {
	case string(h[:4]) != elf.ELFMAG:
		return nil, 0, vmi.ErrFormat
	case elf.Class(h[elf.EI_CLASS]) != elf.ELFCLASS64 || elf.Data(h[elf.EI_DATA]) != elf.ELFDATA2LSB:
		return nil, 0, fmt.Errorf("%w: ELF, but not of a 64-bit little-endian machine", vmi.ErrFormat)
	case elf.Type(le.Uint16(h[16:])) != elf.ET_CORE:
		return nil, 0, fmt.Errorf("%w: ELF, but not a core dump (%v)", vmi.ErrFormat, elf.Type(le.Uint16(h[16:])))
	case le.Uint16(h[54:]) != phdrSize:
		return nil, 0, fmt.Errorf("%w: ELF program headers of %d bytes", vmi.ErrFormat, le.Uint16(h[54:]))
	}
	machine = elf.Machine(le.Uint16(h[18:]))
	phoff, phnum := le.Uint64(h[32:]), uint64(le.Uint16(h[56:]))
	if phnum == pnXNum {
		s, err := read(le.Uint64(h[40:]), shdrSize)
		if err != nil {
			return nil, 0, fmt.Errorf("ELF section header 0: %w", err)
		}
		phnum = uint64(le.Uint32(s[44:]))
	}
	if phoff > size || phnum > (size-phoff)/phdrSize {
		return nil, 0, fmt.Errorf("%w: %d ELF program headers at %#x", vmi.ErrTruncated, phnum, phoff)
	}
	if phnum == 0 {
		return nil, 0, errors.New("ELF core without program headers")
	}
	const batch = 1024
	for i := uint64(0); i < phnum; i += batch {
		n := min(batch, phnum-i)
		b, err := read(phoff+i*phdrSize, int(n*phdrSize))
		if err != nil {
			return nil, 0, fmt.Errorf("ELF program headers: %w", err)
		}
		for ; len(b) > 0; b = b[phdrSize:] {
			progs = append(progs, prog{
				typ: elf.ProgType(le.Uint32(b)), off: le.Uint64(b[8:]), phys: le.Uint64(b[24:]),
				filesz: le.Uint64(b[32:]), memsz: le.Uint64(b[40:]),
			})
		}
	}
	return progs, machine, nil
}
