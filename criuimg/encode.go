package criuimg

import (
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"math"

	"google.golang.org/protobuf/proto"
)

// flushSize is how many bytes an Encoder gathers before it writes.
const flushSize = 64 << 10

// Encoder writes the entries of one image. Errors are sticky: after one, all
// methods return it. It is not safe for concurrent use.
type Encoder struct {
	w     io.Writer
	close func(error) error // what Close does after the last write; may be nil
	off   int64             // bytes given to w
	buf   []byte
	seq   sequence
	due   payload // follows the entry encoded last and has not been written
	owed  bool
	done  bool
	err   error
}

// NewEncoder returns a writer of an image of kind k. The magic numbers are
// written with the first bytes that reach w. Close does not close w.
func NewEncoder(w io.Writer, k *Kind) *Encoder {
	e := &Encoder{w: w, seq: sequence{kind: k}}
	switch k.Frame {
	case FrameCommon:
		e.buf = binary.LittleEndian.AppendUint32(e.buf, commonMagic)
	case FrameService:
		e.buf = binary.LittleEndian.AppendUint32(e.buf, serviceMagic)
	case FrameRaw:
		e.err = fmt.Errorf("criuimg: %s is raw data, not entries", k)
	}
	e.buf = binary.LittleEndian.AppendUint32(e.buf, k.Magic)
	return e
}

// Encode appends one entry. Missing required fields and messages that do not
// belong at this place in the file are errors. The message may be reused.
func (e *Encoder) Encode(m proto.Message) error {
	if e.err != nil {
		return e.err
	}
	return e.keep(e.encode(m))
}

func (e *Encoder) encode(m proto.Message) error {
	if e.done {
		return fs.ErrClosed
	}
	if e.owed || e.seq.closed {
		return fmt.Errorf("%w: the payload of the entry before is missing", ErrSequence)
	}
	name := m.ProtoReflect().Descriptor().Name()
	if want := e.seq.descriptor().Name(); name != want {
		return fmt.Errorf("%w: %s, expected %s", ErrSequence, name, want)
	}
	at := len(e.buf)
	buf, err := proto.MarshalOptions{}.MarshalAppend(append(e.buf, 0, 0, 0, 0), m)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	n := len(buf) - at - 4
	if n > math.MaxInt32 {
		return fmt.Errorf("%w: %d bytes", ErrTooLarge, n)
	}
	binary.LittleEndian.PutUint32(buf[at:], uint32(n))
	e.buf = buf
	e.due = e.seq.accept(m)
	e.owed = e.due.size > 0 || e.due.toEOF
	if len(e.buf) >= flushSize {
		return e.flush()
	}
	return nil
}

// Payload writes the bytes that follow the entry encoded last: exactly as many
// as the entry announces, and all of r where the payload ends with the file.
// Padding is added. A shorter r is an error.
func (e *Encoder) Payload(r io.Reader) error {
	if e.err != nil {
		return e.err
	}
	return e.keep(e.payload(r))
}

func (e *Encoder) payload(r io.Reader) error {
	if !e.owed {
		return fmt.Errorf("%w: no payload belongs here", ErrSequence)
	}
	if err := e.flush(); err != nil {
		return err
	}
	e.owed = false
	if e.due.toEOF {
		n, err := io.Copy(e.w, r)
		e.off += n
		return err
	}
	if e.due.size > math.MaxInt64 {
		return fmt.Errorf("%w: payload of %d bytes", ErrTooLarge, e.due.size)
	}
	n, err := io.CopyN(e.w, r, int64(e.due.size))
	e.off += n
	if err == io.EOF {
		return fmt.Errorf("payload has %d bytes, the entry says %d: %w", n, e.due.size, io.ErrUnexpectedEOF)
	}
	e.buf = append(e.buf, make([]byte, e.due.pad())...)
	return err
}

func (e *Encoder) flush() error {
	if len(e.buf) == 0 {
		return nil
	}
	n, err := e.w.Write(e.buf)
	e.off += int64(n)
	e.buf = e.buf[:0]
	return err
}

// keep makes an error sticky and says where it happened.
func (e *Encoder) keep(err error) error {
	if err != nil {
		e.err = &FormatError{Offset: e.off + int64(len(e.buf)), Err: err}
	}
	return e.err
}

// Close writes what is left. It fails if the file would be incomplete: a payload
// or nested entry is missing, or an earlier call failed.
func (e *Encoder) Close() error {
	if e.done {
		return e.err
	}
	e.done = true
	if e.err == nil && (e.owed && !e.due.toEOF || e.seq.nested > 0) {
		e.keep(fmt.Errorf("%w: incomplete at Close", ErrSequence))
	}
	if e.err == nil {
		e.keep(e.flush())
	}
	if e.close != nil {
		e.err = e.close(e.err)
	}
	return e.err
}
