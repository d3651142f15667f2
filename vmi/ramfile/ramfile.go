// Package ramfile reads and writes guest RAM that is a plain file: the live file
// behind QEMU's memory-backend-file with share=on, or a raw dump.
//
// The file is mapped, so a read is a copy at memory speed and a View no copy at
// all. What the bytes of such a file mean depends on the machine. A PC has a hole
// for PCI devices below 4 GiB, and RAM that does not fit below the hole goes on at
// 4 GiB, while the file just goes on:
//
//	file       0 ........ below4g ........ size
//	guest      0 ........ below4g   4G ... 4G + size - below4g
//
// RAM of an arm64 machine is in one piece, but begins elsewhere: QEMU's "virt" has it
// from 1 GiB on, "ram?base=1G".
//
// Up to 2 GiB there is nothing to know of a PC. Above, the file of a QEMU machine cannot tell,
// and the caller must: "ram?below4g=2G". Or open the machine by its QMP socket
// (package qemu), which knows. Firecracker and Cloud Hypervisor leave a memory map
// where it stays (see [BootLayout]), so that a memory file of theirs needs nothing.
//
// Reading a hole of a sparse file on tmpfs, by any means of mmap, allocates host
// memory. Scanners ask [vmi.Sparse] first.
package ramfile

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/hostmap"
	"github.com/ovmigrate/ovmigrate/vmi/internal/segment"
)

func init() {
	vmi.Register(vmi.Source{
		Name:     "raw RAM",
		Sniff:    sniff,
		Priority: -100,
		Params:   true,
		Open:     Open,
	})
}

// minSize is less RAM than any Linux boots in; a smaller file is something else.
const minSize = 1 << 20

// others are the first bytes of files that are no raw RAM, however page-aligned.
var others = [][]byte{
	[]byte("\x7fELF"), []byte("KDUMP   "), []byte("DISKDUMP"), []byte("makedumpfile"),
	[]byte("EMiL"), []byte("AVML"), // LiME, AVML
	[]byte("QFI\xfb"), []byte("QEVM"), // qcow2, QEMU's own state
	[]byte("\x1f\x8b"), []byte("\x28\xb5\x2f\xfd"), []byte("\xfd7zXZ"), []byte("BZh"),
}

func sniff(head []byte, size int64) bool {
	for _, magic := range others {
		if bytes.HasPrefix(head, magic) {
			return false
		}
	}
	return size >= minSize && size%vmi.PageSize == 0
}

// File is guest memory in a file, opened for reading. It is a [vmi.Image],
// [vmi.Viewer] and [vmi.Sparse].
type File struct {
	m    *hostmap.Map
	t    *segment.Table
	name string
}

// WritableFile is a File opened for writing, a [vmi.Writer] in addition.
type WritableFile struct{ *File }

// Open opens "PATH", "PATH?base=PHYS", "PATH?below4g=SIZE", "PATH?layout=identity" or
// "PATH?layout=PHYS:OFFSET:LENGTH,…"; sizes take K, M, G, T. The result is a
// *WritableFile if o asks for it, else a *File. Errors: as os.Open; vmi.ErrFormat
// for a file that cannot be RAM; and where the layout is not known, an error that
// says what to add.
func Open(_ context.Context, arg string, o *vmi.Options) (vmi.Image, error) {
	path, params, err := vmi.SplitPath(arg)
	if err != nil {
		return nil, err
	}
	flags := os.O_RDONLY
	if o != nil && o.Writable {
		flags = os.O_RDWR
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() == 0 || st.Size()%vmi.PageSize != 0 {
		f.Close()
		return nil, fmt.Errorf("open %s: %w (raw RAM has whole pages)", path, vmi.ErrFormat)
	}
	layout, err := parseLayout(params, f, uint64(st.Size()))
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return New(f, layout, o)
}

// New makes guest memory of an open file, which it takes over, also when it fails.
// The result is a *WritableFile if o asks for it, which needs f open for writing.
func New(f *os.File, layout []Block, o *vmi.Options) (vmi.Image, error) {
	writable := o != nil && o.Writable
	m, err := hostmap.New(f, writable)
	if err != nil {
		return nil, err
	}
	segs := make([]segment.Segment, len(layout))
	for i, b := range layout {
		if b.Off > m.Size() || b.Len > m.Size()-b.Off {
			m.Close()
			return nil, fmt.Errorf("open %s: %w: layout asks for %#x bytes at offset %#x",
				f.Name(), vmi.ErrTruncated, b.Len, b.Off)
		}
		segs[i] = segment.Segment{Addr: b.Phys, Len: b.Len, Off: b.Off}
	}
	t, err := segment.New(segs)
	if err != nil {
		m.Close()
		return nil, fmt.Errorf("open %s: %w", f.Name(), err)
	}
	file := &File{m: m, t: t, name: f.Name()}
	if writable {
		return &WritableFile{file}, nil
	}
	return file, nil
}

// Ranges implements [vmi.Memory].
func (f *File) Ranges() []vmi.Range { return f.t.Ranges() }

// ReadPhys implements [vmi.Memory]. After somebody has truncated the file the
// missing bytes are a fault that wraps vmi.ErrTruncated; after Close all are one
// that wraps fs.ErrClosed.
func (f *File) ReadPhys(p []byte, addr vmi.Phys) (int, error) {
	return f.t.Do(p, addr, func(p []byte, _ int, off uint64) error { return f.m.Read(p, off) })
}

// View implements [vmi.Viewer]. See [vmi.Guard] about files that others truncate.
func (f *File) View(addr vmi.Phys, n int) []byte {
	if _, off, ok := f.t.Find(addr, n); ok {
		return f.m.View(off, n)
	}
	return nil
}

// Data implements [vmi.Sparse]: what the file system says is no hole.
func (f *File) Data() []vmi.Range {
	extents, err := f.m.Data()
	if err != nil {
		return append([]vmi.Range(nil), f.Ranges()...)
	}
	return f.t.Select(func(int) []segment.Extent { return extents })
}

// Close unmaps the file.
func (f *File) Close() error { return f.m.Close() }

func (f *File) String() string { return f.name }

// WritePhys implements [vmi.Writer]. Aligned writes of 1, 2, 4 and 8 bytes are
// single stores that the guest's processors see whole.
func (f *WritableFile) WritePhys(p []byte, addr vmi.Phys) (int, error) {
	return f.t.Do(p, addr, func(p []byte, _ int, off uint64) error { return f.m.Write(p, off) })
}
