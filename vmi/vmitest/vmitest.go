// Package vmitest is guest memory for tests: pages in a map, written and read
// without a virtual machine, with faults on demand.
//
//	m := vmitest.New(vmi.Range{Start: 0, End: 64 << 20})
//	m.SetUint64(0x1000, 0xffffffff81000000)
//	m.Fault(vmi.Range{Start: 0x2000, End: 0x3000}, nil)
//
// It has all abilities that a live guest has; [Mem.ReadOnly] hides them as a dump
// does.
package vmitest

import (
	"cmp"
	"context"
	"encoding/binary"
	"io/fs"
	"slices"
	"sync"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// Mem is sparse guest memory. It is a [vmi.Image], [vmi.Writer], [vmi.Sparse],
// [vmi.CPUs], [vmi.Pauser], [vmi.Stater], [vmi.NMI] and [vmi.Notes]; its methods
// are safe for concurrent use.
type Mem struct {
	ranges []vmi.Range

	mu     sync.RWMutex
	pages  map[vmi.Phys]*[vmi.PageSize]byte
	faults []fault
	after  func(m *Mem, addr vmi.Phys, n int) // OnWrite
	cpus   []vmi.CPU
	info   []byte
	closed bool

	depth, pauses, nmis int
	foreign             bool // paused by somebody else
	pauseErr            error
	reads, writes       int
}

type fault struct {
	r   vmi.Range
	err error
}

// New returns memory in the given ranges, which reads as zeros. Ranges that
// overlap or are reversed panic: they are a mistake in the test.
func New(ranges ...vmi.Range) *Mem {
	ranges = slices.Clone(ranges)
	slices.SortFunc(ranges, func(a, b vmi.Range) int { return cmp.Compare(a.Start, b.Start) })
	for i, r := range ranges {
		if r.Len() == 0 || i > 0 && ranges[i-1].End > r.Start {
			panic("vmitest: bad ranges")
		}
	}
	return &Mem{ranges: ranges, pages: make(map[vmi.Phys]*[vmi.PageSize]byte)}
}

// Fault makes every later access to r fail with a *vmi.FaultError for err, which
// may be nil.
func (m *Mem) Fault(r vmi.Range, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults = append(m.faults, fault{r, err})
}

// ClearFaults takes all faults back.
func (m *Mem) ClearFaults() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults = nil
}

// OnWrite calls f after every WritePhys, to play the guest's part. f may use m.
func (m *Mem) OnWrite(f func(m *Mem, addr vmi.Phys, n int)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.after = f
}

// span calls f for the pieces of the n bytes at addr that lie in one page each,
// and returns how many bytes that were, with the fault that ended it.
func (m *Mem) span(addr vmi.Phys, n int, f func(off int, page vmi.Phys, in, k int)) (int, error) {
	if m.closed {
		return 0, &vmi.FaultError{Addr: addr, Len: n, Err: fs.ErrClosed}
	}
	done := 0
	for done < n {
		page := addr &^ (vmi.PageSize - 1)
		in := int(addr - page)
		k := min(n-done, vmi.PageSize-in)
		good, cause := m.check(addr, k) // ranges and faults need not be page-aligned
		if good > 0 {
			f(done, page, in, good)
		}
		done, addr = done+good, addr+vmi.Phys(good)
		if good < k {
			return done, &vmi.FaultError{Addr: addr, Len: n - done, Err: cause}
		}
	}
	return done, nil
}

// check returns how many of the n bytes at a can be touched, and what is wrong with
// the next.
func (m *Mem) check(a vmi.Phys, n int) (good int, cause error) {
	i, found := slices.BinarySearchFunc(m.ranges, a, func(r vmi.Range, a vmi.Phys) int { return cmp.Compare(r.Start, a) })
	if !found {
		i--
	}
	if i < 0 || !m.ranges[i].Contains(a, 0) {
		return 0, nil
	}
	good = int(min(uint64(n), uint64(m.ranges[i].End-a)))
	for _, f := range m.faults {
		hit := vmi.Range{Start: max(a, f.r.Start), End: min(a+vmi.Phys(good), f.r.End)}
		if hit.Len() > 0 {
			good, cause = int(hit.Start-a), f.err
		}
	}
	return good, cause
}

