package debugfile

import (
	"debug/dwarf"
	"errors"
	"fmt"

	"github.com/ovmigrate/ovmigrate/kernel/cfi"
)

// Frames returns the call frame information (.debug_frame) of a kernel that runs slide
// bytes from where it was linked. Errors: ErrNothing, ErrFormat, cfi.ErrFormat.
func (f *File) Frames(slide uint64) (*cfi.Table, error) {
	if f.elf == nil || f.section(".debug_frame") == nil {
		return nil, fmt.Errorf("%s: call frame information: %w", f.Path, ErrNothing)
	}
	b, err := f.content(f.section(".debug_frame"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	t, err := cfi.ParseDebugFrame(b, slide)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	return t, nil
}

// Lines says which line of the source code is at an address.
type Lines struct{ d *dwarf.Data }

// Lines opens the line tables (.debug_line). Errors: ErrNothing, ErrFormat.
func (f *File) Lines() (*Lines, error) {
	if f.elf == nil || f.section(".debug_info") == nil || f.section(".debug_line") == nil {
		return nil, fmt.Errorf("%s: line numbers: %w", f.Path, ErrNothing)
	}
	d, err := f.dwarf()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	return &Lines{d}, nil
}

// Find returns file and line of the code at addr, as it was linked. Of code that was
// inlined it is the line in the inlined function. Errors: ErrNothing for code that has
// none, such as some assembly; ErrFormat.
func (l *Lines) Find(addr uint64) (file string, line int, err error) {
	unit, err := l.d.Reader().SeekPC(addr)
	if errors.Is(err, dwarf.ErrUnknownPC) {
		return "", 0, fmt.Errorf("line at %#x: %w", addr, ErrNothing)
	}
	if err != nil {
		return "", 0, fmt.Errorf("line at %#x: %w: %w", addr, ErrFormat, err)
	}
	r, err := l.d.LineReader(unit)
	if err != nil || r == nil {
		return "", 0, fmt.Errorf("line at %#x: %w", addr, errors.Join(ErrNothing, err))
	}
	var e dwarf.LineEntry
	if err := r.SeekPC(addr, &e); err != nil || e.File == nil {
		return "", 0, fmt.Errorf("line at %#x: %w", addr, errors.Join(ErrNothing, err))
	}
	return e.File.Name, e.Line, nil
}
