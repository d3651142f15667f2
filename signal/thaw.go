package signal

import (
	"context"
	"errors"
	"fmt"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// Thaw lets the process go on, and returns when no thread is held any more. A
// process that has died meanwhile is a success. Thaw may be called again, after an
// error too; once it has succeeded it does nothing. It gives up after 10 s, or when
// ctx ends; pass a fresh context when cleaning up after a cancelled one.
func (f *Frozen) Thaw(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.thawed {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, defaultTimeout)
	defer cancel()
	if err := f.thaw(ctx); err != nil {
		return err
	}
	f.thawed = true
	return f.o.end()
}

func (f *Frozen) thaw(ctx context.Context) error { return f.thawBy(ctx, f.release) }

// thawBy is thaw whose first release is another.
func (f *Frozen) thawBy(ctx context.Context, release func(context.Context) (more bool, err error)) error {
	o := f.o
	var waiting string
	for more := true; more; release = f.release {
		var err error
		if more, err = release(ctx); err != nil {
			return err
		}
		err = waitFor(ctx, func() (ok bool, err error) {
			if !more {
				waiting, err = f.stillHeld()
			}
			if err != nil || waiting != "" {
				return false, err
			}
			return o.allLanded()
		}, func() error {
			if err := o.nudge(ctx); err != nil {
				return err
			}
			_, err := f.release(ctx)
			return err
		})
		if err != nil {
			// Leave nothing forged behind in the kernel's lists.
			err = o.timeout("thaw", waiting, "", err)
			fresh, cancel := context.WithTimeout(context.WithoutCancel(ctx), pauseLimit)
			defer cancel()
			return errors.Join(err, o.cancelWakes(fresh), o.afterKick())
		}
	}
	return errors.Join(o.settle(ctx), o.afterKick())
}

// ourThreads returns the threads that exist of those that were marked, or none if
// the process is gone.
func (f *Frozen) ourThreads() ([]*thread, error) {
	u := *f.leader
	if err := u.Refresh(); err != nil {
		if errors.Is(gone(&u, err), ErrExited) {
			return nil, nil
		}
		return nil, err
	}
	if u.ExitState != 0 && u.Sighand == 0 {
		return nil, nil
	}
	all, err := threadsOf(&u)
	if err != nil {
		return nil, err
	}
	var out []*thread
	for _, t := range all {
		if id, ok := f.ours[t.Addr]; ok && id == idOf(t.Task) {
			out = append(out, t)
		}
	}
	return out, nil
}

// release clears the mark of every thread and wakes those that are in the trap, as
// far as there is room for wake-ups; more says that there was not enough.
func (f *Frozen) release(ctx context.Context) (more bool, err error) {
	err = f.o.transact(ctx, func(ctx context.Context, p *plan) (err error) {
		more, err = f.planRelease(ctx, p)
		return err
	})
	return more, err
}

func (f *Frozen) planRelease(ctx context.Context, p *plan) (more bool, err error) {
	if err := f.o.planSettle(p); err != nil {
		return false, err
	}
	trapped, err := f.planUnmark(p)
	if err != nil {
		return false, err
	}
	served, err := f.o.planWake(ctx, p, trapped)
	return served < len(trapped), err
}

// planUnmark takes the marks off, and returns the threads that must be woken.
func (f *Frozen) planUnmark(p *plan) (trapped []*thread, err error) {
	threads, err := f.ourThreads()
	if err != nil || len(threads) == 0 {
		return nil, err
	}
	if err := f.o.sigLockFree(threads[0].Task); err != nil {
		return nil, err
	}
	for _, t := range threads {
		if t.JobCtl&jobctlTrapFreeze != 0 {
			if err := p.Set(t.w.JobCtl, 8, t.path("jobctl"), t.JobCtl&^jobctlTrapFreeze); err != nil {
				return nil, err
			}
		}
		// Not yet frozen and not asleep, it may have seen the mark and be about
		// to sleep.
		if t.canWake(kernel.TaskInterruptible) && (t.Frozen || !t.asleep(kernel.TaskInterruptible)) && !f.o.wakeUnderWay(t) {
			trapped = append(trapped, t)
		}
	}
	return trapped, nil
}

// stillHeld says which threads have not left the trap, "" for none.
func (f *Frozen) stillHeld() (string, error) {
	threads, err := f.ourThreads()
	if errors.Is(err, kernel.ErrCorrupt) {
		return "thread list in motion", nil
	}
	if err != nil {
		return "", err
	}
	for _, t := range threads {
		// A stopped thread and one that waits for its vfork child count as frozen
		// to the kernel (kernel/signal.c:do_signal_stop, kernel/fork.c).
		if t.Frozen && t.State&(kernel.TaskStopped|kernel.TaskUninterruptible) == 0 || t.JobCtl&jobctlTrapFreeze != 0 {
			return fmt.Sprintf("thread %d is still in the trap", t.PID), nil
		}
	}
	return "", nil
}
