package testvm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

// child is a QEMU that cannot outlive this process.
type child struct {
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // valid once exited is closed
	stderr bytes.Buffer
}

// startChild starts a program that the kernel kills when we die, however we die.
// The kernel ties that to the thread that started the program, not to the process,
// so one thread is kept for it until the program ends.
func startChild(name string, args []string) (*child, error) {
	c := &child{cmd: exec.Command(name, args...), exited: make(chan struct{})}
	c.cmd.Stderr = &c.stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			c.err = c.cmd.Wait()
			close(c.exited)
		}
	}()
	if err := <-started; err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			err = fmt.Errorf("%s is not installed; run 'make deps'", name)
		}
		return nil, err
	}
	return c, nil
}

// failure says in one line why the program ended.
func (c *child) failure() error {
	lines := strings.Split(strings.TrimSpace(c.stderr.String()), "\n")
	return fmt.Errorf("%s ended: %w: %s", c.cmd.Args[0], errors.Join(c.err), lines[len(lines)-1])
}

// janitor removes paths once this process is gone, or when it is closed. It is a
// shell in a session of its own, waiting on a pipe that only we hold open: nothing
// short of killing both at once leaves the files, which are gigabytes of memory.
type janitor struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

func startJanitor(paths ...string) (*janitor, error) {
	j := &janitor{cmd: exec.Command("/bin/sh", append([]string{
		"-c", `trap "" HUP INT TERM; cat; exec rm -rf -- "$@"`, "ovm-janitor",
	}, paths...)...)}
	j.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	j.cmd.Dir = "/"
	var err error
	if j.pipe, err = j.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	// Not our standard output: who waits for its end must not wait for the janitor.
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	j.cmd.Stdout = null
	if err := j.cmd.Start(); err != nil {
		return nil, fmt.Errorf("janitor: %w", err)
	}
	return j, nil
}

// close removes the paths now.
func (j *janitor) close() error {
	_ = j.pipe.Close()
	return j.cmd.Wait()
}
