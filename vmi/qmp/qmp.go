// Package qmp is a client of QMP, the JSON protocol of QEMU's monitor socket.
//
// QEMU greets, the client leaves the negotiation mode with qmp_capabilities, and
// then sends commands; answers carry the id of their command, and events arrive
// between them at any time:
//
//	c, err := qmp.Dial(ctx, "/run/vm.sock")
//	...
//	defer c.Close()
//	err = c.Execute(ctx, "stop", nil, nil)
//
// A QEMU socket serves one client at a time. Dial tells that case from a socket
// that is no QMP socket as well as it can be told: see [ErrNoGreeting].
//
// Protocol: QEMU docs/interop/qmp-spec.
package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// greetingTimeout bounds the wait for the first line. QEMU sends it at once when
// it accepts. A variable for the tests only.
var greetingTimeout = 3 * time.Second

// maxMessage bounds one message of the peer, in bytes.
const maxMessage = 64 << 20

// Client is a connection to one QEMU. Its methods are safe for concurrent use.
type Client struct {
	path    string
	conn    *net.UnixConn
	version Version
	nextID  atomic.Uint64
	done    chan struct{} // closed when the reader ended

	writeMu sync.Mutex // one command at a time on the wire

	mu       sync.Mutex
	pending  map[uint64]chan reply
	handlers map[*func(Event)]struct{}
	err      error // why the connection ended; set before done is closed
}

// Version is the version of QEMU.
type Version struct{ Major, Minor, Micro int }

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// Event is something that happened in QEMU, such as STOP, RESUME or SHUTDOWN.
type Event struct {
	Name string
	Data json.RawMessage // nil if the event has none
	Time time.Time       // QEMU's clock
}

type reply struct {
	Return json.RawMessage
	Error  *struct{ Class, Desc string }
}

type message struct {
	reply
	QMP *struct {
		Version struct{ QEMU Version }
	}
	ID        *uint64
	Event     string
	Data      json.RawMessage
	Timestamp struct{ Seconds, Microseconds int64 }
}

// Dial connects to the unix socket at path and negotiates. It fails with
// ErrNotQMP if the peer says something else than a greeting, ErrNoGreeting if it
// says nothing for three seconds, ErrClosed if it hangs up; with fs.ErrNotExist and
// fs.ErrPermission as connect(2) does; and as ctx does.
func Dial(ctx context.Context, path string) (*Client, error) {
	c, err := dial(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("qmp %s: %w", path, err)
	}
	return c, nil
}

func dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		if op := (*net.OpError)(nil); errors.As(err, &op) {
			err = op.Err
		}
		return nil, err
	}
	c := &Client{
		path:     path,
		conn:     conn.(*net.UnixConn),
		done:     make(chan struct{}),
		pending:  make(map[uint64]chan reply),
		handlers: make(map[*func(Event)]struct{}),
	}
	in := &limitReader{r: conn}
	dec := json.NewDecoder(in)
	if err := c.greet(ctx, in, dec); err != nil {
		conn.Close()
		return nil, err
	}
	go c.read(in, dec)

	ctx, cancel := context.WithTimeout(ctx, greetingTimeout)
	defer cancel()
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// greet reads the greeting, for greetingTimeout at most.
func (c *Client) greet(ctx context.Context, in *limitReader, dec *json.Decoder) error {
	c.conn.SetReadDeadline(time.Now().Add(greetingTimeout))
	stop := context.AfterFunc(ctx, func() { c.conn.SetReadDeadline(time.Unix(1, 0)) })
	var m message
	err := dec.Decode(&m)
	if !stop() {
		return context.Cause(ctx)
	}
	c.conn.SetReadDeadline(time.Time{})
	switch {
	case err == nil && m.QMP != nil:
		c.version = m.QMP.Version.QEMU
		return nil
	case err == nil:
		return ErrNotQMP
	case errors.Is(err, os.ErrDeadlineExceeded) && in.total == 0:
		return ErrNoGreeting
	case isConnError(err):
		return fmt.Errorf("%w before the greeting", ErrClosed)
	default: // no JSON, or not in time
		return ErrNotQMP
	}
}

func isConnError(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) || errors.Is(err, net.ErrClosed)
}

// read dispatches what QEMU sends until the connection ends.
func (c *Client) read(in *limitReader, dec *json.Decoder) {
	var err error
	for {
		var m message
		in.n = 0
		if err = dec.Decode(&m); err != nil {
			break
		}
		if m.Event != "" {
			c.dispatch(Event{m.Event, m.Data, time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)})
			continue
		}
		if m.ID == nil {
			continue
		}
		c.mu.Lock()
		ch := c.pending[*m.ID]
		delete(c.pending, *m.ID)
		c.mu.Unlock()
		if ch != nil {
			ch <- m.reply
		}
	}
	c.conn.Close()
	c.mu.Lock()
	if isConnError(err) {
		c.err = ErrClosed
	} else {
		c.err = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	c.mu.Unlock()
	close(c.done)
}

