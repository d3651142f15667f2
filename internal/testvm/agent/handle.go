package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/ovmigrate/ovmigrate/internal/testvm/proto"
)

// drain is how long output may stay silent after its process ended before we stop
// waiting for the other holders of the pipe (a daemon that it started).
const drain = 300 * time.Millisecond

func handle(ctx context.Context, req proto.Request, stdin io.Reader, stdout, stderr io.Writer) proto.Response {
	var r proto.Response
	var err error
	switch req.Op {
	case proto.OpExec:
		r, err = run(ctx, req, stdin, stdout, stderr)
	case proto.OpSpawn:
		r, err = spawn(req)
	case proto.OpPut:
		err = put(req, stdin)
	case proto.OpGet:
		err = get(req, stdout)
	default:
		err = errors.New("unknown operation " + string(req.Op))
	}
	if err != nil {
		r.Err = err.Error()
	}
	return r
}

func command(req proto.Request) (*exec.Cmd, func(), error) {
	if len(req.Argv) == 0 {
		return nil, nil, errors.New("no command")
	}
	cmd := exec.Command(req.Argv[0], req.Argv[1:]...)
	cmd.Env = append(os.Environ(), req.Env...)
	cmd.Dir = req.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if req.Cgroup == "" {
		return cmd, func() {}, nil
	}
	dir := filepath.Join("/sys/fs/cgroup", req.Cgroup)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, nil, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(d.Fd())
	return cmd, func() { d.Close() }, nil
}

func run(ctx context.Context, req proto.Request, stdin io.Reader, stdout, stderr io.Writer) (proto.Response, error) {
	cmd, release, err := command(req)
	if err != nil {
		return proto.Response{}, err
	}
	defer release()
	in, err := cmd.StdinPipe()
	if err != nil {
		return proto.Response{}, err
	}
	var wg sync.WaitGroup
	var readers []*os.File
	var writers []*os.File
	for _, dst := range []io.Writer{stdout, stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return proto.Response{}, err
		}
		defer r.Close()
		readers, writers = append(readers, r), append(writers, w)
		if len(writers) == 1 {
			cmd.Stdout = w
		} else {
			cmd.Stderr = w
		}
		_ = dst
	}
	err = cmd.Start()
	for _, w := range writers {
		w.Close()
	}
	if err != nil {
		return proto.Response{}, err
	}
	go func() {
		_, _ = io.Copy(in, stdin) // the process may close its input early
		in.Close()
	}()
	exited := make(chan struct{})
	for i, dst := range []io.Writer{stdout, stderr} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			pump(dst, readers[i], exited)
		}()
	}
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	err = cmd.Wait()
	stop()
	close(exited)
	for _, r := range readers {
		_ = r.SetReadDeadline(time.Now().Add(drain))
	}
	wg.Wait()
	return status(cmd, err)
}

// pump copies until the end of r or, once the process has exited, until r has been
// silent for a while.
func pump(dst io.Writer, r *os.File, exited <-chan struct{}) {
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return
			}
			select {
			case <-exited:
				_ = r.SetReadDeadline(time.Now().Add(drain))
			default:
			}
		}
		if err != nil {
			return
		}
	}
}

func status(cmd *exec.Cmd, err error) (proto.Response, error) {
	r := proto.Response{PID: cmd.Process.Pid}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return r, err
	}
	ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		r.Signal = int(ws.Signal())
	} else {
		r.Code = ws.ExitStatus()
	}
	return r, nil
}

// spawn starts a process that outlives the request, with nothing of the agent's:
// its own session, no terminal, the files that the request names.
func spawn(req proto.Request) (proto.Response, error) {
	cmd, release, err := command(req)
	if err != nil {
		return proto.Response{}, err
	}
	defer release()
	files := [3]*os.File{}
	for i, name := range []string{req.Stdin, req.Stdout, req.Stderr} {
		if i == 2 && name == "" {
			files[2] = files[1]
			continue
		}
		flags := os.O_WRONLY | os.O_APPEND | os.O_CREATE
		if i == 0 {
			flags = os.O_RDONLY
		}
		if name == "" {
			name, flags = os.DevNull, os.O_RDWR
		}
		if files[i], err = os.OpenFile(name, flags, 0o644); err != nil {
			return proto.Response{}, err
		}
		defer files[i].Close()
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[1], files[2]
	if err := cmd.Start(); err != nil {
		return proto.Response{}, err
	}
	go func() { _ = cmd.Wait() }()
	return proto.Response{PID: cmd.Process.Pid}, nil
}

func put(req proto.Request, stdin io.Reader) error {
	mode := os.FileMode(req.Mode).Perm()
	if mode == 0 {
		mode = 0o644
	}
	f, err := os.OpenFile(req.Path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	if _, err = io.CopyBuffer(f, struct{ io.Reader }{stdin}, make([]byte, 256<<10)); err != nil {
		f.Close()
		return err
	}
	if err := f.Chmod(mode); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

func get(req proto.Request, stdout io.Writer) error {
	f, err := os.Open(req.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyBuffer(stdout, struct{ io.Reader }{f}, make([]byte, 256<<10))
	return err
}
