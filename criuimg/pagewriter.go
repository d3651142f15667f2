package criuimg

import (
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"sync/atomic"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
)

// PageFlags are the flags of a pagemap entry (CRIU include/pagemap.h).
type PageFlags uint32

const (
	PageParent  PageFlags = 1 << iota // the pages are in the parent set; no data here
	PageLazy                          // may be left to a lazy-pages daemon
	PagePresent                       // the data is in the pages file
)

// MaxRunPages is the largest number of pages in one pagemap entry. CRIU before
// 4.2 counts in 32 bits and handles the count as an int; longer runs are split.
const MaxRunPages = 1 << 30

const (
	smallWrite = 32 << 10  // shorter writes are gathered
	pageBuffer = 256 << 10 // in a buffer of this size
)

// PageWriter writes a pagemap and its pages file together. Addresses must
// ascend. Adjacent pages become one entry.
//
// All methods but WriteAt need one caller at a time; they lock, so a goroutine
// may reserve while others write.
type PageWriter struct {
	mu     sync.Mutex
	enc    *Encoder
	pages  io.WriterAt
	vaddr  uint64 // current run, not yet encoded
	count  uint64
	flags  PageFlags
	entry  pagemap.PagemapEntry // the message of every run; its fields point to
	fields struct {
		vaddr, pages  uint64
		compat, flags uint32
	}
	end     uint64 // first address allowed next
	off     int64  // end of the reserved part of the pages file
	written atomic.Int64
	buf     []byte // tail of the file, not yet written
	bufOff  int64
	started bool
	closed  bool
	close   func(error) error
	err     error
}

// NewPageWriter returns a writer of a pagemap of kind k (Pagemap, PagemapShmem)
// whose pages go to the pages image with number pagesID. Close closes neither.
func NewPageWriter(index io.Writer, pages io.WriterAt, k *Kind, pagesID uint32) *PageWriter {
	w := &PageWriter{enc: NewEncoder(index, k), pages: pages}
	// CRIU up to 4.1 reads field 2 and knows no other; 4.2 prefers field 5.
	w.entry.Vaddr, w.entry.CompatNrPages = &w.fields.vaddr, &w.fields.compat
	w.entry.NrPages, w.entry.Flags = &w.fields.pages, &w.fields.flags
	if k != Pagemap && k != PagemapShmem {
		w.err = fmt.Errorf("criuimg: %s is no pagemap", k)
		return w
	}
	w.err = w.enc.Encode(&pagemap.PagemapHead{PagesId: &pagesID})
	return w
}

// WritePages appends the pages from vaddr on. len(p) must be a multiple of
// PageSize. Long slices go to the file as they are, without a copy; p is not
// kept.
func (w *PageWriter) WritePages(vaddr uint64, p []byte) error {
	if len(p)%PageSize != 0 {
		return fmt.Errorf("criuimg: %d bytes are not whole pages", len(p))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	off, err := w.add(vaddr, uint64(len(p)/PageSize), PagePresent)
	if err != nil || len(p) == 0 {
		return err
	}
	if len(p) < smallWrite {
		return w.gather(p, off)
	}
	if err := w.flush(); err != nil {
		return err
	}
	return w.keep(w.writeAt(p, off))
}

// Reserve adds n pages from vaddr on and returns where in the pages file they
// belong. Every byte must then be written once with WriteAt, by any goroutine,
// in any order, before Close.
func (w *PageWriter) Reserve(vaddr, n uint64) (off int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.add(vaddr, n, PagePresent)
}

// Add adds n pages with the given flags. Pages with PagePresent have a place in
// the pages file as with Reserve; for others off is -1.
func (w *PageWriter) Add(vaddr, n uint64, flags PageFlags) (off int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.add(vaddr, n, flags)
}

// Hole says that n pages from vaddr on are those of the parent set.
func (w *PageWriter) Hole(vaddr, n uint64) error {
	_, err := w.Add(vaddr, n, PageParent)
	return err
}

// WriteAt writes p at a byte offset inside space got from Reserve. It may be
// called by several goroutines at once.
func (w *PageWriter) WriteAt(p []byte, off int64) (int, error) {
	if err := w.writeAt(p, off); err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		return 0, w.keep(err)
	}
	return len(p), nil
}

// Size returns the bytes of page data added so far.
func (w *PageWriter) Size() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.off
}

func (w *PageWriter) add(vaddr, n uint64, flags PageFlags) (int64, error) {
	switch {
	case w.err != nil:
		return 0, w.err
	case w.closed:
		return 0, errors.New("criuimg: PageWriter is closed")
	case vaddr%PageSize != 0:
		return 0, fmt.Errorf("criuimg: page address %#x is not aligned", vaddr)
	case vaddr < w.end && w.started:
		return 0, fmt.Errorf("criuimg: page address %#x comes after %#x", vaddr, w.end)
	case n > (math.MaxUint64-vaddr)/PageSize || n > uint64(math.MaxInt64-w.off)/PageSize:
		return 0, fmt.Errorf("criuimg: %d pages from %#x do not fit", n, vaddr)
	}
	off := int64(-1)
	if flags&PagePresent != 0 {
		off = w.off
		w.off += int64(n) * PageSize
	}
	if n == 0 {
		return off, nil
	}
	w.started = true
	if w.count > 0 && w.flags == flags && vaddr == w.end {
		w.count += n
	} else {
		if err := w.emit(1); err != nil {
			return 0, err
		}
		w.vaddr, w.count, w.flags = vaddr, n, flags
	}
	w.end = vaddr + n*PageSize
	if w.count > MaxRunPages {
		return off, w.emit(MaxRunPages)
	}
	return off, nil
}

// emit encodes the current run, except for a rest shorter than least pages.
func (w *PageWriter) emit(least uint64) error {
	for w.count >= least && w.count > 0 {
		n := min(w.count, MaxRunPages)
		w.fields.vaddr, w.fields.pages, w.fields.compat, w.fields.flags = w.vaddr, n, uint32(n), uint32(w.flags)
		if err := w.keep(w.enc.Encode(&w.entry)); err != nil {
			return err
		}
		w.vaddr += n * PageSize
		w.count -= n
	}
	return nil
}

func (w *PageWriter) gather(p []byte, off int64) error {
	if w.bufOff+int64(len(w.buf)) != off || len(w.buf)+len(p) > pageBuffer {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if w.buf == nil {
		w.buf = make([]byte, 0, pageBuffer)
	}
	if len(w.buf) == 0 {
		w.bufOff = off
	}
	w.buf = append(w.buf, p...)
	return nil
}

func (w *PageWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	err := w.writeAt(w.buf, w.bufOff)
	w.buf = w.buf[:0]
	return w.keep(err)
}

func (w *PageWriter) writeAt(p []byte, off int64) error {
	n, err := w.pages.WriteAt(p, off)
	w.written.Add(int64(n))
	return err
}

// keep makes an error sticky.
func (w *PageWriter) keep(err error) error {
	if err != nil && w.err == nil {
		w.err = err
	}
	return err
}

// Close writes the rest of the pagemap. It fails if reserved pages were not
// written: they would come back as zeros.
func (w *PageWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return w.err
	}
	w.closed = true
	if w.err == nil && w.flush() == nil && w.emit(1) == nil {
		if got := w.written.Load(); got != w.off {
			w.err = &FormatError{Offset: w.off, Err: fmt.Errorf("%d of %d reserved bytes were written", got, w.off)}
		}
	}
	if w.err == nil {
		w.err = w.enc.Close()
	}
	w.buf = nil
	if w.close != nil {
		w.err = w.close(w.err)
	}
	return w.err
}
