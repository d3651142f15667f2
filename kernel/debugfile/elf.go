package debugfile

import (
	"bytes"
	"compress/zlib"
	"debug/dwarf"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
)

// maxSection bounds a section after decompression: DWARF offsets have 32 bits.
const maxSection = 1<<32 - 1

// openELF reads the headers of the kernel in data.
func (f *File) openELF(data []byte) (err error) {
	if f.elf, err = elf.NewFile(bytes.NewReader(data)); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	f.data = data
	if f.elf.Class != elf.ELFCLASS64 || f.elf.Data != elf.ELFDATA2LSB {
		return fmt.Errorf("%w: %v %v", ErrFormat, f.elf.Class, f.elf.Data)
	}
	f.readNotes()
	f.readBanner()
	return nil
}

// readNotes looks for the build ID in sections and, without those, in segments.
func (f *File) readNotes() {
	for _, s := range f.elf.Sections {
		if s.Type == elf.SHT_NOTE && f.BuildID == nil {
			if b, ok := f.bytes(s.Offset, s.FileSize); ok {
				f.BuildID = BuildID(b)
			}
		}
	}
	for _, p := range f.elf.Progs {
		if p.Type == elf.PT_NOTE && f.BuildID == nil {
			if b, ok := f.bytes(p.Off, p.Filesz); ok {
				f.BuildID = BuildID(b)
			}
		}
	}
}

// BuildID returns the GNU build ID among the ELF notes b, nil if there is none.
func BuildID(b []byte) []byte {
	const ntGNUBuildID = 3
	le := binary.LittleEndian
	for len(b) >= 12 {
		name, desc, typ := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:])), le.Uint32(b[8:])
		at := 12 + (name+3)&^3
		end := at + desc
		if end > uint64(len(b)) {
			return nil
		}
		if typ == ntGNUBuildID && desc > 0 && name == 4 && string(b[12:16]) == "GNU\x00" {
			return bytes.Clone(b[at:end])
		}
		b = b[min(uint64(len(b)), at+(desc+3)&^3):]
	}
	return nil
}

// readBanner looks for linux_banner, which begins the second string of that form in
// no kernel: the first is it.
func (f *File) readBanner() {
	s := f.elf.Section(".rodata")
	if s == nil || s.Type == elf.SHT_NOBITS {
		return
	}
	b, ok := f.bytes(s.Offset, s.FileSize)
	if !ok {
		return
	}
	for {
		i := bytes.Index(b, []byte("Linux version "))
		if i < 0 {
			return
		}
		b = b[i:]
		// There is a format string, too: "Linux version %s (%s) …".
		if text, _, ok := bytes.Cut(b[:min(len(b), 1024)], []byte{0}); ok && !bytes.Contains(text, []byte("%s")) && bytes.Contains(text, []byte("(")) {
			f.Banner = strings.TrimSpace(string(text))
			return
		}
		b = b[1:]
	}
}

// bytes returns a part of the file, not copied.
func (f *File) bytes(off, n uint64) ([]byte, bool) {
	if off > uint64(len(f.data)) || n > uint64(len(f.data))-off {
		return nil, false
	}
	return f.data[off : off+n : off+n], true
}

// section returns the section called name, nil if it has no content.
func (f *File) section(name string) *elf.Section {
	for _, n := range []string{name, strings.Replace(name, ".debug_", ".zdebug_", 1)} {
		if s := f.elf.Section(n); s != nil && s.Type != elf.SHT_NOBITS {
			return s
		}
	}
	return nil
}

// content returns the bytes of a section: those of the file itself, or decompressed
// ones (SHF_COMPRESSED by zlib or zstd, .zdebug_… of old compilers).
func (f *File) content(s *elf.Section) ([]byte, error) {
	raw, ok := f.bytes(s.Offset, s.FileSize)
	if !ok {
		return nil, fmt.Errorf("%w: section %s lies outside", ErrFormat, s.Name)
	}
	var r io.Reader
	switch {
	case strings.HasPrefix(s.Name, ".zdebug_"):
		const head = 12 // "ZLIB" and the size
		if len(raw) < head || string(raw[:4]) != "ZLIB" {
			return nil, fmt.Errorf("%w: section %s", ErrFormat, s.Name)
		}
		z, err := zlib.NewReader(bytes.NewReader(raw[head:]))
		if err != nil {
			return nil, fmt.Errorf("%w: section %s: %w", ErrFormat, s.Name, err)
		}
		r = z
	case s.Flags&elf.SHF_COMPRESSED != 0:
		r = s.Open()
	default:
		return raw, nil
	}
	b, err := readAll(r, maxSection)
	if err != nil {
		return nil, fmt.Errorf("%w: section %s: %w", ErrFormat, s.Name, err)
	}
	return b, nil
}

// readAll is io.ReadAll of at most limit bytes.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	return b, err
}

// dwarf opens the debug information where it lies; elf.File.DWARF copies it all.
func (f *File) dwarf() (*dwarf.Data, error) {
	if f.elf.Type == elf.ET_REL {
		return f.elf.DWARF() // which relocates it
	}
	var firstErr error
	get := func(name string) []byte {
		s := f.section(name)
		if s == nil {
			return nil
		}
		b, err := f.content(s)
		if err != nil && firstErr == nil {
			firstErr = err
		}
		return b
	}
	d, err := dwarf.New(get(".debug_abbrev"), nil, nil, get(".debug_info"), get(".debug_line"), nil, get(".debug_ranges"), get(".debug_str"))
	if firstErr != nil {
		return nil, firstErr
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	for _, name := range []string{".debug_addr", ".debug_line_str", ".debug_str_offsets", ".debug_rnglists"} {
		if b := get(name); b != nil {
			if err := d.AddSection(name, b); err != nil {
				return nil, fmt.Errorf("%w: %w", ErrFormat, err)
			}
		}
	}
	return d, firstErr
}
