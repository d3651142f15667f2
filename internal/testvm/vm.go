package testvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/ovmigrate/ovmigrate/internal/testvm/proto"
)

// VM is a running guest. Its methods are safe for concurrent use.
type VM struct {
	config Config
	files  files
	qemu   *child
	tidy   *janitor
	agent  net.Conn
	client *proto.Client
	booted time.Duration

	stopOnce sync.Once
	stopErr  error
}

// Boot starts a guest and waits until it takes commands. Stop ends it; so does the
// end of this process, in any way.
func Boot(ctx context.Context, c Config) (*VM, error) {
	c = c.withDefaults()
	img, err := FindImage(c.Suite)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	vm := &VM{config: c}
	if err := vm.start(ctx, img); err != nil {
		tail := vm.consoleTail(15)
		_ = vm.Stop()
		if tail != "" {
			return nil, fmt.Errorf("boot guest %s: %w\n%s", c.Suite, err, tail)
		}
		return nil, fmt.Errorf("boot guest %s: %w", c.Suite, err)
	}
	vm.booted = time.Since(begin)
	return vm, nil
}

func (vm *VM) start(ctx context.Context, img *Image) error {
	private, err := os.MkdirTemp(ramDir(), "ovm-")
	if err != nil {
		return err
	}
	vm.files = files{dir: vm.config.Dir, ram: filepath.Join(private, "ram")}
	remove := []string{private}
	if vm.files.dir == "" {
		vm.files.dir = private
	} else {
		if vm.files.dir, err = filepath.Abs(vm.files.dir); err == nil {
			// A name below the directory that the user knows.
			err = os.Symlink(vm.files.ram, filepath.Join(vm.files.dir, "ram"))
		}
		remove = append(remove, filepath.Join(vm.files.dir, "ram"),
			vm.files.libraryQMP(), vm.files.harnessQMP(), vm.files.agent())
	}
	if err != nil {
		_ = os.RemoveAll(private)
		return err
	}
	if len(vm.files.dir) > maxDir {
		_ = os.RemoveAll(private)
		return fmt.Errorf("%s: name too long for a directory of sockets (%d bytes, at most %d)",
			vm.files.dir, len(vm.files.dir), maxDir)
	}
	if vm.tidy, err = startJanitor(remove...); err != nil {
		_ = os.RemoveAll(private)
		return err
	}
	if vm.qemu, err = startChild("qemu-system-x86_64", qemuArgs(vm.config, img, vm.files)); err != nil {
		return err
	}
	if vm.agent, err = vm.dial(ctx, vm.files.agent()); err != nil {
		return err
	}
	vm.client = proto.NewClient(vm.agent)
	select {
	case <-vm.client.Ready():
		return nil
	case <-vm.qemu.exited:
		return vm.qemu.failure()
	case <-vm.client.Done():
		return vm.client.Err()
	case <-ctx.Done():
		return fmt.Errorf("the agent did not answer: %w", ctx.Err())
	}
}

