package signal

import (
	"context"
	"errors"
	"fmt"
)

// Pause stops the guest at a moment when every thread of the process is in the trap
// and off its processor, so that what the kernel knows of it can be read as of one
// moment. A signal wakes a held thread, which finds itself held and goes back to
// sleep: the guest then runs on until it has. resume lets the guest run; it must be
// called on every path, and may be called more than once. The error is ErrNotHeld,
// or that of vmi.Pauser.
func (f *Frozen) Pause(ctx context.Context) (resume func() error, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.thawed {
		return nil, fmt.Errorf("pid %d: %w: it was thawed", f.leader.PID, ErrNotHeld)
	}
	ctx, cancel := context.WithTimeout(ctx, trapReentry)
	defer cancel()
	err = waitFor(ctx, func() (bool, error) {
		if resume, err = f.o.pauseGuest(ctx); err != nil {
			return false, err
		}
		held, err := f.pausedWhileHeld(ctx)
		if err != nil || !held {
			err = errors.Join(err, resume())
		}
		return held && err == nil, err
	}, nil)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("pid %d: %w: threads kept leaving the trap", f.leader.PID, ErrNotHeld)
		}
		return nil, err
	}
	return resume, nil
}

// pausedWhileHeld says whether all threads are held, now that the guest is paused,
// and gives back what the wake-ups of Freeze have used.
func (f *Frozen) pausedWhileHeld(ctx context.Context) (bool, error) {
	u := *f.leader
	if err := u.Refresh(); err != nil {
		return false, fmt.Errorf("pid %d: %w: %w", u.PID, ErrNotHeld, err)
	}
	_, waiting, err := heldThreads(&u, f.others)
	if err != nil || waiting != "" {
		return false, err
	}
	return true, f.o.settle(ctx)
}

// ThawPaused is Thaw for a guest that is paused by Pause: the process is let go in
// that same pause, which resume then ends. resume is called on every path.
func (f *Frozen) ThawPaused(ctx context.Context, resume func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.thawed {
		return resume()
	}
	err := f.thawBy(ctx, func(ctx context.Context) (more bool, err error) {
		err = f.o.pausedOnce(ctx, f.o.carryOut(func(ctx context.Context, p *plan) (err error) {
			more, err = f.planRelease(ctx, p)
			return err
		}))
		if resumeErr := resume(); resumeErr != nil {
			return false, errors.Join(err, resumeErr)
		}
		if err != nil { // a lock is held just now: let the guest run, and try again
			return f.release(ctx)
		}
		return more, nil
	})
	if err != nil {
		return err
	}
	f.thawed = true
	return f.o.end()
}
