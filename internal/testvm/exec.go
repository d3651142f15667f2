package testvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/ovmigrate/ovmigrate/internal/testvm/proto"
)

// Agent runs programs in a guest and moves files. Its methods are safe for
// concurrent use.
type Agent struct {
	conn   net.Conn
	client *proto.Client
	why    func(error) error // adds to the error of a request what is known of its cause
}

// Attach connects to a guest that another process serves on a Unix socket; see
// VM.Serve.
func Attach(ctx context.Context, socket string) (*Agent, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	a := &Agent{conn: c, client: proto.NewClient(c)}
	select {
	case <-a.client.Ready():
		return a, nil
	case <-a.client.Done():
		return nil, a.client.Err()
	case <-ctx.Done():
		c.Close()
		return nil, ctx.Err()
	}
}

// Cmd is a program to run in the guest.
type Cmd struct {
	Argv   []string
	Env    []string // "NAME=value", added to the guest's
	Dir    string   // default "/"
	Cgroup string   // below /sys/fs/cgroup, made if missing; default: the root

	Stdin          io.Reader // nil: empty
	Stdout, Stderr io.Writer // nil: discarded
}

// Result says how a program ended.
type Result struct {
	PID    int // in the guest
	Code   int // exit status
	Signal int // number of the signal that killed it, or 0
}

// Err returns an error unless the program exited with status 0.
func (r Result) Err() error {
	switch {
	case r.Signal != 0:
		return fmt.Errorf("killed by signal %d", r.Signal)
	case r.Code != 0:
		return fmt.Errorf("exit status %d", r.Code)
	}
	return nil
}

// Run runs a program in the guest, in a session of its own, until it ends. When ctx
// ends first, the program's process group is killed. A program that fails is no
// error; see Result.Err.
func (a *Agent) Run(ctx context.Context, c Cmd) (Result, error) {
	r, err := a.do(ctx, proto.Request{
		Op: proto.OpExec, Argv: c.Argv, Env: c.Env, Dir: c.Dir, Cgroup: c.Cgroup,
	}, c.Stdin, c.Stdout, c.Stderr)
	return Result{PID: r.PID, Code: r.Code, Signal: r.Signal}, err
}

func (a *Agent) do(ctx context.Context, req proto.Request, stdin io.Reader, stdout, stderr io.Writer) (proto.Response, error) {
	r, err := a.client.Do(ctx, req, stdin, stdout, stderr)
	if err == nil && r.Err != "" {
		err = errors.New("guest: " + r.Err)
	}
	if err != nil && a.why != nil {
		err = a.why(err)
	}
	return r, err
}

// Exec runs a command and returns its standard output. A command that fails is an
// error that carries the end of its error output.
func (a *Agent) Exec(ctx context.Context, argv ...string) ([]byte, error) {
	var out, errout strings.Builder
	r, err := a.Run(ctx, Cmd{Argv: argv, Stdout: &out, Stderr: &errout})
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		msg := strings.TrimSpace(errout.String())
		return []byte(out.String()), fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, msg[max(0, len(msg)-500):])
	}
	return []byte(out.String()), nil
}

// Process is a program to start in the guest and to leave running.
type Process struct {
	Argv   []string
	Env    []string
	Dir    string
	Cgroup string

	// Files of the guest; empty: /dev/null. Output is appended. An empty Stderr
	// goes where Stdout goes.
	Stdin, Stdout, Stderr string
}

// StartProcess starts a program detached from the agent, leader of its own session,
// and returns its process id in the guest.
func (a *Agent) StartProcess(ctx context.Context, p Process) (pid int, err error) {
	r, err := a.do(ctx, proto.Request{
		Op: proto.OpSpawn, Argv: p.Argv, Env: p.Env, Dir: p.Dir, Cgroup: p.Cgroup,
		Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr,
	}, nil, nil, nil)
	return r.PID, err
}

// Put writes r to a file of the guest.
func (a *Agent) Put(ctx context.Context, path string, r io.Reader, mode os.FileMode) error {
	_, err := a.do(ctx, proto.Request{Op: proto.OpPut, Path: path, Mode: uint32(mode.Perm())}, r, nil, nil)
	return err
}

// Get copies a file of the guest to w.
func (a *Agent) Get(ctx context.Context, path string, w io.Writer) error {
	_, err := a.do(ctx, proto.Request{Op: proto.OpGet, Path: path}, nil, w, nil)
	return err
}

// PutTar unpacks a tar stream below dir, which it makes.
func (a *Agent) PutTar(ctx context.Context, dir string, r io.Reader) error {
	return a.tar(ctx, Cmd{Argv: []string{"sh", "-c", `mkdir -p "$1" && exec tar -C "$1" -xpf -`, "sh", dir}, Stdin: r})
}

// GetTar packs a directory of the guest into a tar stream.
func (a *Agent) GetTar(ctx context.Context, dir string, w io.Writer) error {
	return a.tar(ctx, Cmd{Argv: []string{"tar", "-C", dir, "-cf", "-", "."}, Stdout: w})
}

func (a *Agent) tar(ctx context.Context, c Cmd) error {
	var errout strings.Builder
	c.Stderr = &errout
	r, err := a.Run(ctx, c)
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		return fmt.Errorf("tar in the guest: %w: %s", err, strings.TrimSpace(errout.String()))
	}
	return nil
}