// dial connects to a socket that QEMU is about to make.
func (vm *VM) dial(ctx context.Context, path string) (net.Conn, error) {
	for {
		c, err := net.Dial("unix", path)
		if err == nil {
			return c, nil
		}
		select {
		case <-vm.qemu.exited:
			return nil, vm.qemu.failure()
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w", path, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Stop kills the guest and removes its files. It may be called more than once.
func (vm *VM) Stop() error {
	vm.stopOnce.Do(func() {
		if vm.agent != nil {
			_ = vm.agent.Close()
		}
		if vm.qemu != nil {
			_ = vm.qemu.cmd.Process.Kill()
			<-vm.qemu.exited
		}
		if vm.tidy != nil {
			vm.stopErr = vm.tidy.close()
		}
	})
	return vm.stopErr
}

// Exited is closed when QEMU has ended.
func (vm *VM) Exited() <-chan struct{} { return vm.qemu.exited }

// Config returns the configuration, defaults filled in.
func (vm *VM) Config() Config { return vm.config }

// PID returns the process id of QEMU.
func (vm *VM) PID() int { return vm.qemu.cmd.Process.Pid }

// RAMPath returns the file that is the guest's RAM, or "" if it is anonymous.
func (vm *VM) RAMPath() string {
	if vm.config.AnonymousRAM {
		return ""
	}
	return vm.files.ram
}

// QMPSocket returns the monitor socket meant for the code under test. QEMU serves
// one connection to it at a time.
func (vm *VM) QMPSocket() string { return vm.files.libraryQMP() }

// HarnessQMPSocket returns a second monitor socket, for the test itself.
func (vm *VM) HarnessQMPSocket() string { return vm.files.harnessQMP() }

// BootTime returns how long Boot took.
func (vm *VM) BootTime() time.Duration { return vm.booted }

// Console returns what the guest has written to its serial console.
func (vm *VM) Console() string {
	path := vm.config.Console
	if path == "" {
		path = vm.files.console()
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}

func (vm *VM) consoleTail(n int) string {
	lines := strings.Split(strings.TrimSpace(vm.Console()), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
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
func (vm *VM) Run(ctx context.Context, c Cmd) (Result, error) {
	r, err := vm.do(ctx, proto.Request{
		Op: proto.OpExec, Argv: c.Argv, Env: c.Env, Dir: c.Dir, Cgroup: c.Cgroup,
	}, c.Stdin, c.Stdout, c.Stderr)
	return Result{PID: r.PID, Code: r.Code, Signal: r.Signal}, err
}

func (vm *VM) do(ctx context.Context, req proto.Request, stdin io.Reader, stdout, stderr io.Writer) (proto.Response, error) {
	r, err := vm.client.Do(ctx, req, stdin, stdout, stderr)
	if err == nil && r.Err != "" {
		err = errors.New("guest: " + r.Err)
	}
	if err != nil && vm.qemu != nil {
		select {
		case <-vm.qemu.exited:
			err = fmt.Errorf("%w (%w)", err, vm.qemu.failure())
		default:
		}
	}
	return r, err
}

// Exec runs a command and returns its standard output. A command that fails is an
// error that carries the end of its error output.
func (vm *VM) Exec(ctx context.Context, argv ...string) ([]byte, error) {
	var out, errout strings.Builder
	r, err := vm.Run(ctx, Cmd{Argv: argv, Stdout: &out, Stderr: &errout})
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
func (vm *VM) StartProcess(ctx context.Context, p Process) (pid int, err error) {
	r, err := vm.do(ctx, proto.Request{
		Op: proto.OpSpawn, Argv: p.Argv, Env: p.Env, Dir: p.Dir, Cgroup: p.Cgroup,
		Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr,
	}, nil, nil, nil)
	return r.PID, err
}

// Put writes r to a file of the guest.
func (vm *VM) Put(ctx context.Context, path string, r io.Reader, mode os.FileMode) error {
	_, err := vm.do(ctx, proto.Request{Op: proto.OpPut, Path: path, Mode: uint32(mode.Perm())}, r, nil, nil)
	return err
}

// Get copies a file of the guest to w.
func (vm *VM) Get(ctx context.Context, path string, w io.Writer) error {
	_, err := vm.do(ctx, proto.Request{Op: proto.OpGet, Path: path}, nil, w, nil)
	return err
}

// PutTar unpacks a tar stream below dir, which it makes.
func (vm *VM) PutTar(ctx context.Context, dir string, r io.Reader) error {
	return vm.tar(ctx, Cmd{Argv: []string{"sh", "-c", `mkdir -p "$1" && exec tar -C "$1" -xpf -`, "sh", dir}, Stdin: r})
}

// GetTar packs a directory of the guest into a tar stream.
func (vm *VM) GetTar(ctx context.Context, dir string, w io.Writer) error {
	return vm.tar(ctx, Cmd{Argv: []string{"tar", "-C", dir, "-cf", "-", "."}, Stdout: w})
}

func (vm *VM) tar(ctx context.Context, c Cmd) error {
	var errout strings.Builder
	c.Stderr = &errout
	r, err := vm.Run(ctx, c)
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		return fmt.Errorf("tar in the guest: %w: %s", err, strings.TrimSpace(errout.String()))
	}
	return nil
}
