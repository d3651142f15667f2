package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ovmigrate/ovmigrate/kernel/cfi"
)

// userImage is an ELF file as a process has it mapped. What it says of itself is the
// process's word: all of it is checked.
type userImage struct {
	w    *userWalk
	vma  *VMA // of its begin
	bias uint64
	eh   elf.Prog64 // PT_GNU_EH_FRAME, of type 0 if there is none
	dyn  elf.Prog64 // PT_DYNAMIC
	head elf.Header64

	named bool // syms and names are read
	syms  []byte
	names io.ReaderAt

	scanned bool // frames is read
	frames  []byte
	framesA UserAddr // where it lies
}

// Bounds of what an image has.
const (
	maxUserProgs   = 64
	maxUserVMAs    = 64      // mappings of one file, one after another
	maxUserSymtab  = 4 << 20 // bytes
	maxUserSymbols = 32 << 20
	maxUserName    = 256
	maxUserEntry   = 16 << 10
)

// errNoImage is wrapped by errors about code that is of no ELF file.
var errNoImage = errors.New("no ELF file is mapped there")

// imageAt returns the file that v maps code of.
func (w *userWalk) imageAt(v *VMA) (*userImage, error) {
	first, err := w.firstVMA(v)
	if err != nil {
		return nil, err
	}
	if im, ok := w.images[first.Start]; ok {
		return im, nil
	}
	im := &userImage{w: w, vma: first}
	if err := im.readHeaders(); err != nil {
		return nil, fmt.Errorf("image at %s: %w", first.Start, err)
	}
	w.images[first.Start] = im
	return im, nil
}

// firstVMA returns the mapping of the begin of the file that v maps.
func (w *userWalk) firstVMA(v *VMA) (*VMA, error) {
	if v.File == 0 {
		if name, err := w.m.Name(v); err != nil || name != "[vdso]" {
			return nil, errors.Join(err, errNoImage)
		}
		return v, nil
	}
	at := w.index(v.Start)
	for i := at; i >= 0 && i > at-maxUserVMAs; i-- {
		if u := &w.vmas[i]; u.File == v.File && u.PgOff == 0 {
			return u, nil
		}
	}
	return nil, errNoImage
}

func (im *userImage) readHeaders() error {
	h := &im.head
	if err := im.load(h, im.vma.Start); err != nil {
		return err
	}
	if string(h.Ident[:4]) != elf.ELFMAG || elf.Class(h.Ident[elf.EI_CLASS]) != elf.ELFCLASS64 ||
		elf.Machine(h.Machine) != elf.EM_X86_64 || h.Phentsize != 56 || h.Phnum > maxUserProgs || h.Phoff > maxUserEntry {
		return errNoImage
	}
	progs := make([]elf.Prog64, h.Phnum)
	if err := im.load(progs, im.vma.Start+UserAddr(h.Phoff)); err != nil {
		return err
	}
	loaded := false
	for _, p := range progs {
		switch elf.ProgType(p.Type) {
		case elf.PT_LOAD:
			if p.Off < 4096 && !loaded {
				im.bias, loaded = uint64(im.vma.Start)-(p.Vaddr-p.Off), true
			}
		case elf.PT_GNU_EH_FRAME:
			im.eh = p
		case elf.PT_DYNAMIC:
			im.dyn = p
		}
	}
	if !loaded {
		return errNoImage
	}
	return nil
}

// load reads a structure.
func (im *userImage) load(to any, at UserAddr) error {
	b := make([]byte, binary.Size(to))
	if err := im.w.read(b, at); err != nil {
		return err
	}
	_, err := binary.Decode(b, binary.LittleEndian, to)
	return err
}

// read reads memory as the process would see it: pages that it has not touched yet are
// taken from the file's cache.
func (w *userWalk) read(b []byte, at UserAddr) error {
	n, err := w.m.ReadAt(b, at)
	for err != nil {
		v := w.vma(at + UserAddr(n))
		if v == nil || v.File == 0 || v.Flags&VMWrite != 0 {
			return err
		}
		f, ferr := w.m.k.FileAt(v.File)
		if ferr != nil {
			return ferr
		}
		c, ferr := f.Inode.PageCache()
		if ferr != nil {
			return ferr
		}
		// As far as the page goes.
		pos := at + UserAddr(n)
		part := b[n:min(len(b), n+int(4096-pos%4096))]
		if _, ferr := c.ReadAt(part, int64(v.PgOff<<12)+int64(pos-v.Start)); ferr != nil && !errors.Is(ferr, io.EOF) {
			return fmt.Errorf("user memory at %s: %w", pos, ferr)
		}
		if n += len(part); n == len(b) {
			return nil
		}
		var m int
		m, err = w.m.ReadAt(b[n:], at+UserAddr(n))
		n += m
	}
	return nil
}

