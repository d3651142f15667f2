// Package elfhdr reads the headers of ELF core files, of dumps and of /proc/kcore.
//
// debug/elf is not used: a dump may have more than 65,534 segments, whose number it
// misreads, and nothing in a dump may be trusted.
package elfhdr

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// Sizes of the headers of a 64-bit ELF file.
const (
	EhdrSize = 64
	PhdrSize = 56
	ShdrSize = 64
)

// PNXNum in e_phnum says that the number is in sh_info of section 0, because it does
// not fit (elf(5)). debug/elf does not know.
const PNXNum = 0xffff

// maxNotes bounds the note segments that are looked at, in bytes.
const maxNotes = 64 << 20

// Prog is a program header, the fields that matter.
type Prog struct {
	Type          elf.ProgType
	Off           uint64 // in the file
	Phys          uint64
	Filesz, Memsz uint64
}

// Reader reads n bytes at off of the file; it fails if the file has less.
type Reader func(off uint64, n int) ([]byte, error)

// Read returns the program headers of a 64-bit little-endian core file of size
// bytes. It reads them in pieces: their number is the file's claim.
func Read(read Reader, size uint64) (progs []Prog, machine elf.Machine, err error) {
	h, err := read(0, EhdrSize)
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
	case le.Uint16(h[54:]) != PhdrSize:
		return nil, 0, fmt.Errorf("%w: ELF program headers of %d bytes", vmi.ErrFormat, le.Uint16(h[54:]))
	}
	machine = elf.Machine(le.Uint16(h[18:]))
	phoff, phnum := le.Uint64(h[32:]), uint64(le.Uint16(h[56:]))
	if phnum == PNXNum {
		s, err := read(le.Uint64(h[40:]), ShdrSize)
		if err != nil {
			return nil, 0, fmt.Errorf("ELF section header 0: %w", err)
		}
		phnum = uint64(le.Uint32(s[44:]))
	}
	if phoff > size || phnum > (size-phoff)/PhdrSize {
		return nil, 0, fmt.Errorf("%w: %d ELF program headers at %#x", vmi.ErrTruncated, phnum, phoff)
	}
	if phnum == 0 {
		return nil, 0, errors.New("ELF core without program headers")
	}
	const batch = 1024
	for i := uint64(0); i < phnum; i += batch {
		n := min(batch, phnum-i)
		b, err := read(phoff+i*PhdrSize, int(n*PhdrSize))
		if err != nil {
			return nil, 0, fmt.Errorf("ELF program headers: %w", err)
		}
		for ; len(b) > 0; b = b[PhdrSize:] {
			progs = append(progs, Prog{
				Type: elf.ProgType(le.Uint32(b)), Off: le.Uint64(b[8:]), Phys: le.Uint64(b[24:]),
				Filesz: le.Uint64(b[32:]), Memsz: le.Uint64(b[40:]),
			})
		}
	}
	return progs, machine, nil
}

// Notes returns the contents of all note segments, one after the other.
func Notes(read Reader, progs []Prog) ([]byte, error) {
	var notes []byte
	for _, p := range progs {
		if p.Type != elf.PT_NOTE || p.Filesz > maxNotes-uint64(len(notes)) {
			continue
		}
		b, err := read(p.Off, int(p.Filesz))
		if err != nil {
			return nil, fmt.Errorf("ELF notes: %w", err)
		}
		notes = append(notes, b...)
	}
	return notes, nil
}

// MachineName returns what uname -m says on a machine, or "" for one that is not
// known here.
func MachineName(m elf.Machine) string {
	switch m {
	case elf.EM_X86_64, elf.EM_386: // QEMU says 386 while processor 0 is not in long mode
		return "x86_64"
	case elf.EM_AARCH64:
		return "aarch64"
	}
	return ""
}
