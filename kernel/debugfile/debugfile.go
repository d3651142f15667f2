// Package debugfile reads what a user may have of a kernel beside its memory: a
// vmlinux with debug information, symbols or BTF, a System.map, the vmlinuz that was
// booted.
//
// None is needed for a kernel that carries kallsyms and BTF. For one without, a file
// stands in, if it is of the very same build: kernel.Open compares build IDs.
package debugfile

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"sync"

	"github.com/ovmigrate/ovmigrate/kernel/symbols"
	"github.com/ovmigrate/ovmigrate/kernel/types"
)

// ErrFormat is wrapped by errors about files that are of no known kind or damaged.
var ErrFormat = errors.New("not a vmlinux, vmlinuz or System.map")

// ErrNothing is wrapped by errors about files that have no types, or no symbols.
var ErrNothing = errors.New("the file has none")

// Kind is what sort of file a File is.
type Kind string

// The kinds of files.
const (
	Vmlinux   Kind = "vmlinux"
	Vmlinuz   Kind = "vmlinuz" // its decompressed payload
	SystemMap Kind = "System.map"
)

// File is an opened file. It is safe for concurrent use.
type File struct {
	Path string
	Kind Kind

	// BuildID is the GNU build ID, nil for a System.map.
	BuildID []byte
	// Banner is "Linux version …" as the kernel has it, "" if the file does not have it.
	Banner string

	elf     *elf.File // nil for a System.map
	data    []byte    // the ELF file
	unmap   func() error
	sysmap  *symbols.Table
	syms    func() (*symbols.Table, error)
	types   func() (types.Source, error)
	closing sync.Once
}

// Open reads the headers of a file, whose content says what it is. Types and symbols
// are read when they are asked for. The file must not change until it is closed.
// Errors: ErrFormat, *fs.PathError.
func Open(path string) (*File, error) {
	data, unmap, err := mapFile(path)
	if err != nil {
		return nil, err
	}
	f := &File{Path: path, unmap: unmap}
	if err := f.open(data); err != nil {
		unmap()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	f.syms = sync.OnceValues(f.readSymbols)
	f.types = sync.OnceValues(f.readTypes)
	return f, nil
}

func (f *File) open(data []byte) (err error) {
	switch {
	case bytes.HasPrefix(data, []byte(elf.ELFMAG)):
		f.Kind = Vmlinux
		return f.openELF(data)
	case isBzImage(data):
		f.Kind = Vmlinuz
		if data, err = payload(data); err != nil {
			return err
		}
		return f.openELF(data)
	}
	f.Kind = SystemMap
	if f.sysmap, err = symbols.ParseSystemMap(bytes.NewReader(data), 0); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return nil
}

// Close ends the use of the file: of its types too.
func (f *File) Close() (err error) {
	f.closing.Do(func() { err = f.unmap() })
	return err
}

// Types returns the kernel's types: from DWARF, which takes a second or so the first
// time, else from BTF. The error wraps ErrNothing if the file has neither.
func (f *File) Types() (types.Source, error) { return f.types() }

// Symbols returns the kernel's symbols at the addresses that it was linked at. The
// error wraps ErrNothing if the file has none.
func (f *File) Symbols() (*symbols.Table, error) { return f.syms() }

func (f *File) readSymbols() (*symbols.Table, error) {
	if f.sysmap != nil {
		return f.sysmap, nil
	}
	syms, err := f.elf.Symbols()
	if errors.Is(err, elf.ErrNoSymbols) || err == nil && len(syms) == 0 {
		return nil, fmt.Errorf("%s: symbols: %w", f.Path, ErrNothing)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", f.Path, ErrFormat, err)
	}
	all := make([]symbols.Symbol, 0, len(syms))
	for _, s := range syms {
		typ := elf.ST_TYPE(s.Info)
		if s.Name == "" || s.Section == elf.SHN_UNDEF || typ == elf.STT_FILE || typ == elf.STT_SECTION {
			continue
		}
		all = append(all, symbols.Symbol{Name: s.Name, Addr: s.Value, Type: f.letter(s)})
	}
	return symbols.New(all), nil
}

// letter returns nm's letter for a symbol.
func (f *File) letter(s elf.Symbol) byte {
	c := byte('A')
	if i := int(s.Section); i < len(f.elf.Sections) {
		sec := f.elf.Sections[i]
		switch {
		case sec.Flags&elf.SHF_EXECINSTR != 0:
			c = 'T'
		case sec.Type == elf.SHT_NOBITS:
			c = 'B'
		case sec.Flags&elf.SHF_WRITE != 0:
			c = 'D'
		default:
			c = 'R'
		}
	}
	switch elf.ST_BIND(s.Info) {
	case elf.STB_LOCAL:
		c |= 0x20
	case elf.STB_WEAK:
		c = 'W'
	}
	return c
}

func (f *File) readTypes() (types.Source, error) {
	if f.elf == nil {
		return nil, fmt.Errorf("%s: types: %w", f.Path, ErrNothing)
	}
	if f.section(".debug_info") != nil {
		return f.readDWARF()
	}
	s := f.section(".BTF")
	if s == nil {
		return nil, fmt.Errorf("%s: types: %w", f.Path, ErrNothing)
	}
	blob, err := f.content(s)
	if err != nil {
		return nil, err
	}
	b, err := types.ParseBTF(blob)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	return b, nil
}

func (f *File) readDWARF() (types.Source, error) {
	d, err := f.dwarf()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	var perCPU uint64
	if syms, err := f.Symbols(); err == nil {
		perCPU, _ = syms.Lookup("__per_cpu_start")
	}
	t, err := types.ReadDWARF(d, perCPU)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	return t, nil
}