// entry returns the call frame information of the code at pc. The error wraps
// cfi.ErrNone if the file has none. Source: LSB, "Eh Frame Header".
func (im *userImage) entry(pc UserAddr) (*cfi.Entry, error) {
	none := fmt.Errorf("%w: at %s", cfi.ErrNone, pc)
	if im.eh.Type == 0 {
		at, ok := im.scanFrames(pc)
		if !ok {
			return nil, none
		}
		return im.parseEntry(at)
	}
	at := UserAddr(im.eh.Vaddr + im.bias)
	var h struct {
		Version, Frames, Count, Table uint8
		EHFrame                       int32
		N                             uint32
	}
	if err := im.load(&h, at); err != nil {
		return nil, err
	}
	// Without a table to search, or with one of another kind, which no linker makes.
	if h.Version != 1 || h.Count != 0x03 || h.Table != 0x3b {
		return nil, none
	}
	n := int(min(uint64(h.N), im.eh.Memsz/8))
	row := func(i int) (r [2]int32, err error) { return r, im.load(&r, at+12+UserAddr(8*i)) }
	lo, hi := 0, n
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		r, err := row(m)
		if err != nil {
			return nil, err
		}
		if at+UserAddr(r[0]) <= pc {
			lo = m + 1
		} else {
			hi = m
		}
	}
	if lo == 0 {
		return nil, none
	}
	r, err := row(lo - 1)
	if err != nil {
		return nil, err
	}
	e, err := im.parseEntry(at + UserAddr(r[1]))
	if err == nil && (uint64(pc) < e.Begin() || uint64(pc) >= e.End()) {
		return nil, none
	}
	return e, err
}

func (im *userImage) parseEntry(at UserAddr) (*cfi.Entry, error) {
	fde, err := im.entryBytes(at)
	if err != nil {
		return nil, err
	}
	id := UserAddr(binary.LittleEndian.Uint32(fde[4:]))
	common, err := im.entryBytes(at + 4 - id)
	if err != nil {
		return nil, err
	}
	e, err := cfi.ParseEH(common, fde, uint64(at))
	if err != nil {
		return nil, fmt.Errorf("frame entry at %s: %w", at, err)
	}
	return e, nil
}

func (im *userImage) entryBytes(at UserAddr) ([]byte, error) {
	var n uint32
	if err := im.load(&n, at); err != nil {
		return nil, err
	}
	if n < 4 || n > maxUserEntry {
		return nil, fmt.Errorf("frame entry at %s: %w: %d bytes", at, cfi.ErrFormat, n)
	}
	b := make([]byte, 4+n)
	return b, im.w.read(b, at)
}

// scanFrames looks for the entry of pc in the .eh_frame of a file without a header for
// that, as static programs are. Only section headers say where that is, which are not
// mapped, but may be in the file's cache.
func (im *userImage) scanFrames(pc UserAddr) (at UserAddr, ok bool) {
	if !im.scanned {
		im.scanned = true
		err := im.sections(func(s elf.Section64, c *PageCache) error {
			if s.Flags&uint64(elf.SHF_ALLOC) == 0 || s.Size > maxUserSymtab || im.sectionName(c, s) != ".eh_frame" {
				return nil
			}
			if im.w.symbols += int(s.Size); im.w.symbols > maxUserSymbols {
				return ErrLimit
			}
			im.frames, im.framesA = make([]byte, s.Size), UserAddr(s.Addr+im.bias)
			if err := im.w.read(im.frames, im.framesA); err != nil {
				return err
			}
			return errFound
		})
		if !errors.Is(err, errFound) {
			im.frames = nil
		}
	}
	le := binary.LittleEndian
	for b := im.frames; len(b) >= 16; {
		at := im.framesA + UserAddr(len(im.frames)-len(b))
		n := uint64(le.Uint32(b))
		if n == 0 || n+4 > uint64(len(b)) {
			break
		}
		// Addresses are relative and of four bytes; that they are is checked later.
		begin := at + 8 + UserAddr(int32(le.Uint32(b[8:])))
		if le.Uint32(b[4:]) != 0 && pc-begin < UserAddr(le.Uint32(b[12:])) {
			return at, true
		}
		b = b[4+n:]
	}
	return 0, false
}

// errFound ends a walk that has found what it looked for.
var errFound = errors.New("found")

func (im *userImage) sectionName(c *PageCache, s elf.Section64) string {
	names, err := im.section(c, uint32(im.head.Shstrndx))
	if err != nil || names.Off > 1<<40 {
		return ""
	}
	var b [16]byte
	n, _ := c.ReadAt(b[:], int64(names.Off)+int64(s.Name))
	text, _, _ := bytes.Cut(b[:n], []byte{0})
	return string(text)
}

