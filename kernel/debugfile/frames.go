package debugfile

import (
	"cmp"
	"debug/dwarf"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"

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

// Lines says which line of the source code is at an address. It is safe for concurrent
// use.
type Lines struct {
	d     *dwarf.Data
	units []lineUnit // by their begin
}

type lineUnit struct {
	begin, end uint64
	entry      *dwarf.Entry
}

// Lines opens the line tables (.debug_line). Errors: ErrNothing, ErrFormat.
func (f *File) Lines() (*Lines, error) {
	if f.elf == nil || f.section(".debug_info") == nil || f.section(".debug_line") == nil {
		return nil, fmt.Errorf("%s: line numbers: %w", f.Path, ErrNothing)
	}
	d, err := f.dwarf()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	l := &Lines{d: d}
	for r := d.Reader(); ; r.SkipChildren() {
		e, err := r.Next()
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %w", f.Path, ErrFormat, err)
		}
		if e == nil {
			break
		}
		if e.Tag != dwarf.TagCompileUnit {
			continue
		}
		ranges, err := d.Ranges(e)
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %w", f.Path, ErrFormat, err)
		}
		for _, r := range ranges {
			l.units = append(l.units, lineUnit{r[0], r[1], e})
		}
	}
	slices.SortFunc(l.units, func(a, b lineUnit) int { return cmp.Compare(a.begin, b.begin) })
	return l, nil
}

// Find returns file and line of the code at addr, as it was linked. Of code that was
// inlined it is the line in the inlined function. Errors: ErrNothing for code that has
// none, such as some assembly; ErrFormat.
func (l *Lines) Find(addr uint64) (file string, line int, err error) {
	i := sort.Search(len(l.units), func(i int) bool { return l.units[i].begin > addr })
	if i == 0 || addr >= l.units[i-1].end {
		return "", 0, fmt.Errorf("line at %#x: %w", addr, ErrNothing)
	}
	r, err := l.d.LineReader(l.units[i-1].entry)
	if err != nil || r == nil {
		return "", 0, fmt.Errorf("line at %#x: %w", addr, errors.Join(ErrNothing, err))
	}
	// The lines of a unit are sequences, which need not be in order.
	var e, before dwarf.LineEntry
	for in := false; ; {
		switch err := r.Next(&e); {
		case err != nil && !errors.Is(err, io.EOF):
			return "", 0, fmt.Errorf("line at %#x: %w: %w", addr, ErrFormat, err)
		case err != nil:
			return "", 0, fmt.Errorf("line at %#x: %w", addr, ErrNothing)
		case in && before.Address <= addr && addr < e.Address && before.File != nil:
			return before.File.Name, before.Line, nil
		}
		before, in = e, !e.EndSequence
	}
}
