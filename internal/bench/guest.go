package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/sources"
)

// bootTimeout bounds booting, and making the guest busy.
const bootTimeout = 3 * time.Minute

// guest is a guest with its kernel open for writing, and 100 processes in it.
type guest struct {
	*testvm.VM
	suite string
	mem   vmi.Image
	k     *kernel.Kernel
}

func (b *bench) boot(c testvm.Config) (*guest, error) {
	ctx, cancel := context.WithTimeout(b.ctx, bootTimeout)
	defer cancel()
	fmt.Fprintf(os.Stderr, "bench: %s boots with %d MiB ...\n", c.Suite, c.Memory>>20)
	vm, err := testvm.Boot(ctx, c)
	if err != nil {
		return nil, err
	}
	g := &guest{VM: vm, suite: c.Suite}
	if err := g.prepare(ctx, b); err != nil {
		g.close()
		return nil, fmt.Errorf("%s: %w", c.Suite, err)
	}
	return g, nil
}

func (g *guest) prepare(ctx context.Context, b *bench) (err error) {
	for _, f := range []string{b.inside, b.mem, b.many} {
		r, err := os.Open(f)
		if err != nil {
			return err
		}
		err = g.Put(ctx, "/opt/"+filepath.Base(f), r, 0o755)
		r.Close()
		if err != nil {
			return err
		}
	}
	if _, err := g.Exec(ctx, "/opt/ovm/busy.sh"); err != nil {
		return err
	}
	return g.open(ctx)
}

func (g *guest) open(ctx context.Context) (err error) {
	if g.mem, err = vmi.Open(ctx, "qmp:"+g.QMPSocket(), &vmi.Options{Writable: true}); err != nil {
		return err
	}
	g.k, err = kernel.Open(ctx, g.mem, nil)
	return err
}

// lend leaves the monitor socket, which serves one client, to f.
func (g *guest) lend(f func() error) error {
	if err := g.mem.Close(); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	return g.open(context.Background())
}

func (g *guest) close() {
	if g.mem != nil {
		_ = g.mem.Close()
	}
	_ = g.Stop()
}

// start starts a program and waits until it has printed something.
func (g *guest) start(ctx context.Context, argv ...string) (kernel.PID, error) {
	const out = "/root/bench-output"
	if _, err := g.Exec(ctx, "rm", "-f", out); err != nil {
		return 0, err
	}
	pid, err := g.StartProcess(ctx, testvm.Process{Argv: argv, Stdout: out, Dir: "/"})
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	err = testvm.Wait(ctx, strings.Join(argv, " "), func() (bool, error) {
		r, err := g.Run(ctx, testvm.Cmd{Argv: []string{"test", "-s", out}})
		return r.Code == 0, err
	})
	return kernel.PID(pid), err
}

func (g *guest) kill(pid kernel.PID) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, _ = g.Exec(ctx, "kill", "-9", strconv.Itoa(int(pid)))
}

// name is what the table calls the guest.
func (g *guest) name() string {
	release, _, _ := strings.Cut(g.k.Release(), "-")
	return "guest " + release
}
