package checkpoint

import (
	"context"
	"fmt"
	"time"

	"github.com/ovmigrate/ovmigrate/criuimg"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/signal"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// Leave says what becomes of the process in the guest once it has been saved.
type Leave string

// The fates.
const (
	LeaveRunning Leave = "running" // goes on; a copy was made
	LeaveStopped Leave = "stopped" // stays stopped, as by SIGSTOP
	LeaveKilled  Leave = "killed"  // ends, as by SIGKILL
)

// Hold says how the process is kept still while it is saved.
type Hold string

// The ways to hold a process.
const (
	// HoldFreeze is invisible: no state change that a parent could see.
	HoldFreeze Hold = "freeze"
	// HoldStop sends SIGSTOP, as the paper does; parents and shells notice.
	HoldStop Hold = "stop"
)

// SaveOptions are the options of Save.
type SaveOptions struct {
	Options
	Leave  Leave // "" is LeaveRunning
	Hold   Hold  // "" is HoldFreeze
	NoSync bool  // do not wait for the images to reach the disk
	Signal signal.Options

	// Deliver, if set, is called with the finished image set before the process
	// is let go. If it fails, the process runs on and Save returns the error.
	Deliver func(ctx context.Context, dir string) error
}

// Result is what Save did.
type Result struct {
	PID            kernel.PID    `json:"pid"`
	Comm           string        `json:"comm"`
	Dir            string        `json:"dir"`
	Threads        int           `json:"threads"`
	Bytes          int64         `json:"bytes"`
	Issues         []Issue       `json:"issues"`
	External       []string      `json:"external,omitempty"`
	RestoreOptions []string      `json:"restore_options,omitempty"`
	Hold           time.Duration `json:"hold_ns"`    // until every thread was held
	Pause          time.Duration `json:"pause_ns"`   // of the whole guest, while its structures were read
	Write          time.Duration `json:"write_ns"`   // images and memory
	Release        time.Duration `json:"release_ns"` // until the process was let go, stopped or gone
	Total          time.Duration `json:"total_ns"`
}

// Save holds a process of a live guest, writes its image set to dir, and leaves it
// as asked. dir must not exist, or be empty; nothing is left of it if Save fails.
// On any error, and when ctx ends, the process runs again as if nothing had been.
// Errors: those of Capture and signal.Freeze, fs.ErrExist, and those of writing.
func Save(ctx context.Context, k *kernel.Kernel, pid kernel.PID, dir string, o *SaveOptions) (*Result, error) {
	if o == nil {
		o = &SaveOptions{}
	}
	start := time.Now()
	t, err := process(k, pid)
	if err != nil {
		return nil, err
	}
	// Everything that can be refused is refused before the process notices.
	issues, err := Check(ctx, k, pid, &o.Options)
	if err != nil {
		return nil, err
	}
	if e := (&IssuesError{issues}); e.refused() && !o.AllowIssues {
		return nil, e
	}
	d, err := criuimg.CreateWith(dir, criuimg.DirOptions{NoSync: o.NoSync})
	if err != nil {
		return nil, err
	}
	defer d.Abort()

	r := &Result{PID: t.PID, Comm: t.Comm, Dir: dir}
	h, err := hold(ctx, t, o)
	if err != nil {
		return nil, err
	}
	// Whatever happens from here on, the process does not stay held.
	released := false
	defer func() {
		if !released {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
			defer cancel()
			h.release(clean)
		}
	}()
	r.Hold = time.Since(start)

	if err := r.write(ctx, k, pid, d, o, h); err != nil {
		return nil, err
	}
	if err := d.Commit(); err != nil {
		return nil, err
	}
	r.Write = time.Since(start) - r.Hold - r.Pause
	if o.Deliver != nil {
		if err := o.Deliver(ctx, dir); err != nil {
			return nil, err
		}
	}
	letting := time.Now()
	if err := h.leave(ctx, t, o); err != nil {
		return nil, fmt.Errorf("images are in %s, but the process could not be %s: %w", dir, o.Leave, err)
	}
	released = true
	r.Release = time.Since(letting)
	r.Total = time.Since(start)
	return r, nil
}

// releaseTimeout bounds how long a process may take to run again after a failure.
const releaseTimeout = 30 * time.Second

// write captures the process in a short pause of the guest, and then writes it
// while the guest runs on.
func (r *Result) write(ctx context.Context, k *kernel.Kernel, pid kernel.PID, d *criuimg.Dir, o *SaveOptions, h holder) error {
	paused := time.Now()
	s, err := capturePaused(ctx, k, pid, &o.Options)
	r.Pause = time.Since(paused)
	if err != nil {
		return err
	}
	r.Threads, r.Bytes = s.Threads(), s.Bytes()
	r.Issues, r.External, r.RestoreOptions = s.Issues(), s.External(), s.RestoreOptions()
	if err := s.WriteImages(ctx, d, true); err != nil {
		return err
	}
	if err := h.verify(); err != nil {
		return fmt.Errorf("pid %d (%s) %w: %w", pid, r.Comm, ErrMoved, err)
	}
	return nil
}

func capturePaused(ctx context.Context, k *kernel.Kernel, pid kernel.PID, o *Options) (*Snapshot, error) {
	if p, ok := k.Memory().(vmi.Pauser); ok {
		resume, err := p.Pause(ctx)
		if err != nil {
			return nil, err
		}
		defer resume()
	}
	return Capture(ctx, k, pid, o)
}

// holder is a process that is held.
type holder interface {
	verify() error
	leave(ctx context.Context, t *kernel.Task, o *SaveOptions) error
	release(ctx context.Context)
}

func hold(ctx context.Context, t *kernel.Task, o *SaveOptions) (holder, error) {
	if o.Hold == HoldStop {
		return holdByStop(ctx, t, o)
	}
	f, err := signal.Freeze(ctx, t, &signal.FreezeOptions{Timeout: o.Signal.Timeout, Logger: o.Signal.Logger})
	if err != nil {
		return nil, err
	}
	return &frozen{f}, nil
}

// frozen is held by the invisible freeze.
type frozen struct{ f *signal.Frozen }

func (h *frozen) verify() error { return h.f.Verify() }

func (h *frozen) release(ctx context.Context) { h.f.Thaw(ctx) }

func (h *frozen) leave(ctx context.Context, t *kernel.Task, o *SaveOptions) error {
	switch o.Leave {
	case LeaveKilled:
		// A fatal signal ends a frozen process without a further step of it.
		_, err := signal.Kill(ctx, t, &o.Signal)
		return err
	case LeaveStopped:
		// The signal waits until the thaw, and then comes first.
		sig := o.Signal
		if _, err := signal.Stop(ctx, t, &sig); err != nil {
			return err
		}
		return h.f.Thaw(ctx)
	}
	return h.f.Thaw(ctx)
}

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
		h.release(context.WithoutCancel(ctx))
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

func (h *stopped) verify() error {
	sw, err := switches(h.t)
	if err == nil && sw != h.sw {
		err = fmt.Errorf("a thread ran")
	}
	return err
}

func (h *stopped) release(ctx context.Context) {
	if !h.was {
		signal.Continue(ctx, h.t, &h.sig)
	}
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
