package kdump

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"
	"sort"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// The rank of a page, how many pages before it the dump holds, is the number of its
// descriptor. It is counted at opening for every group of page frames; within a group
// the bitmap in the file is read.
const (
	groupPFNs   = 1024
	groupBytes  = groupPFNs / 8
	chunkGroups = 1024 // groups whose ranks are kept together, relative to a base
	chunkPFNs   = chunkGroups * groupPFNs
	chunkBytes  = chunkPFNs / 8

	// maxChunks bounds memory to 32 MiB. A chunk is 4 GiB of guest memory, for 4 KiB;
	// one without any page takes nothing.
	maxChunks = 1 << 13

	// maxRanges bounds what Ranges returns. Firmware leaves a few dozen.
	maxRanges = 1 << 16
)

// pageIndex finds the rank of a page.
type pageIndex struct {
	in     *input
	bitmap span
	end    uint64 // page frames are below
	chunks []chunk
	total  uint64 // pages in the dump
}

type chunk struct {
	base   uint64 // rank of its first page
	groups *[chunkGroups]uint32
}

// indexPages reads both bitmaps once.
func indexPages(ctx context.Context, p *part) (*pageIndex, []vmi.Range, error) {
	x := &pageIndex{in: &p.in, bitmap: p.header.dumped, end: p.header.end}
	ram := ranges{shift: p.header.shift}
	used := 0
	err := eachChunk(ctx, p, func(n uint64, ramBits, dumpedBits []byte) error {
		if err := ram.add(n*chunkPFNs, ramBits); err != nil {
			return err
		}
		c := chunk{base: x.total}
		if pages := x.count(&c, dumpedBits); pages > 0 {
			if used++; used > maxChunks {
				return fmt.Errorf("%w: more than %d GiB of memory", ErrCorrupt, maxChunks*chunkPFNs>>(30-p.header.shift))
			}
			x.total += pages
		}
		x.chunks = append(x.chunks, c)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	if len(ram.all) == 0 {
		return nil, nil, fmt.Errorf("%w: it has no memory", ErrCorrupt)
	}
	return x, ram.all, nil
}

// count fills in the groups of c.
func (x *pageIndex) count(c *chunk, b []byte) (pages uint64) {
	for g := 0; g*groupBytes < len(b); g++ {
		n := popcount(b[g*groupBytes : min((g+1)*groupBytes, len(b))])
		if n > 0 && c.groups == nil {
			c.groups = new([chunkGroups]uint32)
		}
		if c.groups != nil {
			c.groups[g] = uint32(pages)
		}
		pages += n
	}
	return pages
}

// eachChunk reads the bitmaps of p chunk by chunk. Bits beyond the last page frame are
// cleared. f must not keep what it is given.
func eachChunk(ctx context.Context, p *part, f func(n uint64, ram, dumped []byte) error) error {
	h := &p.header
	buf := make([]byte, 2*min(chunkBytes, h.ram.len))
	for off := uint64(0); off < h.ram.len; off += chunkBytes {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n := min(chunkBytes, h.ram.len-off)
		ram, dumped := buf[:n], buf[n:2*n]
		for _, x := range []struct {
			to []byte
			at uint64
		}{{ram, h.ram.off}, {dumped, h.dumped.off}} {
			if err := p.in.read(x.to, x.at+off); err != nil {
				return fmt.Errorf("bitmap: %w", err)
			}
			if off+n == h.ram.len && h.end%8 != 0 {
				x.to[n-1] &= 1<<(h.end%8) - 1
			}
		}
		if err := f(off/chunkBytes, ram, dumped); err != nil {
			return err
		}
	}
	return nil
}

// find returns the rank of a page, and whether the dump holds it.
func (x *pageIndex) find(pfn uint64) (rank uint64, ok bool, err error) {
	if pfn >= x.end {
		return x.total, false, nil
	}
	c := &x.chunks[pfn/chunkPFNs]
	if c.groups == nil {
		return c.base, false, nil
	}
	var b [groupBytes]byte
	first := pfn / groupPFNs * groupBytes
	n := min(groupBytes, x.bitmap.len-first)
	if err := x.in.read(b[:n], x.bitmap.off+first); err != nil {
		return 0, false, fmt.Errorf("bitmap: %w", err)
	}
	bit := pfn % groupPFNs
	ok = b[bit/8]>>(bit%8)&1 != 0
	b[bit/8] &= 1<<(bit%8) - 1
	return c.base + uint64(c.groups[pfn%chunkPFNs/groupPFNs]) + popcount(b[:bit/8+1]), ok, nil
}

func popcount(b []byte) (n uint64) {
	for ; len(b) >= 8; b = b[8:] {
		n += uint64(bits.OnesCount64(binary.LittleEndian.Uint64(b)))
	}
	for _, x := range b {
		n += uint64(bits.OnesCount8(x))
	}
	return n
}

// ranges makes ranges of a bitmap.
type ranges struct {
	shift uint
	all   []vmi.Range
}

// add adds the pages whose bits are set in b, the first of which is page frame pfn.
func (r *ranges) add(pfn uint64, b []byte) error {
	for i := 0; i < len(b); {
		var w uint64
		n := min(8, len(b)-i)
		if n == 8 {
			w = binary.LittleEndian.Uint64(b[i:])
		} else {
			for j := range n {
				w |= uint64(b[i+j]) << (8 * j)
			}
		}
		for at := uint64(0); w != 0; {
			zeros := uint64(bits.TrailingZeros64(w))
			w >>= zeros
			ones := uint64(bits.TrailingZeros64(^w))
			at += zeros
			if err := r.addRun(pfn+at, ones); err != nil {
				return err
			}
			at += ones
			w >>= ones // all of it if ones is 64
		}
		i, pfn = i+n, pfn+uint64(8*n)
	}
	return nil
}

func (r *ranges) addRun(pfn, n uint64) error {
	start, end := vmi.Phys(pfn<<r.shift), vmi.Phys((pfn+n)<<r.shift)
	if k := len(r.all); k > 0 && r.all[k-1].End == start {
		r.all[k-1].End = end
		return nil
	}
	if len(r.all) == maxRanges {
		return fmt.Errorf("%w: memory in more than %d ranges", ErrCorrupt, maxRanges)
	}
	r.all = append(r.all, vmi.Range{Start: start, End: end})
	return nil
}

// containsPage says whether a is in one of the ranges.
func containsPage(all []vmi.Range, a vmi.Phys) bool {
	i := sort.Search(len(all), func(i int) bool { return all[i].End > a })
	return i < len(all) && all[i].Start <= a
}

// sameBitmaps fails unless all parts have the bitmaps of the first, by which the pages
// of all of them are found.
func sameBitmaps(ctx context.Context, parts []*part) error {
	first := make([]byte, 2*chunkBytes)
	for _, p := range parts[1:] {
		err := eachChunk(ctx, p, func(n uint64, ram, dumped []byte) error {
			h, off := &parts[0].header, n*chunkBytes
			a, b := first[:len(ram)], first[len(ram):2*len(ram)]
			if err := parts[0].in.read(a, h.ram.off+off); err != nil {
				return err
			}
			if err := parts[0].in.read(b, h.dumped.off+off); err != nil {
				return err
			}
			if k := len(a) - 1; off+uint64(len(a)) == h.ram.len && h.end%8 != 0 {
				a[k] &= 1<<(h.end%8) - 1
				b[k] &= 1<<(h.end%8) - 1
			}
			if !bytes.Equal(a, ram) || !bytes.Equal(b, dumped) {
				return fmt.Errorf("%w: %s is of another dump: its bitmaps differ", ErrSplit, p.path)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
