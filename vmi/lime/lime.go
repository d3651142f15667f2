// Package lime reads and writes memory dumps in the format of LiME, the Linux Memory
// Extractor, which avml writes too unless it compresses: ranges of memory, each with
// a header that says where in the machine it was.
//
//	u32 magic "EMiL"   u32 version 1   u64 first address   u64 last address   u64 0
//
// The file is mapped and nothing is copied at opening. What lies in no range is a
// fault: avml leaves out stretches of 16 MiB that are all zeros, and nothing in the
// file tells them from what was no RAM.
//
// LiME's other formats have no headers. "padded" is memory as it lies in the machine
// and is opened as raw RAM: PATH?layout=identity. "raw" has lost the addresses; only
// a layout that one knows from elsewhere helps (see package ramfile).
package lime

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/hostmap"
	"github.com/ovmigrate/ovmigrate/vmi/internal/segment"
)

const (
	magic      = "EMiL" // 0x4c694d45, little-endian
	version    = 1
	headerSize = 32

	// maxRanges bounds the ranges of a file: they are kept in memory.
	maxRanges = 1 << 20
)

func init() {
	vmi.Register(vmi.Source{
		Name:  "LiME",
		Sniff: func(head []byte, _ int64) bool { return bytes.HasPrefix(head, []byte(magic)) },
		Open:  Open,
	})
}

// File is a LiME dump: a [vmi.Image] and [vmi.Viewer]. Its methods are safe for
// concurrent use.
type File struct {
	m *hostmap.Map
	t *segment.Table
}

// Open opens the dump at path and returns a *File. A dump cannot be written to:
// Options.Writable is an error. Errors: as os.Open; vmi.ErrFormat for a header that
// makes no sense; vmi.ErrTruncated.
func Open(_ context.Context, path string, o *vmi.Options) (vmi.Image, error) {
	if o != nil && o.Writable {
		return nil, fmt.Errorf("open %s: a dump cannot be written to", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	m, err := hostmap.New(f, false)
	if err != nil {
		return nil, err
	}
	file := &File{m: m}
	if file.t, err = parse(m); err != nil {
		m.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return file, nil
}

func parse(m *hostmap.Map) (*segment.Table, error) {
	size := m.Size()
	var segs []segment.Segment
	for off := uint64(0); off < size; {
		if size-off < headerSize {
			return nil, fmt.Errorf("%w: %d bytes at offset %#x are no header", vmi.ErrTruncated, size-off, off)
		}
		var h [headerSize]byte
		if err := m.Read(h[:], off); err != nil {
			return nil, err
		}
		r, err := parseHeader(h[:])
		if err != nil {
			return nil, fmt.Errorf("offset %#x: %w", off, err)
		}
		off += headerSize
		if r.Len() > size-off {
			return nil, fmt.Errorf("%w: memory %v should be at offset %#x of the file, which has %#x",
				vmi.ErrTruncated, r, off, size)
		}
		if len(segs) == maxRanges {
			return nil, fmt.Errorf("more than %d ranges", maxRanges)
		}
		segs = append(segs, segment.Segment{Addr: r.Start, Len: r.Len(), Off: off})
		off += r.Len()
	}
	return segment.New(segs)
}

// parseHeader returns the range that the header of a range names.
func parseHeader(h []byte) (r vmi.Range, err error) {
	le := binary.LittleEndian
	first, last := le.Uint64(h[8:]), le.Uint64(h[16:])
	switch {
	case string(h[:4]) != magic:
		return r, fmt.Errorf("%w: no LiME header", vmi.ErrFormat)
	case le.Uint32(h[4:]) != version:
		return r, fmt.Errorf("%w: LiME header of version %d", vmi.ErrFormat, le.Uint32(h[4:]))
	case last < first || last == ^uint64(0):
		return r, fmt.Errorf("%w: LiME header of memory from %#x to %#x", vmi.ErrFormat, first, last)
	}
	return vmi.Range{Start: vmi.Phys(first), End: vmi.Phys(last) + 1}, nil
}

// Ranges implements [vmi.Memory]: what the dump holds.
func (f *File) Ranges() []vmi.Range { return f.t.Ranges() }

// ReadPhys implements [vmi.Memory].
func (f *File) ReadPhys(p []byte, addr vmi.Phys) (int, error) {
	return f.t.Do(p, addr, func(p []byte, _ int, off uint64) error { return f.m.Read(p, off) })
}

// View implements [vmi.Viewer].
func (f *File) View(addr vmi.Phys, n int) []byte {
	if _, off, ok := f.t.Find(addr, n); ok {
		return f.m.View(off, n)
	}
	return nil
}

// Close unmaps the file.
func (f *File) Close() error { return f.m.Close() }
