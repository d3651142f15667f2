package kdump

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/anchore/go-lzo"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// codecs decompress pages of one size. They are safe for concurrent use and hold the
// state of as many decompressions as run at a time.
type codecs struct {
	scratch sync.Pool // *scratch
	zstd    func() (*zstd.Decoder, error)
}

// scratch is the state of one decompression.
type scratch struct {
	in   []byte // the compressed page
	from bytes.Reader
	zlib io.ReadCloser
}

func newCodecs(size int) *codecs {
	c := &codecs{}
	c.scratch.New = func() any { return &scratch{in: make([]byte, size)} }
	c.zstd = sync.OnceValues(func() (*zstd.Decoder, error) {
		return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(1<<maxShift), zstd.WithDecodeAllCapLimit(true))
	})
	return c
}

// page reads the page that d describes into b.
func (c *codecs) page(in *input, d desc, b []byte) error {
	if d.size == 0 || int64(d.size) > int64(len(b)) {
		return fmt.Errorf("%w: page of %d bytes", ErrCorrupt, d.size)
	}
	if d.flags == 0 {
		if int(d.size) != len(b) {
			return fmt.Errorf("%w: page of %d bytes", ErrCorrupt, d.size)
		}
		return in.read(b, d.off)
	}
	s := c.scratch.Get().(*scratch)
	defer c.scratch.Put(s)
	from := s.in[:d.size]
	if err := in.read(from, d.off); err != nil {
		return err
	}
	if err := c.decompress(s, d.flags, from, b); err != nil {
		return fmt.Errorf("%w: page at offset %#x: %w", ErrCorrupt, d.off, err)
	}
	return nil
}

var errLength = errors.New("it decompresses to another length than that of a page")

// decompress fills b, whose length is what must come out.
func (c *codecs) decompress(s *scratch, flags uint32, from, b []byte) error {
	n := 0
	switch flags {
	case flagZlib:
		return s.inflate(from, b)
	case flagLZO:
		var err error
		if n, err = lzo.Decompress(from, b); err != nil {
			return err
		}
	case flagSnappy:
		var err error
		if n, err = snappy.DecodedLen(from); err != nil {
			return err
		}
		if n != len(b) {
			return errLength
		}
		if _, err := snappy.Decode(b, from); err != nil {
			return err
		}
	case flagZstd:
		z, err := c.zstd()
		if err != nil {
			return err
		}
		out, err := z.DecodeAll(from, b[:0:len(b)])
		if err != nil {
			return err
		}
		n = len(out)
	default:
		return fmt.Errorf("no compression has the flags %#x", flags)
	}
	if n != len(b) {
		return errLength
	}
	return nil
}

func (s *scratch) inflate(from, b []byte) (err error) {
	s.from.Reset(from)
	if s.zlib == nil {
		s.zlib, err = zlib.NewReader(&s.from)
	} else {
		err = s.zlib.(zlib.Resetter).Reset(&s.from, nil)
	}
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(s.zlib, b); err != nil {
		return err
	}
	var more [1]byte // the checksum is looked at when the end is
	switch n, err := s.zlib.Read(more[:]); {
	case n != 0 || err == nil:
		return errLength
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}
