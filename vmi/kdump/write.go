package kdump

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/newfile"
)

// WriteOptions says what Write writes. The zero value, and nil, write memory only,
// compressed with zlib.
type WriteOptions struct {
	vmi.DumpOptions
	Compression Compression
}

// Write writes all memory of mem to a kdump-compressed file at path, of header version
// 6 and with blocks of 4 KiB. Pages of zeros take a descriptor each and no more. Pages
// that mem leaves out (vmi.ErrExcluded), or has in part only, are left out; any other
// error of mem ends Write. Memory is read by many goroutines at a time; what a running
// guest changes meanwhile is in the dump or not, page by page.
//
// The file appears at path, in place of one that is there, when it is complete and on
// disk. It is readable by its owner only. What is needed besides, in memory, does not
// depend on the size of the guest.
func Write(ctx context.Context, path string, mem vmi.Memory, o *WriteOptions) error {
	if o == nil {
		o = &WriteOptions{}
	}
	pages, err := pageRanges(mem.Ranges())
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	l, err := newLayout(mem, pages, o)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return newfile.Write(path, func(f *os.File) error {
		w := newWriter(f, l, o)
		if err := w.copyMemory(ctx, mem, pages); err != nil {
			return err
		}
		return w.finish(pages)
	})
}

// pageRange is a range of page frames that are at least in part memory.
type pageRange struct{ start, end uint64 }

func pageRanges(ranges []vmi.Range) ([]pageRange, error) {
	var out []pageRange
	for _, r := range ranges {
		if r.Len() == 0 {
			continue
		}
		p := pageRange{uint64(r.Start) / vmi.PageSize, (uint64(r.End)-1)/vmi.PageSize + 1}
		if p.end > maxPFN {
			return nil, fmt.Errorf("memory at %v: kdump addresses end at %#x here", r, uint64(maxPFN*vmi.PageSize))
		}
		switch k := len(out) - 1; {
		case k >= 0 && p.start < out[k].start:
			return nil, fmt.Errorf("memory at %v: ranges are not in order", r)
		case k >= 0 && p.start <= out[k].end:
			out[k].end = max(out[k].end, p.end)
		default:
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no guest memory")
	}
	return out, nil
}

// writer writes the sections of a file side by side.
type writer struct {
	f        *os.File
	l        *layout
	descs    *bufio.Writer
	data     *bufio.Writer
	dataOff  uint64
	dumped   bitmapWriter
	count    uint64 // pages written
	progress func(done, total uint64)
	codec    Compression
}

func newWriter(f *os.File, l *layout, o *WriteOptions) *writer {
	at := func(off uint64) *bufio.Writer { return bufio.NewWriterSize(io.NewOffsetWriter(f, int64(off)), 256<<10) }
	return &writer{
		f: f, l: l, descs: at(l.descs), data: at(l.data), dataOff: l.data,
		dumped:   bitmapWriter{f: f, off: l.dumped},
		progress: o.Progress, codec: o.Compression,
	}
}

// copyMemory writes pages, their descriptors and the second bitmap.
func (w *writer) copyMemory(ctx context.Context, mem vmi.Memory, pages []pageRange) error {
	if _, err := w.append(make([]byte, vmi.PageSize)); err != nil { // where all zero pages are
		return err
	}
	src := newSource(mem)
	g, ctx := errgroup.WithContext(ctx)
	workers := runtime.GOMAXPROCS(0)
	free := make(chan *batch, 2*workers)
	for range cap(free) {
		free <- newBatch()
	}
	work, ordered := make(chan *batch), make(chan *batch, cap(free))
	g.Go(func() error {
		defer close(work)
		defer close(ordered)
		return eachBatch(ctx, pages, free, work, ordered)
	})
	for range workers {
		g.Go(func() error {
			c, err := newCompressor(w.codec)
			if err != nil {
				return err
			}
			for b := range work {
				if err := b.run(ctx, src, c); err != nil {
					return err
				}
				close(b.done)
			}
			return nil
		})
	}
	g.Go(func() error {
		done := uint64(0)
		for b := range ordered {
			select {
			case <-b.done:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if err := w.writeBatch(b); err != nil {
				return err
			}
			done += uint64(len(b.pages)) * vmi.PageSize
			if w.progress != nil {
				w.progress(done, w.l.pages*vmi.PageSize)
			}
			free <- b
		}
		return nil
	})
	return g.Wait()
}

// eachBatch cuts pages into batches and hands them on in order.
func eachBatch(ctx context.Context, pages []pageRange, free <-chan *batch, work, ordered chan<- *batch) error {
	for _, r := range pages {
		for r.start < r.end {
			n := min(batchPages, r.end-r.start)
			var b *batch
			select {
			case b = <-free:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			b.reset(r.start, int(n))
			ordered <- b // there is room for all
			select {
			case work <- b:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			r.start += n
		}
	}
	return nil
}

// append adds data and returns its offset.
func (w *writer) append(b []byte) (off uint64, err error) {
	off = w.dataOff
	w.dataOff += uint64(len(b))
	_, err = w.data.Write(b)
	return off, err
}

func (w *writer) writeBatch(b *batch) error {
	base, err := w.append(b.out)
	if err != nil {
		return err
	}
	for i, d := range b.pages {
		switch d.kind {
		case pageMissing:
			continue
		case pageZero:
			d.desc = desc{off: w.l.data, size: vmi.PageSize}
		case pageData:
			d.off += base
		}
		if err := w.dumped.set(b.first+uint64(i), 1); err != nil {
			return err
		}
		var raw [descSize]byte
		le := binary.LittleEndian
		le.PutUint64(raw[:], d.off)
		le.PutUint32(raw[8:], d.size)
		le.PutUint32(raw[12:], d.flags)
		if _, err := w.descs.Write(raw[:]); err != nil {
			return err
		}
		w.count++
	}
	return nil
}

// finish writes what is in front of the pages.
func (w *writer) finish(pages []pageRange) error {
	ram := bitmapWriter{f: w.f, off: w.l.ram}
	for _, r := range pages {
		if err := ram.set(r.start, r.end-r.start); err != nil {
			return err
		}
	}
	if _, err := w.f.WriteAt(w.l.headers(w.count), 0); err != nil {
		return err
	}
	return errors.Join(ram.flush(), w.dumped.flush(), w.descs.Flush(), w.data.Flush())
}
