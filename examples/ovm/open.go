package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/kernel/debugfile"
	"github.com/ovmigrate/ovmigrate/kernel/locate"
	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/sources"
)

// need says what a command wants to do with the guest.
type need int

const (
	needRead  need = iota
	needWrite      // to change the guest's memory
	needUndo       // to change it although a program was killed that did
)

// guest is an opened guest: its memory and the kernel found in it.
type guest struct {
	*kernel.Kernel
	image vmi.Image
	files []*debugfile.File
}

func (g *guest) Close() error {
	for _, f := range g.files {
		_ = f.Close()
	}
	return g.image.Close()
}

// open opens the guest that -g names. The caller closes it, on every path: that
// also lets a paused guest run again.
func (a *app) open(ctx context.Context, n need) (*guest, error) {
	a.readOnly = n == needRead
	if a.guest == "" {
		return nil, usagef("which guest? give -g GUEST")
	}
	log := a.logger()
	image, err := vmi.Open(ctx, a.guest, &vmi.Options{Writable: n != needRead, Logger: log})
	if err != nil {
		return nil, a.openError(n, err)
	}
	g := &guest{image: image}
	if err := a.openFiles(g); err != nil {
		g.Close()
		return nil, err
	}
	if g.Kernel, err = kernel.Open(ctx, image, &kernel.Options{Logger: log, Debug: g.files}); err != nil {
		g.Close()
		return nil, a.openError(n, err)
	}
	if err := a.openJournal(g, n); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// openFiles opens the files of the kernel that the user gave.
func (a *app) openFiles(g *guest) error {
	for _, given := range []struct {
		path      string
		systemMap bool
	}{{a.vmlinux, false}, {a.systemMap, true}} {
		if given.path == "" {
			continue
		}
		f, err := debugfile.Open(given.path)
		if err != nil {
			return err
		}
		g.files = append(g.files, f)
		if isMap := f.Kind == debugfile.SystemMap; isMap != given.systemMap {
			return fmt.Errorf("%s: is a %s", given.path, f.Kind)
		}
	}
	return nil
}

// openError names the guest, and says what to do about what users meet most.
func (a *app) openError(n need, err error) error {
	switch {
	case errors.Is(err, os.ErrPermission) && n != needRead:
		return fmt.Errorf("%w (this command needs to write to the guest's memory)", err)
	case errors.Is(err, locate.ErrNoKernel):
		return fmt.Errorf("%s: %w", a.guest, err)
	}
	return err
}

// with opens the guest, calls f and closes it.
func (a *app) with(ctx context.Context, n need, f func(g *guest) error) (err error) {
	g, err := a.open(ctx, n)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := g.Close(); err == nil {
			err = cerr
		}
	}()
	return f(g)
}

// process opens the guest, finds the process or thread that arg names and calls f.
func (a *app) process(ctx context.Context, n need, arg string, f func(g *guest, t *kernel.Task) error) error {
	pid, err := parsePID(arg)
	if err != nil {
		return err
	}
	return a.with(ctx, n, func(g *guest) error {
		t, err := g.Task(pid)
		if err != nil {
			return err
		}
		return f(g, t)
	})
}

// about puts the process that err is about before it, unless it names it already.
func about(t *kernel.Task, err error) error {
	if strings.HasPrefix(err.Error(), "pid ") {
		return err
	}
	return fmt.Errorf("pid %d (%s): %w", t.PID, t.Comm, err)
}