func (c *Client) dispatch(e Event) {
	c.mu.Lock()
	handlers := make([]*func(Event), 0, len(c.handlers))
	for h := range c.handlers {
		handlers = append(handlers, h)
	}
	c.mu.Unlock()
	for _, h := range handlers {
		(*h)(e)
	}
}

// OnEvent calls f for every event from now on, one after the other in QEMU's
// order, until remove is called. f must return soon and must not call
// Execute or Close: nothing else is read from the socket meanwhile.
func (c *Client) OnEvent(f func(Event)) (remove func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handlers[&f] = struct{}{}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.handlers, &f)
	}
}

// Execute runs a command and decodes its return value into result. args, any
// value that encodes to a JSON object, and result may be nil. A refusal is an
// *Error. When ctx ends first its error is returned, and QEMU may run the command
// nevertheless.
func (c *Client) Execute(ctx context.Context, command string, args, result any) error {
	return c.execute(ctx, command, args, result, nil)
}

// HMP runs a line of the human monitor, such as "info mtree -f", and returns its
// output. Refusals come as output, not as errors.
func (c *Client) HMP(ctx context.Context, line string) (string, error) {
	var out string
	err := c.Execute(ctx, "human-monitor-command", map[string]string{"command-line": line}, &out)
	return out, err
}

// SendFile gives QEMU a copy of an open file under a name that later commands
// refer to ("fd:NAME"); see QMP getfd.
func (c *Client) SendFile(ctx context.Context, name string, f *os.File) error {
	return c.execute(ctx, "getfd", map[string]string{"fdname": name}, nil, f)
}

func (c *Client) execute(ctx context.Context, command string, args, result any, file *os.File) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	id := c.nextID.Add(1)
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	ch := make(chan reply, 1)
	c.mu.Lock()
	c.pending[id] = ch
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.pending, id)
		c.mu.Unlock()
	}()

	if err := c.write(ctx, append(line, '\n'), file); err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	var r reply
	select {
	case r = <-ch:
	case <-ctx.Done():
		return fmt.Errorf("QMP %s: %w", command, context.Cause(ctx))
	case <-c.done:
		select {
		case r = <-ch: // answered just before the end
		default:
			return fmt.Errorf("QMP %s: %w", command, c.Err())
		}
	}
	if r.Error != nil {
		return &Error{Command: command, Class: r.Error.Class, Desc: r.Error.Desc}
	}
	if result != nil && len(r.Return) > 0 {
		if err := json.Unmarshal(r.Return, result); err != nil {
			return fmt.Errorf("QMP %s: %w", command, err)
		}
	}
	return nil
}

// write sends one line. QEMU reads commands at once, so a write that blocks until
// ctx ends means a stuck QEMU; half a line on the wire cannot be taken back, and
// the connection is closed.
func (c *Client) write(ctx context.Context, line []byte, file *os.File) error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if err := c.Err(); err != nil {
		return err
	}
	deadline, _ := ctx.Deadline()
	c.conn.SetWriteDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { c.conn.SetWriteDeadline(time.Unix(1, 0)) })
	var n int
	var err error
	if file != nil {
		// A descriptor travels with the first byte of its line.
		n, _, err = c.conn.WriteMsgUnix(line, unix.UnixRights(int(file.Fd())), nil)
		line = line[n:]
	}
	if err == nil {
		var m int
		m, err = c.conn.Write(line)
		n += m
	}
	stop()
	if err == nil {
		return nil
	}
	if n > 0 || isConnError(err) {
		c.conn.Close()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) { // ctx is about to say the same
		return context.DeadlineExceeded
	}
	return fmt.Errorf("%w: %w", ErrClosed, err)
}

// Err returns nil while the connection lives, and an error that wraps ErrClosed
// afterwards.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Done returns a channel that is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Version returns the version that QEMU greeted with.
func (c *Client) Version() Version { return c.version }

// Path returns the path of the socket.
func (c *Client) Path() string { return c.path }

// PeerPID returns the process that listens on the socket (SO_PEERCRED). That is
// QEMU unless a manager made the socket and handed it down, as libvirt does.
func (c *Client) PeerPID() (int, error) {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return int(cred.Pid), nil
}

// Close ends the connection and waits for the last event handler to return. The
// virtual machine goes on.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// limitReader fails when one message is longer than maxMessage.
type limitReader struct {
	r     io.Reader
	n     int   // bytes since the last message was complete
	total int64 // bytes ever read
}

func (l *limitReader) Read(p []byte) (int, error) {
	if l.n > maxMessage {
		return 0, errors.New("message too long")
	}
	n, err := l.r.Read(p)
	l.n += n
	l.total += int64(n)
	return n, err
}
