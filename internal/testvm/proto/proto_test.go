package proto

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestFrameRoundTrip(t *testing.T) {
	in := []Frame{
		{Hello, 0, []byte(Magic)},
		{Stdin, 0xffffffff, []byte{}},
		{Finished, 7, bytes.Repeat([]byte{1}, MaxPayload)},
	}
	var b []byte
	for _, f := range in {
		var err error
		b, err = AppendFrame(b, f)
		require.NoError(t, err)
	}
	r := bytes.NewReader(b)
	for _, want := range in {
		got, err := ReadFrame(r)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	_, err := ReadFrame(r)
	require.Equal(t, io.EOF, err)
}

func TestReadFrameRefuses(t *testing.T) {
	for _, b := range []string{
		"\x00\x00\x00\x00\x00\x00\x00\x00\x00", // type 0
		"\x09\x00\x00\x00\x00\x00\x00\x00\x00", // type 9
		"\x01\x00\x00\x00\x00\xff\xff\xff\xff", // 4 GiB
	} {
		_, err := ReadFrame(strings.NewReader(b))
		require.ErrorIs(t, err, ErrFrame)
	}
	_, err := ReadFrame(strings.NewReader("\x01\x00\x00\x00\x00\x02\x00\x00\x00x"))
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	_, err = AppendFrame(nil, Frame{Stdin, 1, make([]byte, MaxPayload+1)})
	require.ErrorIs(t, err, ErrFrame)
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x00\x02\x00\x00\x00xy"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := ReadFrame(bytes.NewReader(b))
		if err != nil {
			return
		}
		enc, err := AppendFrame(nil, got)
		if err != nil || !bytes.HasPrefix(b, enc) {
			t.Errorf("%x read as %v, written as %x (%v)", b, got, enc, err)
		}
	})
}

// pair serves h at one end of a pipe and returns a client at the other.
func pair(t *testing.T, h Handler) *Client {
	a, b := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- Serve(b, h) }()
	c := NewClient(a)
	t.Cleanup(func() {
		a.Close()
		<-c.Done()
		<-served
	})
	select {
	case <-c.Ready():
	case <-time.After(5 * time.Second):
		t.Fatal("no hello")
	}
	return c
}

// echo copies its input to both outputs.
func echo(_ context.Context, req Request, stdin io.Reader, stdout, stderr io.Writer) Response {
	if _, err := io.Copy(io.MultiWriter(stdout, stderr), stdin); err != nil {
		return Response{Err: err.Error()}
	}
	return Response{Code: len(req.Argv)}
}

func TestManyRequestsAtOnce(t *testing.T) {
	c := pair(t, echo)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			data := make([]byte, i*60_000) // the larger ones use up the window
			_, _ = rand.Read(data)
			var out, errout bytes.Buffer
			r, err := c.Do(t.Context(), Request{Op: OpExec, Argv: make([]string, i)}, bytes.NewReader(data), &out, &errout)
			if err != nil || r.Code != i || !bytes.Equal(out.Bytes(), data) || !bytes.Equal(errout.Bytes(), data) {
				t.Errorf("request %d: %+v, %v, %d and %d of %d bytes", i, r, err, out.Len(), errout.Len(), len(data))
			}
		}()
	}
	wg.Wait()
}

type stuckWriter chan struct{}

func (w stuckWriter) Write(p []byte) (int, error) {
	<-w
	return len(p), nil
}

// One stream that nobody reads, in either direction, must not hold up another.
func TestSlowStreamStopsOnlyItself(t *testing.T) {
	release := make(chan struct{})
	c := pair(t, func(ctx context.Context, req Request, stdin io.Reader, stdout, stderr io.Writer) Response {
		if req.Path == "deaf" {
			<-release
		}
		return echo(ctx, req, stdin, stdout, stderr)
	})
	data := make([]byte, 3*Window)
	done := make(chan error, 2)
	go func() {
		_, err := c.Do(t.Context(), Request{Path: "deaf"}, bytes.NewReader(data), nil, nil)
		done <- err
	}()
	go func() {
		_, err := c.Do(t.Context(), Request{}, bytes.NewReader(data), stuckWriter(release), nil)
		done <- err
	}()
	var out bytes.Buffer
	_, err := c.Do(t.Context(), Request{}, strings.NewReader("through"), &out, nil)
	require.NoError(t, err)
	require.Equal(t, "through", out.String())
	close(release)
	require.NoError(t, <-done)
	require.NoError(t, <-done)
}

func TestCancelReachesHandler(t *testing.T) {
	stopped := make(chan struct{})
	c := pair(t, func(ctx context.Context, _ Request, _ io.Reader, _, _ io.Writer) Response {
		<-ctx.Done()
		close(stopped)
		return Response{}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := c.Do(ctx, Request{}, nil, nil, nil)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	select {
	case <-stopped:
	case <-time.After(5 * time.Second):
		t.Fatal("the handler was not told")
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("disk on fire") }

// A file must not be taken as complete because reading its source failed.
func TestBrokenInputIsNotEndOfInput(t *testing.T) {
	result := make(chan error, 1)
	c := pair(t, func(_ context.Context, _ Request, stdin io.Reader, _, _ io.Writer) Response {
		_, err := io.Copy(io.Discard, stdin)
		result <- err
		return Response{}
	})
	_, err := c.Do(t.Context(), Request{}, brokenReader{}, nil, nil)
	require.ErrorContains(t, err, "disk on fire")
	require.Error(t, <-result)
}

func TestLostConnectionFailsRequests(t *testing.T) {
	a, b := net.Pipe()
	c := NewClient(a)
	go func() {
		_ = NewConn(b).Send(Hello, 0, []byte(Magic))
		_, _ = ReadFrame(b)
		b.Close()
	}()
	_, err := c.Do(t.Context(), Request{}, nil, nil, nil)
	require.ErrorIs(t, err, ErrGone)
	<-c.Done()
	_, err = c.Do(t.Context(), Request{}, nil, nil, nil)
	require.ErrorIs(t, err, ErrGone)
}

func TestOverrunIsAnError(t *testing.T) {
	i := NewInbox(NewConn(io.Discard), Stdout, 1)
	require.NoError(t, i.Deliver(make([]byte, Window)))
	require.ErrorIs(t, i.Deliver([]byte{1}), ErrFrame)
}
