package checkpoint

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ovmigrate/ovmigrate/criuimg"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/signal"
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
// On any error, and when ctx ends, the process runs again as if nothing had been;
// but for one that was delivered and could then not be killed: it stays held, for
// it may be running where it was delivered to.
// Errors: those of Capture and signal.Freeze, fs.ErrExist, and those of writing.
func Save(ctx context.Context, k *kernel.Kernel, pid kernel.PID, dir string, o *SaveOptions) (res *Result, err error) {
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
	if refused(issues) && !o.AllowIssues {
		return nil, &IssuesError{issues}
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
			if failed := h.release(clean); failed != nil {
				err = fmt.Errorf("%w; and the process could not be let go again: %w", err, failed)
			}
		}
	}()
	r.Hold = time.Since(start)

	if released, err = r.write(ctx, k, pid, d, o, h); err != nil {
		return nil, err
	}
	if err := d.Commit(); err != nil {
		return nil, err
	}
	r.Write = time.Since(start) - r.Hold - r.Pause - r.Release
	if released {
		r.Total = time.Since(start)
		return r, nil
	}
	if o.Deliver != nil {
		if err := o.Deliver(ctx, dir); err != nil {
			return nil, err
		}
	}
	letting := time.Now()
	if err := h.leave(ctx, t, o); err != nil {
		err = fmt.Errorf("images are in %s, but the process could not be %s: %w", dir, o.Leave, err)
		if o.Deliver != nil && o.Leave == LeaveKilled {
			// It may live elsewhere by now, and must not run twice.
			released = true
			err = fmt.Errorf("%w; it was delivered, and stays held here: end it in the guest with kill -9", err)
		}
		return nil, err
	}
	released = true
	r.Release = time.Since(letting)
	r.Total = time.Since(start)
	return r, nil
}

// releaseTimeout bounds how long a process may take to run again after a failure.
const releaseTimeout = 30 * time.Second

// write captures the process in a short pause of the guest, and then writes it
// while the guest runs on, and the process, too, if letGo says so.
func (r *Result) write(ctx context.Context, k *kernel.Kernel, pid kernel.PID, d *criuimg.Dir, o *SaveOptions, h holder) (letGo bool, err error) {
	opts := o.Options
	opts.stopIsOurs = h.stopIsOurs()
	s, letGo, err := r.capture(ctx, k, pid, &opts, o, h)
	if err != nil {
		return letGo, err
	}
	r.Threads, r.Bytes = s.Threads(), s.Bytes()
	r.Issues = append([]Issue{}, s.Issues()...) // an empty list in JSON, not null
	r.External, r.RestoreOptions = s.External(), s.RestoreOptions()
	if err := s.WriteImages(ctx, d, true); err != nil || letGo {
		return letGo, err
	}
	if err := h.verify(); err != nil {
		return false, fmt.Errorf("pid %d (%s) %w: %w", pid, r.Comm, ErrMoved, err)
	}
	return false, nil
}

// capture captures the process in a pause of the guest. A small process that is to
// run on is copied in that pause, and goes on when it ends: another pause to let it
// go would take longer.
func (r *Result) capture(ctx context.Context, k *kernel.Kernel, pid kernel.PID, opts *Options, o *SaveOptions, h holder) (s *Snapshot, letGo bool, err error) {
	begin := time.Now()
	end, err := h.pause(ctx)
	if err != nil {
		return nil, false, err
	}
	resume := sync.OnceValue(func() error {
		err := end()
		r.Pause = time.Since(begin)
		return err
	})
	defer func() { err = firstError(err, resume()) }()
	if s, err = Capture(ctx, k, pid, opts); err != nil {
		return nil, false, err
	}
	if o.Leave != "" && o.Leave != LeaveRunning || o.Deliver != nil || !s.keepable() {
		return s, false, nil
	}
	if err := s.keep(ctx); err != nil {
		return nil, false, err
	}
	if err := h.letGo(ctx, resume); err != nil {
		return nil, false, fmt.Errorf("pid %d (%s) could not be let go: %w", pid, r.Comm, err)
	}
	r.Release = time.Since(begin) - r.Pause
	return s, true, nil
}