// symbol returns the function that pc is in, "" if it is not known.
func (im *userImage) symbol(pc UserAddr) (name string, offset uint64) {
	if !im.named {
		im.named = true
		if im.readSymtab() != nil {
			im.syms = nil
			if im.readDynsym() != nil {
				im.syms = nil
			}
		}
		im.w.symbols += len(im.syms)
	}
	const size = 24 // of an Elf64_Sym
	want := uint64(pc) - im.bias
	for b := im.syms; len(b) >= size; b = b[size:] {
		if t := elf.ST_TYPE(b[4]); t != elf.STT_FUNC && t != elf.STT_GNU_IFUNC {
			continue
		}
		value, n := binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
		if want-value >= n {
			continue
		}
		var text [maxUserName]byte
		k, err := im.names.ReadAt(text[:], int64(binary.LittleEndian.Uint32(b)))
		end := bytes.IndexByte(text[:k], 0)
		if end <= 0 || err != nil && !errors.Is(err, io.EOF) && end < 0 {
			return "", 0
		}
		return string(text[:end]), want - value
	}
	return "", 0
}

// section reads a section header.
func (im *userImage) section(c *PageCache, i uint32) (s elf.Section64, err error) {
	if i >= uint32(im.head.Shnum) {
		return s, errNoImage
	}
	var b [64]byte
	if _, err := c.ReadAt(b[:], int64(im.head.Shoff)+64*int64(i)); err != nil {
		return s, err
	}
	_, err = binary.Decode(b[:], binary.LittleEndian, &s)
	return s, err
}

// sections calls do for the sections of the file, as far as its cache has them, until
// that returns an error.
func (im *userImage) sections(do func(s elf.Section64, c *PageCache) error) error {
	if im.vma.File == 0 || im.head.Shentsize != 64 || im.head.Shoff > 1<<40 {
		return errNoImage
	}
	f, err := im.w.m.k.FileAt(im.vma.File)
	if err != nil {
		return err
	}
	c, err := f.Inode.PageCache()
	if err != nil {
		return err
	}
	for i := range uint32(min(im.head.Shnum, 256)) {
		s, err := im.section(c, i)
		if err == nil {
			err = do(s, c)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readSymtab reads .symtab, which is not mapped but may be in the file's cache.
func (im *userImage) readSymtab() error {
	err := im.sections(func(s elf.Section64, c *PageCache) error {
		if elf.SectionType(s.Type) != elf.SHT_SYMTAB {
			return nil
		}
		names, err := im.section(c, s.Link)
		if err != nil {
			return err
		}
		if names.Off > 1<<40 || names.Size > 1<<40 || s.Off > 1<<40 {
			return errNoImage
		}
		im.names = io.NewSectionReader(c, int64(names.Off), int64(names.Size))
		err = im.readSyms(s.Size, func(b []byte) error {
			_, err := c.ReadAt(b, int64(s.Off))
			return err
		})
		if err != nil {
			return err
		}
		return errFound
	})
	switch {
	case errors.Is(err, errFound):
		return nil
	case err == nil:
		return errNoImage
	}
	return err
}

func (im *userImage) readSyms(size uint64, read func([]byte) error) error {
	if size > maxUserSymtab || im.w.symbols+int(size) > maxUserSymbols {
		return ErrLimit
	}
	im.syms = make([]byte, size)
	return read(im.syms)
}

// readDynsym reads .dynsym, which is mapped. Its end is where linkers put .dynstr.
func (im *userImage) readDynsym() error {
	n := min(im.dyn.Memsz/16, 128)
	dyn := make([]elf.Dyn64, n)
	if err := im.load(dyn, UserAddr(im.dyn.Vaddr+im.bias)); err != nil {
		return err
	}
	var syms, names, size uint64
	for _, d := range dyn {
		switch elf.DynTag(d.Tag) {
		case elf.DT_SYMTAB:
			syms = d.Val
		case elf.DT_STRTAB:
			names = d.Val
		case elf.DT_STRSZ:
			size = d.Val
		}
	}
	if syms == 0 || names < syms || size > maxUserSymtab {
		return errNoImage
	}
	length := names - syms
	if syms < uint64(im.vma.Start) { // the dynamic linker has not made it an address
		syms, names = syms+im.bias, names+im.bias
	}
	im.names = io.NewSectionReader(userReader{im.w}, int64(names), int64(size))
	return im.readSyms(length, func(b []byte) error { return im.w.read(b, UserAddr(syms)) })
}

// userReader reads a process's memory at addresses below 2^63.
type userReader struct{ w *userWalk }

func (r userReader) ReadAt(b []byte, off int64) (int, error) {
	if err := r.w.read(b, UserAddr(off)); err != nil {
		return 0, err
	}
	return len(b), nil
}
