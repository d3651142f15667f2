// Package hostmap maps a whole file into the address space and copies bytes from
// and to the mapping, safely: after Close and after somebody has truncated the
// file, calls fail and the program goes on.
package hostmap

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/segment"
)

// Map is a mapped file. Its methods are safe for concurrent use.
type Map struct {
	mu       sync.RWMutex           // held for reading while the mapping is touched
	data     []byte                 // nil after Close
	views    atomic.Pointer[[]byte] // data, for View, which need not wait for Close
	file     *os.File
	writable bool

	seekMu sync.Mutex // the file offset is one for all
}

// New maps all of f, with MAP_SHARED, and takes f over, also when it fails.
// writable needs f opened for writing.
func New(f *os.File, writable bool) (*Map, error) {
	m, err := newMap(f, writable)
	if err != nil {
		f.Close()
		return nil, err
	}
	return m, nil
}

func newMap(f *os.File, writable bool) (*Map, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() == 0 || st.Size() > math.MaxInt {
		return nil, fmt.Errorf("%s: cannot map %d bytes", f.Name(), st.Size())
	}
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, &fs.PathError{Op: "mmap", Path: f.Name(), Err: err}
	}
	unix.Madvise(data, unix.MADV_DONTDUMP) // a crash of ours must not write out the guest
	m := &Map{data: data, file: f, writable: writable}
	m.views.Store(&data)
	return m, nil
}

// Size returns the number of bytes mapped.
func (m *Map) Size() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return uint64(len(m.data))
}

// Read fills p from offset off. Aligned reads of 8 bytes are single loads.
func (m *Map) Read(p []byte, off uint64) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	from, err := m.slice(off, len(p))
	if err != nil {
		return err
	}
	return m.explain(vmi.Guard(func() { load(p, from) }))
}

// Write stores p at offset off. Aligned writes of 1, 2, 4 and 8 bytes are single
// stores.
func (m *Map) Write(p []byte, off uint64) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if !m.writable {
		return fs.ErrPermission
	}
	to, err := m.slice(off, len(p))
	if err != nil {
		return err
	}
	return m.explain(vmi.Guard(func() { store(to, p) }))
}

// View returns the mapped bytes themselves, nil if they are not all there.
func (m *Map) View(off uint64, n int) []byte {
	all := m.views.Load()
	if all == nil || n < 0 || off > uint64(len(*all)) || uint64(n) > uint64(len(*all))-off {
		return nil
	}
	return (*all)[off : off+uint64(n) : off+uint64(n)]
}

func (m *Map) slice(off uint64, n int) ([]byte, error) {
	if m.data == nil {
		return nil, fs.ErrClosed
	}
	if n < 0 || off > uint64(len(m.data)) || uint64(n) > uint64(len(m.data))-off {
		return nil, vmi.ErrTruncated
	}
	return m.data[off : off+uint64(n)], nil
}

// explain says why the mapping faulted.
func (m *Map) explain(err error) error {
	if err == nil {
		return nil
	}
	if st, serr := m.file.Stat(); serr == nil && st.Size() < int64(len(m.data)) {
		return fmt.Errorf("%w: the file shrank to %d bytes", vmi.ErrTruncated, st.Size())
	}
	return fmt.Errorf("%w: %w", unix.EIO, err)
}

// Data returns the extents of the file that are not holes, by SEEK_DATA.
func (m *Map) Data() ([]segment.Extent, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.data == nil {
		return nil, fs.ErrClosed
	}
	m.seekMu.Lock()
	defer m.seekMu.Unlock()
	fd, size := int(m.file.Fd()), int64(len(m.data))
	var out []segment.Extent
	for pos := int64(0); pos < size; {
		start, err := unix.Seek(fd, pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return nil, err
		}
		end, err := unix.Seek(fd, start, unix.SEEK_HOLE)
		if errors.Is(err, unix.ENXIO) { // became a hole just now
			pos = start + 1
			continue
		}
		if err != nil {
			return nil, err
		}
		end = min(end, size)
		if end > start {
			out = append(out, segment.Extent{Off: uint64(start), Len: uint64(end - start)})
		}
		pos = max(end, start+1)
	}
	return out, nil
}

// Close unmaps. Views must not be touched afterwards.
func (m *Map) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.data == nil {
		return nil
	}
	m.views.Store(nil)
	err := unix.Munmap(m.data)
	m.data = nil
	return errors.Join(err, m.file.Close())
}
