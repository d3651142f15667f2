package proto

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// ErrGone is wrapped by errors of requests whose agent or connection went away.
var ErrGone = errors.New("guest agent is gone")

// Client sends requests to an agent. It is safe for concurrent use.
type Client struct {
	conn  *Conn
	ready chan struct{}
	done  chan struct{}

	mu    sync.Mutex
	next  uint32
	calls map[uint32]*call
	err   error
}

type call struct {
	stdin          *Outbox
	stdout, stderr *Inbox
	finished       chan Response // capacity 1
	lost           chan struct{} // closed when the connection is lost
}

// NewClient talks over rw until reading from it fails.
func NewClient(rw io.ReadWriter) *Client {
	c := &Client{
		conn: NewConn(rw), ready: make(chan struct{}), done: make(chan struct{}),
		calls: map[uint32]*call{},
	}
	go c.read(rw)
	return c
}

// Ready is closed when the agent has said hello.
func (c *Client) Ready() <-chan struct{} { return c.ready }

// Done is closed when the connection is lost; Err then says why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is nil while the connection works.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *Client) read(r io.Reader) {
	var err error
	for err == nil {
		var f Frame
		if f, err = ReadFrame(r); err == nil {
			err = c.handle(f)
		}
	}
	err = fmt.Errorf("%w: %w", ErrGone, err)
	c.mu.Lock()
	c.err = err
	calls := c.calls
	c.calls = nil
	c.mu.Unlock()
	for _, k := range calls {
		close(k.lost)
		k.stdin.Close()
		k.stdout.Close(err)
		k.stderr.Close(err)
	}
	close(c.done)
}

func (c *Client) handle(f Frame) error {
	if f.Type == Hello {
		if string(f.Payload) != Magic {
			return fmt.Errorf("%w: agent says %q, want %q", ErrFrame, f.Payload, Magic)
		}
		select {
		case <-c.ready:
			return errors.New("the agent was restarted")
		default:
			close(c.ready)
			return nil
		}
	}
	c.mu.Lock()
	k := c.calls[f.ID]
	c.mu.Unlock()
	if k == nil {
		return nil // cancelled
	}
	switch f.Type {
	case Stdout:
		return k.stdout.Deliver(f.Payload)
	case Stderr:
		return k.stderr.Deliver(f.Payload)
	case Ack:
		_, n, err := ParseAck(f.Payload)
		k.stdin.Acked(n)
		return err
	case Finished:
		var r Response
		if err := json.Unmarshal(f.Payload, &r); err != nil {
			return fmt.Errorf("%w: %w", ErrFrame, err)
		}
		k.stdin.Close()
		k.stdout.Close(nil)
		k.stderr.Close(nil)
		select {
		case k.finished <- r:
		default:
		}
	}
	return nil
}

// Do sends one request and waits for its response; stdin is copied to the guest,
// output to stdout and stderr (all three may be nil). If ctx ends first the request
// is cancelled, which kills a process that it runs. An error that the agent reports
// is in the response.
func (c *Client) Do(ctx context.Context, req Request, stdin io.Reader, stdout, stderr io.Writer) (Response, error) {
	b, err := json.Marshal(req)
	if err != nil {
		return Response{}, err
	}
	if len(b) > MaxPayload {
		return Response{}, fmt.Errorf("request of %d bytes; at most %d", len(b), MaxPayload)
	}
	id, k, err := c.open()
	if err != nil {
		return Response{}, err
	}
	defer c.forget(id)
	if err := c.conn.Send(Start, id, b); err != nil {
		return Response{}, fmt.Errorf("%w: %w", ErrGone, err)
	}
	// A reader that fails must not look like the end of a file that was put.
	broken := make(chan error, 1)
	go func() {
		if stdin != nil {
			if _, err := io.Copy(k.stdin, stdin); err != nil && !errors.Is(err, io.ErrClosedPipe) {
				broken <- err
				return
			}
		}
		_ = c.conn.Send(Stdin, id, nil)
	}()
	copied := make(chan error, 2)
	for w, in := range map[int]*Inbox{1: k.stdout, 2: k.stderr} {
		dst := stdout
		if w == 2 {
			dst = stderr
		}
		if dst == nil {
			dst = io.Discard
		}
		go func() {
			_, err := io.Copy(dst, in)
			copied <- err
		}()
	}
	abort := func(err error) (Response, error) {
		_ = c.conn.Send(Cancel, id, nil)
		k.stdin.Close()
		k.stdout.Close(err)
		k.stderr.Close(err)
		return Response{}, err
	}
	for range 2 {
		select {
		case err := <-copied:
			if err != nil {
				return abort(err)
			}
		case err := <-broken:
			return abort(err)
		case <-ctx.Done():
			return abort(ctx.Err())
		}
	}
	select {
	case r := <-k.finished:
		return r, nil
	case <-k.lost:
		return Response{}, c.Err()
	case <-ctx.Done():
		return abort(ctx.Err())
	}
}

func (c *Client) open() (uint32, *call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, nil, c.err
	}
	c.next++
	id := c.next
	k := &call{
		stdin: NewOutbox(c.conn, Stdin, id), stdout: NewInbox(c.conn, Stdout, id),
		stderr: NewInbox(c.conn, Stderr, id), finished: make(chan Response, 1), lost: make(chan struct{}),
	}
	c.calls[id] = k
	return id, k, nil
}

func (c *Client) forget(id uint32) {
	c.mu.Lock()
	delete(c.calls, id)
	c.mu.Unlock()
}
