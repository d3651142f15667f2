package kdump

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/hostmap"
)

// part is one file: all of a dump, or the pages of some page frames.
type part struct {
	path       string
	in         input
	header     header
	start, end uint64 // page frames
	firstRank  uint64 // of the first descriptor
}

func openPart(ctx context.Context, path string) (*part, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, err
	}
	m, err := hostmap.New(f, false)
	if err != nil {
		return nil, err
	}
	p := &part{path: path, in: input{m: m, size: m.Size()}}
	if err := p.parse(ctx); err != nil {
		m.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return p, nil
}

func (p *part) parse(ctx context.Context) (err error) {
	var magic [len(flatSignature)]byte
	if err := p.in.read(magic[:], 0); err != nil {
		return err
	}
	if string(magic[:]) == flatSignature {
		if p.in.flat, p.in.size, err = indexFlat(ctx, p.in.m); err != nil {
			return err
		}
	}
	if p.header, err = parseHeader(&p.in); err != nil {
		return err
	}
	p.start, p.end = p.header.splitAt, p.header.splitEnd
	return nil
}

// arrange sorts parts and fails unless they are one whole dump.
func arrange(parts []*part) error {
	first := &parts[0].header
	if !first.split {
		if len(parts) > 1 {
			return fmt.Errorf("%w: %s is a whole dump", ErrSplit, parts[0].path)
		}
		return nil
	}
	for _, p := range parts[1:] {
		h := &p.header
		if !h.split || h.end != first.end || !bytes.Equal(h.identity, first.identity) {
			return fmt.Errorf("%w: %s is of another dump", ErrSplit, p.path)
		}
	}
	slices.SortFunc(parts, func(a, b *part) int {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.end, b.end)) // some may be empty
	})
	at := uint64(0)
	for _, p := range parts {
		switch {
		case p.start > at:
			return missing(at, p.start)
		case p.start < at || p.end < p.start:
			return fmt.Errorf("%w: %s has page frames %#x to %#x, which another part has", ErrSplit, p.path, p.start, p.end)
		}
		at = p.end
	}
	switch end := parts[0].header.end; {
	case at < end:
		return missing(at, end)
	case at > end:
		return fmt.Errorf("%w: page frames to %#x of %#x", ErrCorrupt, at, end)
	}
	return nil
}

func missing(from, to uint64) error {
	return fmt.Errorf("%w: the part with page frames %#x to %#x is missing; name all: FILE?part=FILE&part=FILE", ErrSplit, from, to)
}

// number finds out where the descriptors of p begin, and checks that the file is long
// enough for them and for the data of the last page.
func (p *part) number(x *pageIndex) error {
	var err error
	if p.firstRank, _, err = x.find(p.start); err != nil {
		return err
	}
	last, _, err := x.find(p.end)
	if err != nil {
		return err
	}
	n := last - p.firstRank
	if p.header.incomplete {
		return nil // what is not there is found missing when it is read
	}
	if p.header.descs > p.in.size || n > (p.in.size-p.header.descs)/descSize {
		return fmt.Errorf("%w: %d page descriptors at offset %#x of %#x", vmi.ErrTruncated, n, p.header.descs, p.in.size)
	}
	// Zero pages at the end share a descriptor with earlier ones.
	for i := uint64(0); i < min(n, 1024); i++ {
		d, err := p.desc(n - 1 - i)
		if err != nil {
			return err
		}
		if d.off > p.in.size || uint64(d.size) > p.in.size-d.off {
			return fmt.Errorf("%w: a page should be at offset %#x of %#x", vmi.ErrTruncated, d.off, p.in.size)
		}
	}
	return nil
}

// span reads one of the places that the sub-header names.
func (p *part) span(s span, limit uint64, what string) ([]byte, error) {
	if s.len == 0 {
		return nil, nil
	}
	if s.len > limit {
		return nil, fmt.Errorf("%w: %d bytes of %s", ErrCorrupt, s.len, what)
	}
	if s.off > p.in.size || s.len > p.in.size-s.off {
		return nil, fmt.Errorf("%w: %s at offset %#x of %#x", vmi.ErrTruncated, what, s.off, p.in.size)
	}
	b := make([]byte, s.len)
	if err := p.in.read(b, s.off); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return b, nil
}

// desc is struct page_desc.
type desc struct {
	off         uint64
	size, flags uint32
}

const descSize = 24

// Flags of a descriptor, and of the main header's status.
const (
	flagZlib   = 0x1
	flagLZO    = 0x2
	flagSnappy = 0x4
	flagZstd   = 0x20
)

// errLost says that an incomplete dump has the descriptor of a page and not its data.
var errLost = errors.New("page lost")

func (p *part) desc(rank uint64) (desc, error) {
	var b [descSize]byte
	if err := p.in.read(b[:], p.header.descs+rank*descSize); err != nil {
		return desc{}, fmt.Errorf("page descriptor: %w", err)
	}
	le := binary.LittleEndian
	return desc{le.Uint64(b[:]), le.Uint32(b[8:]), le.Uint32(b[12:])}, nil
}

// page reads the page with that descriptor into b, which has the size of a block.
func (p *part) page(rank uint64, b []byte, c *codecs) error {
	d, err := p.desc(rank)
	if err == nil && d.off != 0 {
		err = c.page(&p.in, d, b)
	}
	lost := err == nil && d.off == 0 || errors.Is(err, vmi.ErrTruncated)
	switch {
	case lost && p.header.incomplete:
		return errLost
	case lost && err == nil:
		return fmt.Errorf("%w: page descriptor without a page", ErrCorrupt)
	}
	return err
}
