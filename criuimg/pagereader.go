package criuimg

import (
	"errors"
	"fmt"
	"io"
	"math"
	"sort"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
)

// ErrNoPage says that an image set holds no data for an address: the page was
// never touched, or belongs to a file, and comes into being on restore.
var ErrNoPage = errors.New("criuimg: page not in the image")

// Run is a sequence of pages at consecutive addresses.
type Run struct {
	Vaddr uint64    // address of the first page; an offset into the object for shared memory
	Pages uint64    // how many
	Flags PageFlags // at least one of PageParent, PagePresent in sets CRIU accepts
	Off   int64     // byte offset in the pages file; -1 if the data is not there
}

// End returns the first address behind the run.
func (r Run) End() uint64 { return r.Vaddr + r.Pages*PageSize }

// PageReader gives access to memory by address. It is safe for concurrent use
// if its pages source is.
type PageReader struct {
	// Parent supplies pages that are marked PageParent; nil if there is none.
	Parent *PageReader

	id    uint32
	runs  []Run
	size  int64
	pages io.ReaderAt
	close []io.Closer
}

// NewPageReader reads a pagemap of kind k (Pagemap, PagemapShmem) completely.
// pages is the file named by PagesID; it may be set later with SetPages. Entries
// that are unaligned, unsorted or overlapping, or that use a field of a later
// CRIU (such as compressed pages), are refused with ErrPagemap or ErrVersion.
func NewPageReader(index io.Reader, k *Kind, pages io.ReaderAt) (*PageReader, error) {
	d, err := NewDecoder(index, k)
	if err != nil {
		return nil, err
	}
	if k != Pagemap && k != PagemapShmem {
		return nil, fmt.Errorf("criuimg: %s is no pagemap", k)
	}
	r := &PageReader{pages: pages}
	for n := 0; ; n++ {
		m, err := d.Next()
		if err == io.EOF && n > 0 {
			return r, nil
		}
		if err == io.EOF {
			err = &FormatError{Offset: d.Offset(), Err: fmt.Errorf("%w: no pagemap_head", ErrTruncated)}
		}
		if err != nil {
			return nil, err
		}
		if len(m.ProtoReflect().GetUnknown()) > 0 {
			return nil, &FormatError{Offset: d.Offset(), Err: fmt.Errorf("%w: pagemap entry has unknown fields", ErrVersion)}
		}
		switch m := m.(type) {
		case *pagemap.PagemapHead:
			r.id = m.GetPagesId()
		case *pagemap.PagemapEntry:
			if err := r.add(m); err != nil {
				return nil, &FormatError{Offset: d.Offset(), Err: err}
			}
		}
	}
}

// add appends an entry the way CRIU 4.2 reads entries of all versions
// (pagemap.c:init_compat_pagemap_entry).
func (r *PageReader) add(e *pagemap.PagemapEntry) error {
	run := Run{Vaddr: e.GetVaddr(), Pages: e.GetNrPages(), Flags: PageFlags(e.GetFlags()), Off: -1}
	if e.NrPages == nil {
		run.Pages = uint64(e.GetCompatNrPages())
	}
	if e.GetInParent() {
		run.Flags |= PageParent
	} else if e.Flags == nil {
		run.Flags = PagePresent
	}
	var end uint64
	if n := len(r.runs); n > 0 {
		end = r.runs[n-1].End()
	}
	switch {
	case run.Vaddr%PageSize != 0:
		return fmt.Errorf("%w: address %#x is not aligned", ErrPagemap, run.Vaddr)
	case run.Pages == 0:
		return fmt.Errorf("%w: no pages at %#x", ErrPagemap, run.Vaddr)
	case run.Vaddr < end:
		return fmt.Errorf("%w: %#x comes after %#x", ErrPagemap, run.Vaddr, end)
	case run.Pages > (math.MaxUint64-run.Vaddr)/PageSize || run.Pages > uint64(math.MaxInt64-r.size)/PageSize:
		return fmt.Errorf("%w: %d pages at %#x", ErrPagemap, run.Pages, run.Vaddr)
	}
	if run.Flags&PagePresent != 0 {
		run.Off = r.size
		r.size += int64(run.Pages) * PageSize
	}
	r.runs = append(r.runs, run)
	return nil
}

// PagesID returns the number in the name of the pages file.
func (r *PageReader) PagesID() uint32 { return r.id }

// Runs returns all entries, sorted by address. The slice must not be changed.
func (r *PageReader) Runs() []Run { return r.runs }

// Size returns the size in bytes that the pages file must have.
func (r *PageReader) Size() int64 { return r.size }

// SetPages gives the reader its pages file.
func (r *PageReader) SetPages(pages io.ReaderAt) { r.pages = pages }

// Close closes the files that the set opened for the reader, parents included.
func (r *PageReader) Close() error {
	var err error
	for _, c := range r.close {
		err = errors.Join(err, c.Close())
	}
	r.close = nil
	return err
}

// Find returns the run that contains addr.
func (r *PageReader) Find(addr uint64) (Run, bool) {
	i := sort.Search(len(r.runs), func(i int) bool { return r.runs[i].End() > addr })
	if i == len(r.runs) || r.runs[i].Vaddr > addr {
		return Run{}, false
	}
	return r.runs[i], true
}

// ReadMem reads memory at a virtual address. It stops at the first page without
// data and returns what it has with ErrNoPage; a pages file that is too short
// gives ErrTruncated.
func (r *PageReader) ReadMem(p []byte, addr uint64) (n int, err error) {
	for n < len(p) {
		if addr+uint64(n) < addr {
			return n, ErrNoPage
		}
		m, err := r.readRun(p[n:], addr+uint64(n))
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// readRun reads as much as lies in one run.
func (r *PageReader) readRun(p []byte, addr uint64) (int, error) {
	run, ok := r.Find(addr)
	if !ok {
		return 0, ErrNoPage
	}
	if left := run.End() - addr; uint64(len(p)) > left {
		p = p[:left]
	}
	if run.Off < 0 {
		if run.Flags&PageParent == 0 || r.Parent == nil {
			return 0, ErrNoPage
		}
		return r.Parent.ReadMem(p, addr)
	}
	if r.pages == nil {
		return 0, errors.New("criuimg: no pages file")
	}
	off := run.Off + int64(addr-run.Vaddr)
	n, err := r.pages.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	if err == io.EOF {
		err = &FormatError{File: Pages.FileName(uint64(r.id)), Offset: off + int64(n), Err: ErrTruncated}
	}
	return n, err
}
