package avml

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/hostmap"
)

const (
	magic       = "AVML"
	version     = 2
	headerSize  = 32
	trailerSize = 8

	chunkHeaderSize = 4
	sumSize         = 4
	maxChunk        = 64 << 10 // decompressed
	// maxStored is what snappy makes of the least compressible chunk, with its sum.
	maxStored = sumSize + 32 + maxChunk + maxChunk/6

	maxPhys = 1 << 56
)

// Types of chunks. Those from 0x80 on that are not known are to be skipped.
const (
	typeCompressed = 0x00
	typeStored     = 0x01
	typeSkippable  = 0x80
	typeIdentifier = 0xff
)

const identifier = "sNaPpY"

// chunk is a part of memory that is compressed as one.
type chunk struct {
	addr       vmi.Phys
	off        uint64 // of its sum, in the file
	n          uint32 // bytes of memory
	stored     uint32 // bytes in the file, with the sum
	compressed bool
}

func (c *chunk) end() vmi.Phys { return c.addr + vmi.Phys(c.n) }

// index says which chunk holds an address: chunks are sorted and disjoint.
type index struct {
	chunks []chunk
	ranges []vmi.Range
}

// Bounds on what is no AVML dump. AVML's chunks are full but for the last of a range.
const (
	maxRanges   = 1 << 20
	minMean     = 8 << 10 // memory of a chunk, on average over a range
	maxEmpty    = 16      // chunks without memory in a range
	maxSqueezed = 32      // times that a chunk is smaller than the memory in it
)

// scanner goes through the headers of a file.
type scanner struct {
	m      *hostmap.Map
	off    uint64
	buf    [headerSize]byte
	chunks []chunk
}

func readIndex(ctx context.Context, m *hostmap.Map) (index, error) {
	s := scanner{m: m}
	for n := 0; s.off < m.Size(); n++ {
		if n == maxRanges {
			return index{}, fmt.Errorf("%w: more than %d ranges", vmi.ErrFormat, n)
		}
		at := s.off
		if err := s.record(ctx); err != nil {
			return index{}, fmt.Errorf("range at offset %#x: %w", at, err)
		}
	}
	return newIndex(s.chunks)
}

func newIndex(chunks []chunk) (x index, err error) {
	x.chunks = chunks
	slices.SortFunc(x.chunks, func(a, b chunk) int { return cmp.Compare(a.addr, b.addr) })
	for i := range x.chunks {
		c := &x.chunks[i]
		n := len(x.ranges)
		switch {
		case n > 0 && c.addr < x.ranges[n-1].End:
			return x, fmt.Errorf("%w: memory at %#x is there twice", vmi.ErrFormat, uint64(c.addr))
		case n > 0 && c.addr == x.ranges[n-1].End:
			x.ranges[n-1].End = c.end()
		default:
			x.ranges = append(x.ranges, vmi.Range{Start: c.addr, End: c.end()})
		}
	}
	if len(x.ranges) == 0 {
		return x, fmt.Errorf("%w: no guest memory", vmi.ErrFormat)
	}
	return x, nil
}

// next returns the next n bytes, which are valid until the next call.
func (s *scanner) next(n int) ([]byte, error) {
	b := s.buf[:n]
	if err := s.m.Read(b, s.off); err != nil {
		return nil, err
	}
	s.off += uint64(n)
	return b, nil
}

// record reads a range of memory with its header and trailer.
func (s *scanner) record(ctx context.Context) error {
	h, err := s.next(headerSize)
	if err != nil {
		return err
	}
	r, err := parseHeader(h)
	if err != nil {
		return err
	}
	begin, full, empty := s.off, 0, 0
	for at := r.Start; at < r.End; {
		n, err := s.chunk(at, uint64(r.End-at))
		if err != nil {
			return err
		}
		at += vmi.Phys(n)
		if n > 0 {
			full++
		} else {
			empty++
		}
		if empty > maxEmpty || uint64(full) > 4+uint64(at-r.Start)/minMean {
			return fmt.Errorf("%w: %d chunks with %d bytes of memory, %d without", vmi.ErrFormat, full, at-r.Start, empty)
		}
		if full%1024 == 0 {
			if err := context.Cause(ctx); err != nil {
				return err
			}
		}
	}
	end := s.off
	t, err := s.next(trailerSize)
	if err != nil {
		return err
	}
	if n := binary.LittleEndian.Uint64(t); n != end-begin {
		return fmt.Errorf("%w: %d bytes of chunks, the file says %d", vmi.ErrFormat, end-begin, n)
	}
	return nil
}

// parseHeader returns the range that the header of a range names.
func parseHeader(h []byte) (r vmi.Range, err error) {
	le := binary.LittleEndian
	first, last := le.Uint64(h[8:]), le.Uint64(h[16:])
	switch {
	case string(h[:4]) != magic:
		return r, fmt.Errorf("%w: no AVML header", vmi.ErrFormat)
	case le.Uint32(h[4:]) != version:
		return r, fmt.Errorf("%w: AVML header of version %d", vmi.ErrFormat, le.Uint32(h[4:]))
	case last < first || last >= maxPhys:
		return r, fmt.Errorf("%w: AVML header of memory from %#x to %#x", vmi.ErrFormat, first, last)
	}
	return vmi.Range{Start: vmi.Phys(first), End: vmi.Phys(last) + 1}, nil
}

// chunk reads the head of a chunk, which holds at most limit bytes of memory, those
// at addr. It returns how many.
func (s *scanner) chunk(addr vmi.Phys, limit uint64) (n uint32, err error) {
	at := s.off
	h, err := s.next(chunkHeaderSize)
	if err != nil {
		return 0, err
	}
	typ, size := h[0], binary.LittleEndian.Uint32(h)>>8
	end := s.off + uint64(size)
	if end > s.m.Size() {
		return 0, fmt.Errorf("%w: chunk of %d bytes at offset %#x", vmi.ErrTruncated, size, at)
	}
	bad := func(what string) (uint32, error) {
		return 0, fmt.Errorf("%w: chunk at offset %#x: %s", vmi.ErrFormat, at, what)
	}
	switch typ {
	case typeIdentifier:
		if size != uint32(len(identifier)) {
			return bad("wrong identifier")
		}
		if b, err := s.next(len(identifier)); err != nil || string(b) != identifier {
			return bad("wrong identifier")
		}
		return 0, nil
	case typeCompressed, typeStored:
	default:
		if typ < typeSkippable {
			return bad(fmt.Sprintf("of type %#x", typ))
		}
		s.off = end
		return 0, nil
	}
	if size <= sumSize || size > maxStored {
		return bad(fmt.Sprintf("of %d bytes", size))
	}
	n = size - sumSize
	c := chunk{addr: addr, off: s.off, stored: size, compressed: typ == typeCompressed}
	if c.compressed {
		b, err := s.next(int(min(size, sumSize+binary.MaxVarintLen32)))
		if err != nil {
			return 0, err
		}
		v, k := binary.Uvarint(b[sumSize:])
		if k <= 0 || v > maxChunk || v > maxSqueezed*uint64(size) {
			return bad("a length that cannot be")
		}
		n = uint32(v)
	}
	if n > maxChunk || uint64(n) > limit {
		return bad("more memory than there is room for")
	}
	s.off = end
	if c.n = n; n > 0 {
		s.chunks = append(s.chunks, c)
	}
	return n, nil
}
