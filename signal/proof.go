package signal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// prove waits until the effect of sig shows in the process's state. It only reads,
// and the guest runs meanwhile. What it waits for is never a word that this
// package writes itself.
func (o *op) prove(ctx context.Context, t *kernel.Task, sig Signal) error {
	var see func() (bool, string, error)
	switch sig {
	case SIGSTOP:
		see = func() (bool, string, error) { return seeStopped(t, nil) }
	case SIGCONT:
		see = func() (bool, string, error) { return o.seeContinued(t) }
	case SIGKILL:
		see = func() (bool, string, error) { return o.seeDead(t) }
	default:
		o.report.Latency = time.Since(o.resumed)
		if o.report.Effect == "" {
			o.report.Effect = "the kernel has taken the signal"
		}
		return nil
	}
	written := o.resumed
	var last string
	err := waitFor(ctx, func() (bool, error) {
		ok, seen, err := see()
		last = seen
		return ok, err
	}, nil)
	if err != nil {
		return o.timeout(sig.String(), last, "the signal is pending and acts when the sleep ends", err)
	}
	o.report.Latency = time.Since(written)
	o.report.Effect = last
	return nil
}

// seeStopped says whether every thread is stopped and off its processor. A frozen
// process that has the signal is as good as stopped: the trap lets go of a thread
// right before the point where it takes signals.
func seeStopped(t *kernel.Task, m members) (bool, string, error) {
	u := *t
	if err := u.Refresh(); err != nil {
		return false, "", gone(t, err)
	}
	if exited(&u) {
		return false, "", &RefusedError{t.PID, t.Comm, ErrExited}
	}
	stopped, others, err := stopState(&u, m)
	if errors.Is(err, kernel.ErrCorrupt) {
		return false, "thread list in motion", nil
	}
	if err != nil {
		return false, "", err
	}
	if stopped == all {
		return true, "every thread is in state T", nil
	}
	if frozen, err := allHeld(&u); err != nil || frozen {
		return frozen, "every thread is frozen, and stops before it does anything else", err
	}
	return false, others, nil
}

// allHeld says whether every thread is held by Freeze, or the guest's own freezer.
func allHeld(t *kernel.Task) (bool, error) {
	_, waiting, err := heldThreads(t, nil)
	return waiting == "" && err == nil, err
}

// seeContinued says whether the kernel has woken every thread and told the parent.
func (o *op) seeContinued(t *kernel.Task) (bool, string, error) {
	u := *t
	if err := u.Refresh(); err != nil {
		return false, "", gone(t, err)
	}
	if exited(&u) {
		return true, "the process went on and has exited", nil
	}
	s, err := signalLayout.Load(o.k, u.Signal)
	if err != nil {
		return false, "", err
	}
	stopped, _, err := stopState(&u, nil)
	if errors.Is(err, kernel.ErrCorrupt) {
		return false, "thread list in motion", nil
	}
	if err != nil {
		return false, "", err
	}
	switch {
	case stopped != none || s.Flags&signalStopStopped != 0:
		return false, "a thread is still stopped", nil
	case s.Flags&(signalCLDStopped|signalCLDContinued) != 0:
		return false, "no thread has told the parent yet", nil
	}
	return true, "no thread is in state T", nil
}

// seeDead says whether the process is a zombie or gone. The task_struct may be
// freed and used for another task between two looks.
func (o *op) seeDead(t *kernel.Task) (bool, string, error) {
	const isGone = "the process is gone"
	u := *t
	if err := u.Refresh(); err != nil {
		if errors.Is(gone(t, err), ErrExited) {
			return true, isGone, nil
		}
		return false, "", err
	}
	if u.State&kernel.TaskDead == 0 && u.ExitState == 0 && u.Sighand != 0 {
		return false, fmt.Sprintf("the leader is in state %c", u.StateChar()), nil
	}
	// The leader is dead; its signal_struct lives while a thread does.
	for v, err := range u.Threads() {
		if err != nil {
			break // the list is being taken apart
		}
		if v.Addr != u.Addr && v.ExitState == 0 && v.State&kernel.TaskDead == 0 {
			return false, fmt.Sprintf("thread %d is in state %c", v.PID, v.StateChar()), nil
		}
	}
	if err := u.Refresh(); err != nil {
		return true, isGone, nil
	}
	return true, "the process is a zombie", nil
}
