package criuimg

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"

	"google.golang.org/protobuf/proto"
)

// DefaultEntryLimit is the largest entry, in bytes, that readers accept unless
// told otherwise. The largest real one is the mm image of a process with very
// many VMAs: about 60 bytes each.
const DefaultEntryLimit = 64 << 20

// Decoder reads the entries of one image, in order, without reading ahead more
// than a small buffer. It is not safe for concurrent use.
type Decoder struct {
	// Limit is the largest entry accepted, in bytes; payloads do not count.
	Limit int

	r     *bufio.Reader
	off   int64 // of the next unread byte
	start int64 // of the entry last begun
	seq   sequence
	data  payloadReader
	pad   uint64
	buf   []byte
	err   error
}

// NewDecoder checks the magic numbers of an image of kind k and returns a reader
// of its entries. Raw kinds have none and are refused.
func NewDecoder(r io.Reader, k *Kind) (*Decoder, error) {
	if k.Frame == FrameRaw {
		return nil, fmt.Errorf("criuimg: %s is raw data, not entries", k)
	}
	d := &Decoder{Limit: DefaultEntryLimit, r: bufio.NewReaderSize(r, 16<<10), seq: sequence{kind: k}}
	d.data.d = d
	var want []uint32
	switch k.Frame {
	case FrameCommon:
		want = []uint32{commonMagic, k.Magic}
	case FrameService:
		want = []uint32{serviceMagic, k.Magic}
	default:
		want = []uint32{k.Magic}
	}
	for _, w := range want {
		var b [4]byte
		if err := d.full(b[:]); err != nil {
			return nil, &FormatError{Err: err}
		}
		if got := binary.LittleEndian.Uint32(b[:]); got != w {
			return nil, &FormatError{Offset: d.off - 4, Err: fmt.Errorf("%w %#x, %s has %#x", ErrMagic, got, k, w)}
		}
	}
	return d, nil
}

// Next returns the next entry. Payload of the entry before that was not read is
// skipped. At the end of a complete file the error is io.EOF; any other error is
// a *FormatError and final.
func (d *Decoder) Next() (proto.Message, error) {
	if d.err == nil {
		d.err = d.skip()
	}
	if d.err != nil {
		return nil, d.err
	}
	m, err := d.next()
	if err != nil && err != io.EOF {
		err = &FormatError{Offset: d.start, Err: err}
	}
	d.err = err
	return m, err
}

func (d *Decoder) next() (proto.Message, error) {
	d.start = d.off
	if _, err := d.r.Peek(1); err == io.EOF {
		if d.seq.nested > 0 {
			return nil, fmt.Errorf("%w: %d nested entries missing", ErrTruncated, d.seq.nested)
		}
		return nil, io.EOF
	}
	var b [4]byte
	if err := d.full(b[:]); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(b[:])
	if uint64(n) > uint64(max(d.Limit, 0)) {
		return nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, n)
	}
	body, err := d.body(int(n))
	if err != nil {
		return nil, err
	}
	m := d.seq.expect()
	if err := proto.Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrMessage, m.ProtoReflect().Descriptor().Name(), err)
	}
	p := d.seq.accept(m)
	d.data.left, d.pad = p.size, p.pad()
	if p.toEOF {
		d.data.left = math.MaxUint64
	}
	d.data.toEOF = p.toEOF
	return m, nil
}

// body reads n bytes. Memory grows with the bytes that are really there, so a
// wrong length costs nothing.
func (d *Decoder) body(n int) ([]byte, error) {
	const chunk = 64 << 10
	if cap(d.buf) < min(n, chunk) {
		d.buf = make([]byte, min(n, chunk))
	}
	if n <= cap(d.buf) {
		b := d.buf[:n]
		return b, d.full(b)
	}
	var big bytes.Buffer
	got, err := io.CopyN(&big, d.r, int64(n))
	d.off += got
	if err == io.EOF {
		err = ErrTruncated
	}
	d.buf = big.Bytes()
	return d.buf, err
}

// full reads len(b) bytes and counts them.
func (d *Decoder) full(b []byte) error {
	n, err := io.ReadFull(d.r, b)
	d.off += int64(n)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return ErrTruncated
	}
	return err
}

// Offset returns the byte offset of the entry that Next returned last.
func (d *Decoder) Offset() int64 { return d.start }

// PayloadSize returns how many bytes of payload follow the entry that Next
// returned last and have not been read; -1 if they go up to the end of the file.
func (d *Decoder) PayloadSize() int64 {
	if d.data.toEOF {
		return -1
	}
	return int64(min(d.data.left, math.MaxInt64))
}

// Payload returns a reader of the bytes that follow the entry returned last,
// without padding. It is valid until Next; it is empty if nothing follows.
func (d *Decoder) Payload() io.Reader { return &d.data }

// skip passes over unread payload and padding.
func (d *Decoder) skip() error {
	start := d.off
	if _, err := io.Copy(io.Discard, &d.data); err != nil {
		return err
	}
	var b [8]byte
	if err := d.full(b[:d.pad]); err != nil {
		return &FormatError{Offset: start, Err: err}
	}
	d.pad = 0
	return nil
}

// payloadReader reads the payload of the current entry.
type payloadReader struct {
	d     *Decoder
	left  uint64
	toEOF bool
}

func (p *payloadReader) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	if uint64(len(b)) > p.left {
		b = b[:p.left]
	}
	n, err := p.d.r.Read(b)
	p.left -= uint64(n)
	p.d.off += int64(n)
	if err == io.EOF {
		if p.toEOF {
			p.left = 0
			return n, io.EOF
		}
		return n, &FormatError{Offset: p.d.start, Err: fmt.Errorf("%w: %d bytes of payload missing", ErrTruncated, p.left)}
	}
	return n, err
}

// Entries returns the entries of an image of kind k, which all must be of type M
// (proto.Message fits all). Payloads are skipped. limit is the largest entry in
// bytes, 0 for DefaultEntryLimit. After an error the sequence ends.
func Entries[M proto.Message](r io.Reader, k *Kind, limit int) iter.Seq2[M, error] {
	return func(yield func(M, error) bool) {
		var zero M
		d, err := NewDecoder(r, k)
		if err != nil {
			yield(zero, err)
			return
		}
		if limit > 0 {
			d.Limit = limit
		}
		for {
			m, err := d.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(zero, err)
				return
			}
			e, ok := m.(M)
			if !ok {
				yield(zero, &FormatError{Offset: d.Offset(), Err: fmt.Errorf("%w: %s", ErrSequence, m.ProtoReflect().Descriptor().Name())})
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}
