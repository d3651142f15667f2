package kdump

import (
	"bytes"
	"cmp"
	"container/heap"
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/hostmap"
)

// A flattened file is a dump as it was written, for a pipe: a header, then pieces, each
// behind its offset and size in the dump, both 64 bits and big-endian (makedumpfile:
// IMPLEMENTATION). A piece with offset -1 is the end. Where pieces overlap the later
// one counts.
const (
	flatSignature = "makedumpfile\x00\x00\x00\x00"
	flatStart     = 4096
	flatHeader    = 16
)

// run is a piece of the dump, or some pieces that follow each other both in the dump
// and in the file.
type run struct {
	start, end uint64 // in the dump
	first      uint64 // in the dump, of the first piece; start is later if another run covers it
	pos        uint64 // in the file, of the header of the first piece
}

// runLength bounds the headers that are read to find a byte. Longer runs would make the
// index smaller, and reads slower.
const runLength = 16

// Bounds of what a file may make us do. maxRuns is 16 MiB of index, enough for more
// than 50 GB of what QEMU writes, in pieces of up to 16 KiB.
const (
	maxPieces = 1 << 26
	maxRuns   = 1 << 19
)

// flat finds bytes of the dump in the flattened file.
type flat struct{ runs []run } // disjoint, by start

// indexFlat reads the headers of all pieces and returns the index and the size of the
// dump.
func indexFlat(ctx context.Context, m *hostmap.Map) (*flat, uint64, error) {
	s := flatScan{ctx: ctx, data: m.View(0, int(m.Size()))}
	var err error
	if gone := vmi.Guard(func() { err = s.scan() }); gone != nil {
		err = fmt.Errorf("%w: %w", vmi.ErrTruncated, gone)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("flattened file: %w", err)
	}
	runs := resolve(s.runs)
	if len(runs) == 0 {
		return nil, 0, fmt.Errorf("flattened file: %w: it has no content", ErrCorrupt)
	}
	return &flat{runs}, runs[len(runs)-1].end, nil
}

type flatScan struct {
	ctx  context.Context
	data []byte
	runs []run
}

func (s *flatScan) scan() error {
	be := binary.BigEndian
	if len(s.data) < flatStart {
		return vmi.ErrTruncated
	}
	typ, version := be.Uint64(s.data[len(flatSignature):]), be.Uint64(s.data[len(flatSignature)+8:])
	if !bytes.HasPrefix(s.data, []byte(flatSignature)) || typ != 1 || version != 1 {
		return fmt.Errorf("%w: type %d, version %d", vmi.ErrFormat, typ, version)
	}
	in := 0 // pieces in the last run
	pos := uint64(flatStart)
	for n := range maxPieces {
		if n%(1<<20) == 0 && s.ctx.Err() != nil {
			return context.Cause(s.ctx)
		}
		if uint64(len(s.data))-pos < flatHeader {
			return fmt.Errorf("%w: it ends without a mark of its end", vmi.ErrTruncated)
		}
		off, size := int64(be.Uint64(s.data[pos:])), int64(be.Uint64(s.data[pos+8:]))
		if off == -1 {
			return nil
		}
		left := uint64(len(s.data)) - pos - flatHeader
		switch {
		case off < 0 || size <= 0 || uint64(off) > 1<<62:
			return fmt.Errorf("%w: piece of %d bytes for offset %#x", ErrCorrupt, size, off)
		case uint64(size) > left:
			return fmt.Errorf("%w: piece of %d bytes, %d are left", vmi.ErrTruncated, size, left)
		}
		start, end := uint64(off), uint64(off)+uint64(size)
		if k := len(s.runs); k > 0 && s.runs[k-1].end == start && in < runLength {
			s.runs[k-1].end = end
			in++
		} else if k == maxRuns {
			return fmt.Errorf("%w: too many scattered pieces; rearrange it first: makedumpfile -R NEW < FILE", ErrCorrupt)
		} else {
			s.runs = append(s.runs, run{start, end, start, pos})
			in = 1
		}
		pos += flatHeader + uint64(size)
	}
	return fmt.Errorf("%w: more than %d pieces", ErrCorrupt, maxPieces)
}

// resolve sorts runs and cuts those that are covered by later ones, which may split them.
func resolve(runs []run) []run {
	slices.SortFunc(runs, func(a, b run) int { return cmp.Compare(a.start, b.start) })
	overlap := false
	for i := 1; i < len(runs); i++ {
		overlap = overlap || runs[i].start < runs[i-1].end
	}
	if !overlap {
		return runs
	}
	var out []run
	var active byPos // runs that start at or before at
	at, next := uint64(0), 0
	for next < len(runs) || len(active) > 0 {
		if len(active) == 0 {
			at = max(at, runs[next].start)
		}
		for next < len(runs) && runs[next].start <= at {
			heap.Push(&active, runs[next])
			next++
		}
		top := active[0]
		if top.end <= at {
			heap.Pop(&active)
			continue
		}
		end := top.end
		if next < len(runs) {
			end = min(end, runs[next].start)
		}
		if k := len(out) - 1; k >= 0 && out[k].pos == top.pos && out[k].end == at {
			out[k].end = end
		} else {
			out = append(out, run{at, end, top.first, top.pos})
		}
		at = end
	}
	return out
}

// byPos is a heap with the last run of the file on top.
type byPos []run

func (h byPos) Len() int           { return len(h) }
func (h byPos) Less(i, j int) bool { return h[i].pos > h[j].pos }
func (h byPos) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *byPos) Push(x any)        { *h = append(*h, x.(run)) }
func (h *byPos) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// read fills p from offset off of the dump. Bytes that no piece has are an error: a
// rearranged file would have zeros there.
func (f *flat) read(m *hostmap.Map, p []byte, off uint64) error {
	i, _ := slices.BinarySearchFunc(f.runs, off, func(r run, off uint64) int {
		return cmp.Compare(r.end, off+1) // first run that ends after off
	})
	for ; len(p) > 0; i++ {
		if i == len(f.runs) || f.runs[i].start > off {
			return fmt.Errorf("%w: the flattened file lacks offset %#x", vmi.ErrTruncated, off)
		}
		n := int(min(uint64(len(p)), f.runs[i].end-off))
		if err := f.runs[i].read(m, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+uint64(n)
	}
	return nil
}

// read fills p from offset off of the dump, all of which r has.
func (r *run) read(m *hostmap.Map, p []byte, off uint64) error {
	at, pos := r.first, r.pos
	for range runLength {
		var h [8]byte
		if err := m.Read(h[:], pos+8); err != nil {
			return err
		}
		size := binary.BigEndian.Uint64(h[:])
		if skip := off - at; skip < size {
			n := int(min(uint64(len(p)), size-skip))
			if err := m.Read(p[:n], pos+flatHeader+skip); err != nil {
				return err
			}
			if p, off = p[n:], off+uint64(n); len(p) == 0 {
				return nil
			}
		}
		at, pos = at+size, pos+flatHeader+size
	}
	return fmt.Errorf("%w: the flattened file has changed", ErrCorrupt)
}
