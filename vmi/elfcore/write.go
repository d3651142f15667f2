package elfcore

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/copyout"
	"github.com/ovmigrate/ovmigrate/vmi/internal/elfhdr"
	"github.com/ovmigrate/ovmigrate/vmi/internal/elfnote"
	"github.com/ovmigrate/ovmigrate/vmi/internal/newfile"
)

// machines are the values of DumpOptions.Machine.
var machines = map[string]elf.Machine{"": elf.EM_X86_64, "x86_64": elf.EM_X86_64, "aarch64": elf.EM_AARCH64}

// spare is how many segments more than there are ranges of memory the first attempt
// has room for: memory that the source lacks splits ranges.
const spare = 1024

// Write writes all memory of mem as an ELF core to path, laid out as QEMU's
// dump-guest-memory without paging does: a file that appears when it is complete.
// Memory that mem lacks (vmi.ErrExcluded) is in no segment; runs of zeros are holes
// of the file. Where mem lacks so much that the headers do not fit, all is written
// once more behind larger ones.
func Write(ctx context.Context, path string, mem vmi.Memory, o *vmi.DumpOptions) error {
	if o == nil {
		o = &vmi.DumpOptions{}
	}
	machine, ok := machines[o.Machine]
	if !ok {
		return fmt.Errorf("write %s: no ELF machine %q", path, o.Machine)
	}
	notes := elfnote.AppendDump(nil, o.CPUs, o.VMCoreInfo)
	return newfile.Write(path, func(f *os.File) error {
		for room := len(mem.Ranges()) + spare; ; {
			w := writer{f: f, pos: dataStart(room, len(notes))}
			if err := copyout.Memory(ctx, mem, o.Progress, w.piece); err != nil {
				return err
			}
			if len(w.loads) == 0 {
				return errors.New("the source has no memory that could be written")
			}
			w.alias(o.Image)
			if len(w.loads) <= room {
				return w.finish(machine, notes)
			}
			room = len(w.loads) + spare
			if err := f.Truncate(0); err != nil {
				return err
			}
		}
	})
}

// headersSize is the size of what stands before the notes of a file with that many
// segments of memory: a section header too, in case that their number needs it.
func headersSize(loads int) uint64 {
	return elfhdr.EhdrSize + elfhdr.ShdrSize + elfhdr.PhdrSize*uint64(loads+1)
}

func dataStart(room, notes int) uint64 { return pageUp(headersSize(room) + uint64(notes)) }

func pageUp(n uint64) uint64 { return (n + vmi.PageSize - 1) &^ (vmi.PageSize - 1) }

type writer struct {
	f     *os.File
	pos   uint64 // end of the file
	loads []elf.Prog64
}

func (w *writer) piece(p copyout.Piece) error {
	if p.Kind == copyout.Absent {
		return nil
	}
	if n := len(w.loads); n > 0 && w.loads[n-1].Paddr+w.loads[n-1].Memsz == uint64(p.Start) {
		w.loads[n-1].Filesz += p.Len()
		w.loads[n-1].Memsz += p.Len()
	} else {
		// Pages of memory are pages of the file, so that zeros can be holes.
		w.pos = pageUp(w.pos) + uint64(p.Start%vmi.PageSize)
		w.loads = append(w.loads, elf.Prog64{
			Type: uint32(elf.PT_LOAD), Off: w.pos, Paddr: uint64(p.Start), Filesz: p.Len(), Memsz: p.Len(),
		})
	}
	if p.Kind == copyout.Data {
		if _, err := w.f.WriteAt(p.Data, int64(w.pos)); err != nil {
			return err
		}
	}
	w.pos += p.Len()
	return nil
}

// alias adds a segment of bytes that are in the file already, for their address.
func (w *writer) alias(m vmi.Mapping) {
	for _, l := range w.loads {
		at := uint64(m.Phys) - l.Paddr
		if m.Len > 0 && uint64(m.Phys) >= l.Paddr && at <= l.Filesz && m.Len <= l.Filesz-at {
			l.Off, l.Vaddr, l.Paddr, l.Filesz, l.Memsz = l.Off+at, m.Virt, uint64(m.Phys), m.Len, m.Len
			w.loads = append(w.loads, l)
			return
		}
	}
}

// finish writes the headers.
func (w *writer) finish(machine elf.Machine, notes []byte) error {
	if err := w.f.Truncate(int64(w.pos)); err != nil { // it may end in zeros that were not written
		return err
	}
	progs := len(w.loads) + 1
	h := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_CORE), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Phoff: elfhdr.EhdrSize, Ehsize: elfhdr.EhdrSize, Phentsize: elfhdr.PhdrSize, Phnum: uint16(progs),
	}
	section := progs >= elfhdr.PNXNum
	if section {
		h.Phnum, h.Shnum, h.Shentsize = elfhdr.PNXNum, 1, elfhdr.ShdrSize
		h.Shoff = elfhdr.EhdrSize + elfhdr.PhdrSize*uint64(progs)
	}
	var b bytes.Buffer
	for _, v := range []any{
		h,
		elf.Prog64{Type: uint32(elf.PT_NOTE), Off: headersSize(len(w.loads)), Filesz: uint64(len(notes)), Memsz: uint64(len(notes))},
		w.loads,
	} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			return err
		}
	}
	if section {
		if err := binary.Write(&b, binary.LittleEndian, elf.Section64{Info: uint32(progs)}); err != nil {
			return err
		}
	}
	if _, err := w.f.WriteAt(b.Bytes(), 0); err != nil {
		return err
	}
	_, err := w.f.WriteAt(notes, int64(headersSize(len(w.loads))))
	return err
}