// ReadPhys implements [vmi.Memory].
func (m *Mem) ReadPhys(p []byte, addr vmi.Phys) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	return m.span(addr, len(p), func(off int, page vmi.Phys, in, k int) {
		if b := m.pages[page]; b != nil {
			copy(p[off:off+k], b[in:])
		} else {
			clear(p[off : off+k])
		}
	})
}

// WritePhys implements [vmi.Writer].
func (m *Mem) WritePhys(p []byte, addr vmi.Phys) (int, error) {
	n, after, err := m.write(p, addr)
	if after != nil {
		after(m, addr, n)
	}
	return n, err
}

func (m *Mem) write(p []byte, addr vmi.Phys) (int, func(*Mem, vmi.Phys, int), error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	n, err := m.span(addr, len(p), func(off int, page vmi.Phys, in, k int) {
		b := m.pages[page]
		if b == nil {
			b = new([vmi.PageSize]byte)
			m.pages[page] = b
		}
		copy(b[in:], p[off:off+k])
	})
	return n, m.after, err
}

// Ranges implements [vmi.Memory].
func (m *Mem) Ranges() []vmi.Range { return m.ranges }

// Data implements [vmi.Sparse]: the pages ever written.
func (m *Mem) Data() []vmi.Range {
	m.mu.RLock()
	defer m.mu.RUnlock()
	pages := make([]vmi.Phys, 0, len(m.pages))
	for a := range m.pages {
		pages = append(pages, a)
	}
	slices.Sort(pages)
	var out []vmi.Range
	for _, a := range pages {
		for _, r := range m.ranges { // a page may be RAM in part
			part := vmi.Range{Start: max(a, r.Start), End: min(a+vmi.PageSize, r.End)}
			switch {
			case part.Len() == 0:
			case len(out) > 0 && out[len(out)-1].End == part.Start:
				out[len(out)-1].End = part.End
			default:
				out = append(out, part)
			}
		}
	}
	return out
}

// Close implements [io.Closer]; later accesses fault with fs.ErrClosed.
func (m *Mem) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

// Set stores p at addr and panics if that is not RAM: for setting up a test.
func (m *Mem) Set(addr vmi.Phys, p []byte) {
	if _, _, err := m.write(p, addr); err != nil {
		panic(err)
	}
}

// SetUint64 stores v at addr, little-endian.
func (m *Mem) SetUint64(addr vmi.Phys, v uint64) {
	m.Set(addr, binary.LittleEndian.AppendUint64(nil, v))
}

// Uint64 returns the 8 bytes at addr, and panics if they are not RAM.
func (m *Mem) Uint64(addr vmi.Phys) uint64 {
	var p [8]byte
	if _, err := m.ReadPhys(p[:], addr); err != nil {
		panic(err)
	}
	return binary.LittleEndian.Uint64(p[:])
}

// Counts returns how often ReadPhys and WritePhys (Set included) were called.
func (m *Mem) Counts() (reads, writes int) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.reads, m.writes
}

// SetCPUs sets what CPUs returns.
func (m *Mem) SetCPUs(cpus ...vmi.CPU) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cpus = cpus
}

// CPUs implements [vmi.CPUs].
func (m *Mem) CPUs(ctx context.Context) ([]vmi.CPU, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Clone(m.cpus), ctx.Err()
}

// SetVMCoreInfo sets what VMCoreInfo returns.
func (m *Mem) SetVMCoreInfo(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.info = []byte(text)
}

// VMCoreInfo implements [vmi.Notes].
func (m *Mem) VMCoreInfo() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.info
}

// ReadOnly returns m without any ability but that of a [vmi.Image].
func (m *Mem) ReadOnly() vmi.Image {
	return struct{ vmi.Image }{m}
}
