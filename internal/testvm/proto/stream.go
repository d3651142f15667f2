package proto

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// Conn writes frames from several goroutines to one pipe.
type Conn struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

// NewConn returns a Conn that writes to w.
func NewConn(w io.Writer) *Conn { return &Conn{w: w} }

// Send writes one frame, whole.
func (c *Conn) Send(t Type, id uint32, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, err := AppendFrame(c.buf[:0], Frame{t, id, payload})
	if err != nil {
		return err
	}
	c.buf = b
	_, err = c.w.Write(b)
	return err
}

// Outbox is the sending end of a stream. It is an io.Writer that blocks while the
// window is used up.
type Outbox struct {
	conn *Conn
	t    Type
	id   uint32

	mu     sync.Mutex
	cond   sync.Cond
	credit int
	closed bool
}

// NewOutbox returns the sending end of stream t of request id.
func NewOutbox(c *Conn, t Type, id uint32) *Outbox {
	o := &Outbox{conn: c, t: t, id: id, credit: Window}
	o.cond.L = &o.mu
	return o
}

// Write sends p. It fails with io.ErrClosedPipe after Close.
func (o *Outbox) Write(p []byte) (int, error) {
	sent := 0
	for len(p) > 0 {
		o.mu.Lock()
		for o.credit == 0 && !o.closed {
			o.cond.Wait()
		}
		if o.closed {
			o.mu.Unlock()
			return sent, io.ErrClosedPipe
		}
		n := min(len(p), o.credit, MaxPayload)
		o.credit -= n
		o.mu.Unlock()
		if err := o.conn.Send(o.t, o.id, p[:n]); err != nil {
			return sent, err
		}
		sent += n
		p = p[n:]
	}
	return sent, nil
}

// Acked gives n bytes back to the window.
func (o *Outbox) Acked(n int) {
	o.mu.Lock()
	o.credit = min(o.credit+n, Window)
	o.mu.Unlock()
	o.cond.Broadcast()
}

// Close makes present and later Writes fail.
func (o *Outbox) Close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.cond.Broadcast()
}

// Inbox is the receiving end of a stream. It is an io.Reader; what it hands out is
// acknowledged to the sender.
type Inbox struct {
	conn *Conn
	t    Type
	id   uint32

	mu   sync.Mutex
	cond sync.Cond
	data []byte
	err  error
}

// NewInbox returns the receiving end of stream t of request id.
func NewInbox(c *Conn, t Type, id uint32) *Inbox {
	i := &Inbox{conn: c, t: t, id: id}
	i.cond.L = &i.mu
	return i
}

// Deliver adds received bytes. More than the window is a protocol error.
func (i *Inbox) Deliver(p []byte) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.data)+len(p) > Window {
		return fmt.Errorf("%w: stream %d of request %d overran its window", ErrFrame, i.t, i.id)
	}
	if i.err == nil {
		i.data = append(i.data, p...)
		i.cond.Broadcast()
	}
	return nil
}

// Close ends the stream: readers get what was delivered, then err (nil: io.EOF).
func (i *Inbox) Close(err error) {
	if err == nil {
		err = io.EOF
	}
	i.mu.Lock()
	if i.err == nil {
		i.err = err
	}
	i.mu.Unlock()
	i.cond.Broadcast()
}

// Read implements io.Reader.
func (i *Inbox) Read(p []byte) (int, error) {
	i.mu.Lock()
	for len(i.data) == 0 && i.err == nil {
		i.cond.Wait()
	}
	if len(i.data) == 0 {
		defer i.mu.Unlock()
		return 0, i.err
	}
	n := copy(p, i.data)
	i.data = i.data[:copy(i.data, i.data[n:])]
	i.mu.Unlock()
	return n, i.ack(n)
}

func (i *Inbox) ack(n int) error {
	b := binary.LittleEndian.AppendUint32([]byte{byte(i.t)}, uint32(n))
	return i.conn.Send(Ack, i.id, b)
}

// ParseAck reads the payload of an Ack frame.
func ParseAck(p []byte) (t Type, n int, err error) {
	if len(p) != 5 {
		return 0, 0, fmt.Errorf("%w: acknowledgement of %d bytes", ErrFrame, len(p))
	}
	return Type(p[0]), int(binary.LittleEndian.Uint32(p[1:]) & (2*Window - 1)), nil
}
