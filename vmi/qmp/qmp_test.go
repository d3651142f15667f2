package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func init() { greetingTimeout = time.Second }

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}` + "\r\n"

type request struct {
	Execute   string
	Arguments json.RawMessage
	ID        json.RawMessage
}

// serve listens on a socket of its own and runs script on the first connection.
func serve(t *testing.T, script func(c *net.UnixConn, in *bufio.Reader)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qmp.sock")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		script(c.(*net.UnixConn), bufio.NewReader(c))
	})
	t.Cleanup(func() { l.Close(); wg.Wait(); goleak.VerifyNone(t) })
	return path
}

// next reads a command; ok is false when the client has hung up.
func next(in *bufio.Reader) (r request, ok bool) {
	line, err := in.ReadBytes('\n')
	return r, err == nil && json.Unmarshal(line, &r) == nil
}

// greet plays QEMU up to the end of the negotiation.
func greet(c net.Conn, in *bufio.Reader) {
	io.WriteString(c, greeting)
	if r, ok := next(in); ok && r.Execute == "qmp_capabilities" {
		fmt.Fprintf(c, `{"return": {}, "id": %s}`+"\r\n", r.ID)
	}
}

func TestExecute(t *testing.T) {
	path := serve(t, func(c *net.UnixConn, in *bufio.Reader) {
		greet(c, in)
		for r, ok := next(in); ok; r, ok = next(in) {
			switch r.Execute {
			case "query-status":
				// An event and an answer to nobody before ours.
				io.WriteString(c, `{"event": "STOP", "timestamp": {"seconds": 5, "microseconds": 7}}`+"\r\n")
				io.WriteString(c, `{"return": {}, "id": 999}`+"\r\n")
				fmt.Fprintf(c, `{"return": {"running": true}, "id": %s}`+"\r\n", r.ID)
			case "human-monitor-command":
				fmt.Fprintf(c, `{"return": %s, "id": %s}`+"\r\n", r.Arguments, r.ID)
			default:
				fmt.Fprintf(c, `{"error": {"class": "CommandNotFound", "desc": "no %s"}, "id": %s}`+"\r\n", r.Execute, r.ID)
			}
		}
	})
	ctx := t.Context()
	c, err := Dial(ctx, path)
	require.NoError(t, err)
	defer c.Close()
	require.Equal(t, "7.2.22", c.Version().String())
	pid, err := c.PeerPID()
	require.NoError(t, err)
	require.Equal(t, os.Getpid(), pid)

	events := make(chan Event, 1)
	remove := c.OnEvent(func(e Event) { events <- e })
	var status struct{ Running bool }
	require.NoError(t, c.Execute(ctx, "query-status", nil, &status))
	require.True(t, status.Running)
	e := <-events
	require.Equal(t, "STOP", e.Name)
	require.True(t, e.Time.Equal(time.Unix(5, 7000)))
	remove()
	require.NoError(t, c.Execute(ctx, "query-status", nil, nil))
	require.Empty(t, events)

	err = c.Execute(ctx, "nonsense", nil, nil)
	var qe *Error
	require.ErrorAs(t, err, &qe)
	require.Equal(t, "CommandNotFound", qe.Class)
	require.EqualError(t, err, "QMP nonsense: no nonsense")

	_, err = c.HMP(ctx, "x") // the script answers an object, no string
	require.Error(t, err)
	require.NoError(t, c.Err())
}

func TestOutOfOrderAnswers(t *testing.T) {
	const n = 20
	path := serve(t, func(c *net.UnixConn, in *bufio.Reader) {
		greet(c, in)
		var all []request
		for range n {
			r, ok := next(in)
			if !ok {
				return
			}
			all = append(all, r)
		}
		for i := len(all) - 1; i >= 0; i-- {
			fmt.Fprintf(c, `{"return": %s, "id": %s}`+"\r\n", all[i].Arguments, all[i].ID)
		}
		next(in)
	})
	c, err := Dial(t.Context(), path)
	require.NoError(t, err)
	defer c.Close()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			var got struct{ N int }
			err := c.Execute(t.Context(), "echo", map[string]int{"n": i}, &got)
			if err != nil || got.N != i {
				t.Errorf("echo %d: %d, %v", i, got.N, err)
			}
		})
	}
	wg.Wait()
}

func TestVanish(t *testing.T) {
	path := serve(t, func(c *net.UnixConn, in *bufio.Reader) {
		greet(c, in)
		next(in) // hang up instead of answering
	})
	c, err := Dial(t.Context(), path)
	require.NoError(t, err)
	defer c.Close()
	require.ErrorIs(t, c.Execute(t.Context(), "stop", nil, nil), ErrClosed)
	<-c.Done()
	require.ErrorIs(t, c.Err(), ErrClosed)
	require.ErrorIs(t, c.Execute(t.Context(), "cont", nil, nil), ErrClosed)
}

func TestDeadlineKeepsConnection(t *testing.T) {
	path := serve(t, func(c *net.UnixConn, in *bufio.Reader) {
		greet(c, in)
		slow, _ := next(in)
		r, _ := next(in)
		fmt.Fprintf(c, `{"return": 1, "id": %s}`+"\r\n", slow.ID) // late: dropped
		fmt.Fprintf(c, `{"return": 2, "id": %s}`+"\r\n", r.ID)
		next(in)
	})
	c, err := Dial(t.Context(), path)
	require.NoError(t, err)
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, c.Execute(ctx, "slow", nil, nil), context.DeadlineExceeded)
	var n int
	require.NoError(t, c.Execute(t.Context(), "fast", nil, &n))
	require.Equal(t, 2, n)
}

func TestSendFile(t *testing.T) {
	got := make(chan string, 1)
	path := serve(t, func(c *net.UnixConn, in *bufio.Reader) {
		greet(c, in)
		line, oob := make([]byte, 4096), make([]byte, 64)
		n, noob, _, _, err := c.ReadMsgUnix(line, oob)
		if err != nil {
			return
		}
		var r request
		json.Unmarshal(line[:n], &r)
		got <- fmt.Sprintf("%s %s %t", r.Execute, r.Arguments, noob > 0)
		fmt.Fprintf(c, `{"return": {}, "id": %s}`+"\r\n", r.ID)
		next(in)
	})
	c, err := Dial(t.Context(), path)
	require.NoError(t, err)
	defer c.Close()
	f, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, c.SendFile(t.Context(), "x", f))
	require.Equal(t, `getfd {"fdname":"x"} true`, <-got)
}

func TestDialErrors(t *testing.T) {
	say := func(s string) func(*net.UnixConn, *bufio.Reader) {
		return func(c *net.UnixConn, in *bufio.Reader) {
			io.WriteString(c, s)
			in.ReadByte() // until the client gives up
		}
	}
	hangUp := func(s string) func(*net.UnixConn, *bufio.Reader) {
		return func(c *net.UnixConn, in *bufio.Reader) { io.WriteString(c, s) }
	}
	for _, tt := range []struct {
		name   string
		script func(*net.UnixConn, *bufio.Reader)
		want   error
	}{
		{"silent", say(""), ErrNoGreeting},
		{"ssh", say("SSH-2.0-OpenSSH_9.2\r\n"), ErrNotQMP},
		{"other JSON", say(`{"hello": 1}`), ErrNotQMP},
		{"JSON string", say(`"hello"`), ErrNotQMP},
		{"half a greeting", say(greeting[:20]), ErrNotQMP},
		{"hang up", hangUp(""), ErrClosed},
		{"hang up in greeting", hangUp(greeting[:20]), ErrClosed},
		{"hang up after greeting", hangUp(greeting), ErrClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", path)
			require.NoError(t, err)
			defer l.Close()
			go func() {
				if c, err := l.Accept(); err == nil {
					defer c.Close()
					tt.script(c.(*net.UnixConn), bufio.NewReader(c))
				}
			}()
			start := time.Now()
			_, err = Dial(t.Context(), path)
			require.ErrorIs(t, err, tt.want)
			require.NotContains(t, err.Error(), "\n")
			require.Contains(t, err.Error(), path)
			require.Less(t, time.Since(start), greetingTimeout+2*time.Second)
		})
	}
	t.Run("no socket", func(t *testing.T) {
		_, err := Dial(t.Context(), filepath.Join(t.TempDir(), "none"))
		require.ErrorIs(t, err, fs.ErrNotExist)
	})
	t.Run("file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "f")
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		_, err := Dial(t.Context(), path)
		require.Error(t, err)
	})
	t.Run("cancelled", func(t *testing.T) {
		path := serve(t, say(""))
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		_, err := Dial(ctx, path)
		require.ErrorIs(t, err, context.Canceled)
	})
}

func TestGarbageAfterGreeting(t *testing.T) {
	path := serve(t, func(c *net.UnixConn, in *bufio.Reader) {
		greet(c, in)
		next(in)
		io.WriteString(c, `{"return": }`+"\r\n")
		next(in)
	})
	c, err := Dial(t.Context(), path)
	require.NoError(t, err)
	defer c.Close()
	require.ErrorIs(t, c.Execute(t.Context(), "stop", nil, nil), ErrClosed)
}

func TestLimitReader(t *testing.T) {
	l := &limitReader{r: strings.NewReader("abc")}
	l.n = maxMessage + 1
	_, err := l.Read(make([]byte, 1))
	require.Error(t, err)
	require.False(t, errors.Is(err, io.EOF))
}
