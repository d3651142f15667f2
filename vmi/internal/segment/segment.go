// Package segment keeps the table that says which guest-physical range lies where
// in the host: the one thing that RAM files, QEMU processes and dumps all need.
package segment

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// maxPhys bounds guest-physical addresses: x86-64 has at most 52 bits. It keeps
// every sum in this package from overflowing.
const maxPhys = 1 << 56

// Segment says that Len bytes at Addr are found at Off of source number Src.
type Segment struct {
	Addr vmi.Phys
	Len  uint64
	Src  int
	Off  uint64
}

func (s *Segment) end() vmi.Phys { return s.Addr + vmi.Phys(s.Len) }

// Extent is a range of a source.
type Extent struct{ Off, Len uint64 }

// Table finds segments by address. It is immutable.
type Table struct {
	segs   []Segment
	ranges []vmi.Range
}

// New makes a table of segs, which it takes over. Segments may come in any order;
// empty ones are dropped. Overlapping ones, and ones beyond any address that a
// guest can have, are an error.
func New(segs []Segment) (*Table, error) {
	segs = slices.DeleteFunc(segs, func(s Segment) bool { return s.Len == 0 })
	if len(segs) == 0 {
		return nil, errors.New("no guest memory")
	}
	for _, s := range segs {
		if s.Addr > maxPhys || s.Len > maxPhys || s.Off > 1<<63-maxPhys {
			return nil, fmt.Errorf("guest memory of %#x bytes at %#x: no such address", s.Len, uint64(s.Addr))
		}
	}
	slices.SortFunc(segs, func(a, b Segment) int { return cmp.Compare(a.Addr, b.Addr) })
	t := &Table{segs: segs[:1]}
	for _, s := range segs[1:] {
		last := &t.segs[len(t.segs)-1]
		switch {
		case s.Addr < last.end():
			return nil, fmt.Errorf("guest memory at %#x is there twice", uint64(s.Addr))
		case s.Addr == last.end() && s.Src == last.Src && s.Off == last.Off+last.Len:
			last.Len += s.Len
		default:
			t.segs = append(t.segs, s)
		}
	}
	for i := range t.segs {
		t.ranges = appendRange(t.ranges, vmi.Range{Start: t.segs[i].Addr, End: t.segs[i].end()})
	}
	return t, nil
}

func appendRange(to []vmi.Range, r vmi.Range) []vmi.Range {
	if n := len(to); n > 0 && to[n-1].End == r.Start {
		to[n-1].End = r.End
		return to
	}
	return append(to, r)
}

// Ranges returns the guest's memory. The caller must not change it.
func (t *Table) Ranges() []vmi.Range { return t.ranges }

// Segments returns the table, sorted and merged. The caller must not change it.
func (t *Table) Segments() []Segment { return t.segs }

// find returns the segment that holds a, or nil.
func (t *Table) find(a vmi.Phys) *Segment {
	lo, hi := 0, len(t.segs)
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if t.segs[m].end() <= a {
			lo = m + 1
		} else {
			hi = m
		}
	}
	if lo < len(t.segs) && t.segs[lo].Addr <= a {
		return &t.segs[lo]
	}
	return nil
}

// Find returns the source and offset of the n bytes at a, if one segment holds
// them all.
func (t *Table) Find(a vmi.Phys, n int) (src int, off uint64, ok bool) {
	s := t.find(a)
	if s == nil || n < 0 || uint64(n) > uint64(s.end()-a) {
		return 0, 0, false
	}
	return s.Src, s.Off + uint64(a-s.Addr), true
}

// Do calls f for the parts of p, which stands for the guest's bytes at a, one
// segment after the other. It returns the number of bytes done, and a
// *vmi.FaultError at the first part that is not there or that f fails on.
func (t *Table) Do(p []byte, a vmi.Phys, f func(p []byte, src int, off uint64) error) (n int, err error) {
	for n < len(p) {
		s := t.find(a)
		if s == nil {
			return n, &vmi.FaultError{Addr: a, Len: len(p) - n}
		}
		k := int(min(uint64(len(p)-n), uint64(s.end()-a)))
		if err := f(p[n:n+k], s.Src, s.Off+uint64(a-s.Addr)); err != nil {
			return n, &vmi.FaultError{Addr: a, Len: len(p) - n, Err: err}
		}
		n += k
		a += vmi.Phys(k)
	}
	return n, nil
}

// Select returns the guest-physical ranges of the extents (sorted, disjoint) of
// each source.
func (t *Table) Select(extents func(src int) []Extent) []vmi.Range {
	var out []vmi.Range
	known := make(map[int][]Extent)
	for i := range t.segs {
		s := &t.segs[i]
		all, ok := known[s.Src]
		if !ok {
			all = extents(s.Src)
			known[s.Src] = all
		}
		first, _ := slices.BinarySearchFunc(all, s.Off, func(e Extent, off uint64) int {
			return cmp.Compare(e.Off+e.Len, off+1) // first extent that ends after off
		})
		for _, e := range all[first:] {
			if e.Off >= s.Off+s.Len {
				break
			}
			from := max(e.Off, s.Off)
			to := min(e.Off+e.Len, s.Off+s.Len)
			out = appendRange(out, vmi.Range{
				Start: s.Addr + vmi.Phys(from-s.Off),
				End:   s.Addr + vmi.Phys(to-s.Off),
			})
		}
	}
	return out
}
