package testvm

import (
	"context"
	"fmt"
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
	Agent
	config Config
	files  files
	qemu   *child
	tidy   *janitor
	booted time.Duration

	stopOnce sync.Once
	stopErr  error
}

// Boot starts a guest and waits until it takes commands. Stop ends it; so does the
// end of this process, in any way.
func Boot(ctx context.Context, c Config) (*VM, error) {
	c = c.withDefaults()
	img, err := c.image()
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	vm := &VM{config: c}
	if err := vm.start(ctx, img); err != nil {
		tail := vm.consoleTail(15)
		_ = vm.Stop()
		if tail != "" {
			return nil, fmt.Errorf("boot guest %s: %w\n%s", c.name(), err, tail)
		}
		return nil, fmt.Errorf("boot guest %s: %w", c.name(), err)
	}
	vm.booted = time.Since(begin)
	return vm, nil
}

func (vm *VM) start(ctx context.Context, img *Image) error {
	dir, err := filepath.Abs(vm.config.Dir)
	if err != nil {
		return err
	}
	if len(dir) > maxDir {
		return fmt.Errorf("%s: name too long for a directory of sockets (%d bytes, at most %d)", dir, len(dir), maxDir)
	}
	private, err := os.MkdirTemp(ramDir(vm.config.Memory), "ovm-")
	if err != nil {
		return err
	}
	vm.files = files{dir: private, ram: filepath.Join(private, "ram")}
	remove := []string{private}
	if vm.config.Dir != "" {
		// There, RAM is a link: the directory need not be on a file system in memory.
		vm.files.dir = dir
		link := filepath.Join(dir, "ram")
		if err := os.Symlink(vm.files.ram, link); err != nil {
			_ = os.RemoveAll(private)
			return err
		}
		remove = append(remove, link, vm.files.libraryQMP(), vm.files.harnessQMP(), vm.files.agent())
	}
	if vm.tidy, err = startJanitor(remove...); err != nil {
		_ = os.RemoveAll(private)
		return err
	}
	if vm.qemu, err = startChild(qemu(vm.config.arch()), qemuArgs(vm.config, img, vm.files)); err != nil {
		return err
	}
	if vm.conn, err = vm.dial(ctx, vm.files.agent()); err != nil {
		return err
	}
	vm.client = proto.NewClient(vm.conn)
	vm.why = func(err error) error {
		select {
		case <-vm.qemu.exited:
			return fmt.Errorf("%w (%w)", err, vm.qemu.failure())
		default:
			return err
		}
	}
	select {
	case <-vm.client.Ready():
		return nil
	case <-vm.qemu.exited:
		return vm.qemu.failure()
	case <-vm.client.Done():
		// Most likely because QEMU ended, which says more.
		select {
		case <-vm.qemu.exited:
			return vm.qemu.failure()
		case <-time.After(time.Second):
			return vm.client.Err()
		}
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
		if vm.conn != nil {
			_ = vm.conn.Close()
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

// RAMPath returns the file that is the guest's RAM, or "" if there is none.
func (vm *VM) RAMPath() string {
	if c := vm.config; c.AnonymousRAM || c.MemFD || c.NUMA {
		return ""
	}
	return vm.files.ram
}

// RAMTarget returns what vmi.Open takes for the guest's RAM, or "" if it is anonymous:
// RAMPath, and for an arm64 guest where it begins.
func (vm *VM) RAMTarget() string {
	path := vm.RAMPath()
	if path != "" && vm.config.arch() == "arm64" {
		path += "?base=1G"
	}
	return path
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
