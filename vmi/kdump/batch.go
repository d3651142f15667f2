package kdump

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sort"

	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// Compression says how Write stores pages.
type Compression uint8

// Compressions that Write knows.
const (
	Zlib Compression = iota // every tool reads it
	Zstd                    // for makedumpfile 1.7.1 and crash 8.0.1, or newer, if they were built with it
	None
)

// batchPages is how many pages are read and compressed in one go.
const batchPages = 32

// batch is a piece of memory on its way into the file.
type batch struct {
	first uint64 // page frame
	pages []batchPage
	in    []byte
	out   []byte // the pages that have data, compressed
	done  chan struct{}
}

type batchPage struct {
	kind pageKind
	desc // off is in batch.out
}

type pageKind uint8

const (
	pageMissing pageKind = iota
	pageZero
	pageData
)

func newBatch() *batch {
	return &batch{in: make([]byte, batchPages*vmi.PageSize), pages: make([]batchPage, 0, batchPages)}
}

func (b *batch) reset(first uint64, n int) {
	b.first, b.pages, b.out, b.done = first, b.pages[:n], b.out[:0], make(chan struct{})
	clear(b.pages)
}

var zeroPage [vmi.PageSize]byte

// run reads and compresses the pages.
func (b *batch) run(ctx context.Context, src *source, c *compressor) error {
	if err := src.read(ctx, b); err != nil {
		return err
	}
	for i := range b.pages {
		p := &b.pages[i]
		if p.kind != pageData {
			continue
		}
		page := b.in[i*vmi.PageSize : (i+1)*vmi.PageSize]
		if bytes.Equal(page, zeroPage[:]) {
			p.kind = pageZero
			continue
		}
		start := len(b.out)
		p.off, p.flags = uint64(start), c.flags
		var err error
		if b.out, err = c.compress(b.out, page); err != nil {
			return err
		}
		if c.flags == 0 || len(b.out)-start >= vmi.PageSize {
			b.out, p.flags = append(b.out[:start], page...), 0
		}
		p.size = uint32(len(b.out) - start)
	}
	return nil
}

// source reads memory to be dumped.
type source struct {
	mem  vmi.Memory
	data []vmi.Range // where it is not known to be zero; nil if that is not known
}

func newSource(mem vmi.Memory) *source {
	s := &source{mem: mem}
	if sparse, ok := mem.(vmi.Sparse); ok {
		s.data = sparse.Data()
	}
	return s
}

// read fills b.in and says for each page whether it is there.
func (s *source) read(ctx context.Context, b *batch) error {
	n := len(b.pages)
	base := vmi.Phys(b.first * vmi.PageSize)
	if s.data != nil && !overlaps(s.data, vmi.Range{Start: base, End: base + vmi.Phys(n)*vmi.PageSize}) {
		return s.readZeros(b, base)
	}
	for i := 0; i < n; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		got, err := s.mem.ReadPhys(b.in[i*vmi.PageSize:n*vmi.PageSize], base+vmi.Phys(i)*vmi.PageSize)
		whole := got / vmi.PageSize
		for j := range whole {
			b.pages[i+j].kind = pageData
		}
		if err == nil {
			return nil
		}
		if !absent(err) {
			return fmt.Errorf("read memory: %w", err)
		}
		i += whole + 1 // the page that failed stays pageMissing
	}
	return nil
}

// readZeros handles memory that was never touched: reading it could allocate it.
func (s *source) readZeros(b *batch, base vmi.Phys) error {
	ranges := s.mem.Ranges()
	for i := range b.pages {
		a := base + vmi.Phys(i)*vmi.PageSize
		k := sort.Search(len(ranges), func(k int) bool { return ranges[k].End > a })
		if k < len(ranges) && ranges[k].Contains(a, vmi.PageSize) {
			b.pages[i].kind = pageZero
		}
	}
	return nil
}

// absent says whether an error is about memory that is not there, as opposed to one
// that could not be read this time.
func absent(err error) bool {
	var fault *vmi.FaultError
	return errors.As(err, &fault) && (fault.Err == nil || errors.Is(err, vmi.ErrExcluded))
}

func overlaps(all []vmi.Range, r vmi.Range) bool {
	i := sort.Search(len(all), func(i int) bool { return all[i].End > r.Start })
	return i < len(all) && all[i].Start < r.End
}

// compressor is the state of one goroutine.
type compressor struct {
	flags    uint32 // of the pages it makes; 0: it makes none
	compress func(to, page []byte) ([]byte, error)
}

func newCompressor(c Compression) (*compressor, error) {
	switch c {
	case Zlib:
		var buf bytes.Buffer
		w, err := zlib.NewWriterLevel(&buf, zlib.BestSpeed)
		return &compressor{flagZlib, func(to, page []byte) ([]byte, error) {
			buf.Reset()
			w.Reset(&buf)
			_, err := w.Write(page)
			if err := errors.Join(err, w.Close()); err != nil {
				return nil, err
			}
			return append(to, buf.Bytes()...), nil
		}}, err
	case Zstd:
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false))
		return &compressor{flagZstd, func(to, page []byte) ([]byte, error) { return e.EncodeAll(page, to), nil }}, err
	default:
		return &compressor{0, func(to, _ []byte) ([]byte, error) { return to, nil }}, nil
	}
}
