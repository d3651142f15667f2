package qemu

import (
	"errors"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/hostmap"
	"github.com/ovmigrate/ovmigrate/vmi/internal/segment"
)

// source is where a part of guest RAM lives in the host.
type source interface {
	read(p []byte, off uint64) error
	write(p []byte, off uint64) error
	view(off uint64, n int) []byte
	data(wanted []segment.Extent) []segment.Extent // the parts of wanted that are in use
	Close() error
	String() string
}

// sharedFile is RAM in a file that QEMU maps with MAP_SHARED, and we too.
type sharedFile struct {
	*hostmap.Map
	name string
}

func (f *sharedFile) read(p []byte, off uint64) error  { return f.Read(p, off) }
func (f *sharedFile) write(p []byte, off uint64) error { return f.Write(p, off) }
func (f *sharedFile) view(off uint64, n int) []byte    { return f.View(off, n) }
func (f *sharedFile) String() string                   { return "shared file " + f.name }

func (f *sharedFile) data(wanted []segment.Extent) []segment.Extent {
	if d, err := f.Data(); err == nil {
		return d
	}
	return wanted
}

// memory is the part of a guest that is the same with and without QMP.
type memory struct {
	t       *segment.Table
	sources []source
}

func (m *memory) readPhys(p []byte, addr vmi.Phys) (int, error) {
	return m.t.Do(p, addr, func(p []byte, src int, off uint64) error { return m.sources[src].read(p, off) })
}

func (m *memory) writePhys(p []byte, addr vmi.Phys) (int, error) {
	return m.t.Do(p, addr, func(p []byte, src int, off uint64) error { return m.sources[src].write(p, off) })
}

// Ranges implements [vmi.Memory]: RAM blocks, hot-plugged ones included, as they
// were when the guest was opened. The BIOS and VGA window below 1 MiB counts as
// the RAM that lies behind it.
func (m *memory) Ranges() []vmi.Range { return m.t.Ranges() }

// View implements [vmi.Viewer]. It returns nil where RAM is not a shared file.
func (m *memory) View(addr vmi.Phys, n int) []byte {
	if src, off, ok := m.t.Find(addr, n); ok {
		return m.sources[src].view(off, n)
	}
	return nil
}

// Data implements [vmi.Sparse], by SEEK_DATA on shared files and by
// /proc/PID/pagemap on anonymous RAM.
func (m *memory) Data() []vmi.Range {
	return m.t.Select(func(src int) []segment.Extent {
		var wanted []segment.Extent
		for _, s := range m.t.Segments() {
			if s.Src == src {
				wanted = append(wanted, segment.Extent{Off: s.Off, Len: s.Len})
			}
		}
		sortExtents(wanted)
		return m.sources[src].data(wanted)
	})
}

// Backing says in words where the RAM is, for humans.
func (m *memory) Backing() []string {
	var out []string
	for _, s := range m.sources {
		out = append(out, s.String())
	}
	return out
}

func (m *memory) close() error {
	var errs []error
	for _, s := range m.sources {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}
