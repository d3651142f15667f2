package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/signal"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// holder is a process that is held.
type holder interface {
	stopIsOurs() bool // the process is in a stop that it was not in before
	// pause stops the guest at a moment when every thread is off its processor.
	pause(ctx context.Context) (resume func() error, err error)
	// letGo lets the process go on in a pause, which it ends.
	letGo(ctx context.Context, resume func() error) error
	verify() error
	leave(ctx context.Context, t *kernel.Task, o *SaveOptions) error
	// release lets the process go after a failure.
	release(ctx context.Context) error
}

func hold(ctx context.Context, t *kernel.Task, o *SaveOptions) (holder, error) {
	if o.Hold == HoldStop {
		return holdByStop(ctx, t, o)
	}
	f, err := signal.Freeze(ctx, t, &signal.FreezeOptions{Timeout: o.Signal.Timeout, Logger: o.Signal.Logger, ForPause: true})
	if err != nil {
		return nil, err
	}
	return &frozen{f}, nil
}

// frozen is held by the invisible freeze.
type frozen struct{ f *signal.Frozen }

func (h *frozen) stopIsOurs() bool { return false }

func (h *frozen) pause(ctx context.Context) (func() error, error) { return h.f.Pause(ctx) }

func (h *frozen) letGo(ctx context.Context, resume func() error) error {
	return h.f.ThawPaused(ctx, resume)
}

func (h *frozen) verify() error { return h.f.Verify() }

func (h *frozen) release(ctx context.Context) error { return h.f.Thaw(ctx) }

func (h *frozen) leave(ctx context.Context, t *kernel.Task, o *SaveOptions) error {
	switch o.Leave {
	case LeaveKilled:
		// A fatal signal ends a frozen process without a further step of it.
		_, err := signal.Kill(ctx, t, &o.Signal)
		return err
	case LeaveStopped:
		return h.thawStopped(ctx, t, o)
	}
	return h.f.Thaw(ctx)
}

// thawStopped thaws the process into a stop: the signal waits in the queue while
// the process is held, and acts before the program does anything else.
func (h *frozen) thawStopped(ctx context.Context, t *kernel.Task, o *SaveOptions) error {
	sig := o.Signal
	stopped := make(chan error, 1)
	go func() {
		_, err := signal.Stop(ctx, t, &sig)
		stopped <- err
	}()
	tick := time.NewTicker(queuePoll)
	defer tick.Stop()
	for queued := false; !queued; {
		select {
		case err := <-stopped: // it was stopped before, or cannot be
			if err != nil {
				return err
			}
			return h.f.Thaw(ctx)
		case <-tick.C:
		}
		pending, err := t.PendingProcess()
		if err != nil && !errors.Is(err, kernel.ErrCorrupt) { // the guest is at it
			return errors.Join(err, <-stopped)
		}
		queued = slices.ContainsFunc(pending, func(p kernel.PendingSignal) bool { return p.Signo == sigstop })
	}
	return errors.Join(h.f.Thaw(ctx), <-stopped)
}

// queuePoll is how often the queue is looked at for a signal on its way.
const queuePoll = time.Millisecond

// stopped is held by SIGSTOP.
type stopped struct {
	t   *kernel.Task
	was bool // stopped before we came
	sig signal.Options
	sw  uint64 // context switches of all threads when it was stopped
}

func holdByStop(ctx context.Context, t *kernel.Task, o *SaveOptions) (holder, error) {
	h := &stopped{t: t, sig: o.Signal, was: t.StateChar() == 'T'}
	if _, err := signal.Stop(ctx, t, &o.Signal); err != nil {
		return nil, err
	}
	sw, err := switches(t)
	if err != nil {
		err = errors.Join(err, h.release(context.WithoutCancel(ctx)))
		return nil, err
	}
	h.sw = sw
	return h, nil
}

// switches counts how often the process's threads left the CPU: an equal number
// later proves that none has run in between.
func switches(t *kernel.Task) (uint64, error) {
	var n uint64
	for u, err := range t.Threads() {
		if err != nil {
			return 0, err
		}
		n += u.NVCSW + u.NIVCSW + 1<<40 // and count the threads
	}
	return n, nil
}

func (h *stopped) stopIsOurs() bool { return !h.was }

// A stopped thread stays off its processor: only SIGCONT and SIGKILL wake it.
func (h *stopped) pause(ctx context.Context) (func() error, error) {
	return h.t.Kernel().Memory().(vmi.Pauser).Pause(ctx)
}

func (h *stopped) letGo(ctx context.Context, resume func() error) error {
	if err := resume(); err != nil || h.was {
		return err
	}
	_, err := signal.Continue(ctx, h.t, &h.sig)
	return err
}

func (h *stopped) verify() error {
	sw, err := switches(h.t)
	if err == nil && sw != h.sw {
		err = fmt.Errorf("a thread ran")
	}
	return err
}

func (h *stopped) release(ctx context.Context) error {
	if h.was {
		return nil
	}
	_, err := signal.Continue(ctx, h.t, &h.sig)
	return err
}

func (h *stopped) leave(ctx context.Context, t *kernel.Task, o *SaveOptions) error {
	switch o.Leave {
	case LeaveKilled:
		_, err := signal.Kill(ctx, t, &o.Signal)
		return err
	case LeaveStopped:
		return nil
	}
	if h.was {
		return nil
	}
	_, err := signal.Continue(ctx, t, &o.Signal)
	return err
}
