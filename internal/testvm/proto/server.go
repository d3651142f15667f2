package proto

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// Handler serves one request. It reads stdin, writes stdout and stderr, and stops
// when ctx is done.
type Handler func(ctx context.Context, req Request, stdin io.Reader, stdout, stderr io.Writer) Response

type job struct {
	cancel         context.CancelFunc
	stdin          *Inbox
	stdout, stderr *Outbox
}

func (j *job) abort(err error) {
	j.cancel()
	j.stdin.Close(err)
	j.stdout.Close()
	j.stderr.Close()
}

// Serve says hello on rw and serves requests, each in a goroutine, until reading
// fails; it then cancels what is running and returns the error.
func Serve(rw io.ReadWriter, h Handler) error {
	conn := NewConn(rw)
	if err := conn.Send(Hello, 0, []byte(Magic)); err != nil {
		return err
	}
	var (
		mu   sync.Mutex
		jobs = map[uint32]*job{}
	)
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		for _, j := range jobs {
			j.abort(io.ErrUnexpectedEOF)
		}
	}()
	for {
		f, err := ReadFrame(rw)
		if err != nil {
			return err
		}
		if f.Type == Start {
			ctx, cancel := context.WithCancel(context.Background())
			j := &job{cancel, NewInbox(conn, Stdin, f.ID), NewOutbox(conn, Stdout, f.ID), NewOutbox(conn, Stderr, f.ID)}
			mu.Lock()
			jobs[f.ID] = j
			mu.Unlock()
			go func() {
				r := serveOne(ctx, h, f.Payload, j)
				cancel()
				mu.Lock()
				delete(jobs, f.ID)
				mu.Unlock()
				b, _ := json.Marshal(r) // strings and numbers: cannot fail
				_ = conn.Send(Finished, f.ID, b)
			}()
			continue
		}
		mu.Lock()
		j := jobs[f.ID]
		mu.Unlock()
		if j == nil {
			continue // already finished
		}
		if err := j.handle(f); err != nil {
			return err
		}
	}
}

func (j *job) handle(f Frame) error {
	switch f.Type {
	case Stdin:
		if len(f.Payload) == 0 {
			j.stdin.Close(nil)
			return nil
		}
		return j.stdin.Deliver(f.Payload)
	case Ack:
		t, n, err := ParseAck(f.Payload)
		if t == Stdout {
			j.stdout.Acked(n)
		} else if t == Stderr {
			j.stderr.Acked(n)
		}
		return err
	case Cancel:
		j.abort(context.Canceled)
	}
	return nil
}

func serveOne(ctx context.Context, h Handler, payload []byte, j *job) Response {
	var req Request
	if err := json.Unmarshal(payload, &req); err != nil {
		return Response{Err: fmt.Sprintf("request: %v", err)}
	}
	r := h(ctx, req, j.stdin, j.stdout, j.stderr)
	if len(r.Err) > 4096 {
		r.Err = r.Err[:4096]
	}
	return r
}
