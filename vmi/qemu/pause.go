package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ovmigrate/ovmigrate/vmi/qmp"
)

// contTimeout bounds the command that lets the guest run again. It has its own
// time: a caller whose context has ended must not leave a stopped machine behind.
const contTimeout = 10 * time.Second

// onEvent keeps track of whether the guest runs, and notices a RESUME that is not
// ours. QEMU sends the event of a command before its answer.
func (g *Guest) onEvent(e qmp.Event) {
	switch e.Name {
	case "STOP":
		g.changes.Add(1)
		g.running.Store(false)
	case "RESUME":
		g.changes.Add(1)
		g.running.Store(true)
		if g.watch.Load() {
			g.foreign.Store(true)
		}
	}
}

// watchState finds out whether the guest runs, and is told of every change after.
func (g *Guest) watchState(ctx context.Context) error {
	g.removeHandler = g.qmp.OnEvent(g.onEvent)
	for {
		before := g.changes.Load()
		status, err := g.Status(ctx)
		if err != nil {
			return err
		}
		g.running.Store(status.Running)
		if g.changes.Load() == before { // else the answer may be older than an event
			return nil
		}
	}
}

// Pause implements [vmi.Pauser]. resume takes at most ten seconds, whatever became
// of ctx, and returns ErrResumed if somebody else let the guest run meanwhile. Close
// resumes, too; a program that is killed leaves the guest stopped, and "cont" in
// QEMU's monitor lets it run again.
func (g *Guest) Pause(ctx context.Context) (resume func() error, err error) {
	g.pauseMu.Lock()
	defer g.pauseMu.Unlock()
	if g.depth == 0 {
		if err := g.stop(ctx); err != nil {
			return nil, fmt.Errorf("pause: %w", err)
		}
	}
	g.depth++
	return sync.OnceValue(g.release), nil
}

// Continue implements [vmi.Continuer]. It is refused while a pause of ours is held.
func (g *Guest) Continue(ctx context.Context) error {
	g.pauseMu.Lock()
	defer g.pauseMu.Unlock()
	if g.depth > 0 {
		return errors.New("continue: the virtual machine is held paused")
	}
	return g.qmp.Execute(ctx, "cont", nil, nil)
}

// stop stops a guest that runs, and remembers whether it did. QEMU is not asked
// whether the guest runs: the answer would take as long as stopping it.
func (g *Guest) stop(ctx context.Context) error {
	if err := cmp.Or(ctx.Err(), g.qmp.Err()); err != nil {
		return err
	}
	g.foreign.Store(false)
	g.stopped = g.running.Load()
	if g.stopped {
		if err := g.qmp.Execute(ctx, "stop", nil, nil); err != nil {
			// The command may have been run without our seeing the answer.
			if refused := (*qmp.Error)(nil); !errors.As(err, &refused) {
				err = errors.Join(err, g.cont())
			}
			g.stopped = false
			return err
		}
	}
	g.watch.Store(true)
	return nil
}

func (g *Guest) release() error {
	g.pauseMu.Lock()
	defer g.pauseMu.Unlock()
	if g.depth == 0 { // Close was first
		return nil
	}
	g.depth--
	if g.depth > 0 {
		if g.foreign.Load() {
			return ErrResumed
		}
		return nil
	}
	return g.letRun()
}

func (g *Guest) releaseAll() error {
	g.pauseMu.Lock()
	defer g.pauseMu.Unlock()
	if g.depth == 0 {
		return nil
	}
	g.depth = 0
	return g.letRun()
}

// letRun ends the outermost pause.
func (g *Guest) letRun() error {
	g.watch.Store(false)
	var err error
	if g.stopped {
		g.stopped = false
		err = g.cont()
	}
	if g.foreign.Load() {
		err = errors.Join(ErrResumed, err)
	}
	return err
}

func (g *Guest) cont() error {
	if g.qmp.Err() != nil {
		return ErrGone
	}
	ctx, cancel := context.WithTimeout(context.Background(), contTimeout)
	defer cancel()
	if err := g.qmp.Execute(ctx, "cont", nil, nil); err != nil {
		if errors.Is(err, qmp.ErrClosed) {
			return fmt.Errorf("%w: %w", ErrGone, err)
		}
		return fmt.Errorf("the virtual machine may still be stopped: %w", err)
	}
	return nil
}
