package signal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// Stop stops the process of t, all of its threads, as SIGSTOP does, and returns
// when every thread was seen stopped and off its processor. t is any thread of it.
//
// The error is a *RefusedError for what must not be stopped, ErrReadOnly,
// ErrNoPause or ErrUnsupported for a guest that cannot be acted upon, ErrBusy, or
// a *TimeoutError: a thread in uninterruptible sleep stops when the sleep ends.
// The virtual machine is paused for about a millisecond at a time, and runs when
// Stop returns, whatever it returns. Safe for concurrent use.
func Stop(ctx context.Context, t *kernel.Task, o *Options) (*Report, error) {
	return Send(ctx, t, SIGSTOP, o)
}

// Continue continues a stopped process, as SIGCONT does, and returns when none of
// its threads is stopped any more. A process that was not stopped is a success,
// with a note in the report. Errors are those of Stop.
func Continue(ctx context.Context, t *kernel.Task, o *Options) (*Report, error) {
	return Send(ctx, t, SIGCONT, o)
}

// Kill ends a process, as SIGKILL does, and returns when it is a zombie or gone.
// Errors are those of Stop.
func Kill(ctx context.Context, t *kernel.Task, o *Options) (*Report, error) {
	return Send(ctx, t, SIGKILL, o)
}

// Send sends any signal to the process of t. For SIGSTOP, SIGCONT and SIGKILL it
// returns when the effect was seen; for others when the kernel has the signal, as
// kill(2) does. A handler sees a sender of pid 0. Errors are those of Stop; with
// an error the report, if there is one, says how far it came.
//
// With Options.Thread the signal is sent to the thread t, as tgkill(2) does; what it
// does to the whole process, as stopping and killing, it does nevertheless.
func Send(ctx context.Context, t *kernel.Task, sig Signal, opt *Options) (*Report, error) {
	if opt == nil {
		opt = &Options{}
	}
	o, err := newOp(ctx, t.Kernel(), opt.Logger)
	if err != nil {
		return nil, err
	}
	if opt.Thread {
		o.thread = t
	}
	if t, err = processOf(t); err != nil {
		return nil, err
	}
	if err := o.refuse(t, sig); err != nil {
		return nil, err
	}
	if sig == 0 || sig > sigMax {
		return nil, &RefusedError{t.PID, t.Comm, ErrBadSignal}
	}
	deliver, err := o.choose(opt.Strategy)
	if err != nil {
		return nil, err
	}
	o.report.PID, o.report.Comm, o.report.Signal, o.report.DryRun = t.PID, t.Comm, sig, opt.DryRun
	o.aim = aimAt(sig.String(), t)
	timeout := opt.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if sig == SIGSTOP || sig == SIGCONT {
		if err := o.noteStopped(t, sig); err != nil {
			return nil, err
		}
	}
	err = deliver.deliver(ctx, t, sig)
	if err == nil && !opt.DryRun {
		err = o.prove(ctx, t, sig)
	}
	err = errors.Join(err, o.afterKick(), o.end())
	o.log.Debug("signal", "pid", t.PID, "signal", sig, "strategy", o.report.Strategy, "latency", o.report.Latency,
		"pauses", o.report.Pauses, "err", err)
	return &o.report, err
}

// strategy delivers a signal: when deliver returns without error the kernel has
// it, and nothing of ours is left in the kernel's lists.
type strategy interface {
	deliver(ctx context.Context, t *kernel.Task, sig Signal) error
}

func newOp(ctx context.Context, k *kernel.Kernel, log *slog.Logger) (*op, error) {
	m, err := machineOf(k)
	if err != nil {
		return nil, err
	}
	if err := m.isRunning(ctx, k); err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &op{machine: m, k: k, log: log}, nil
}

// shortPause is how long a pause may last that others make for work like ours.
const shortPause = 500 * time.Millisecond

// isRunning returns ErrNotRunning if the virtual machine stands still, and goes on
// standing still: then nothing that is written takes effect.
func (m *machine) isRunning(ctx context.Context, k *kernel.Kernel) error {
	s, ok := k.Memory().(vmi.Stater)
	if !ok {
		return nil
	}
	for end := time.Now().Add(shortPause); ; {
		m.mu.Lock() // or it would see a pause of our own
		status, err := s.Status(ctx)
		m.mu.Unlock()
		if err != nil || status.Running {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%w (%s)", ErrNotRunning, status.State)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// choose returns the strategy to use. There is no falling back once it has begun.
func (o *op) choose(s Strategy) (strategy, error) {
	switch s {
	case "", Auto:
		if o.caps.ByKernel == nil {
			return o.choose(ByKernel)
		}
		if o.caps.ByBitmap == nil {
			o.log.Info("delivering by bitmap", "because", o.caps.ByKernel)
			return o.choose(ByBitmap)
		}
		if errors.Is(o.caps.ByKernel, ErrUnsupported) {
			return nil, fmt.Errorf("kernel: %w; bitmap: %w", o.caps.ByKernel, o.caps.ByBitmap)
		}
		return nil, o.caps.ByKernel
	case ByKernel:
		o.report.Strategy = ByKernel
		return &byKernel{op: o}, o.caps.ByKernel
	case ByBitmap:
		o.report.Strategy = ByBitmap
		return &byBitmap{op: o}, o.caps.ByBitmap
	}
	return nil, fmt.Errorf("no such strategy: %q", s)
}

// processOf returns a fresh copy of the leader of t's process.
func processOf(t *kernel.Task) (*kernel.Task, error) {
	u := *t
	if err := u.Refresh(); err != nil {
		return nil, gone(t, err)
	}
	if u.PID == u.TGID {
		return &u, nil
	}
	l, err := u.Leader()
	if err != nil {
		return nil, gone(t, err)
	}
	return l, nil
}

func gone(t *kernel.Task, err error) error {
	if errors.Is(err, kernel.ErrNoTask) || errors.Is(err, kernel.ErrCorrupt) {
		return &RefusedError{t.TGID, t.Comm, ErrExited}
	}
	return err
}

// refuse is refuse of a process and of the thread of it that is to get the signal.
func (o *op) refuse(t *kernel.Task, sig Signal) error {
	if err := refuse(t, sig); err != nil || o.thread == nil {
		return err
	}
	u := *o.thread
	if err := u.Refresh(); err != nil {
		return gone(&u, err)
	}
	if u.ExitState != 0 || u.Flags&kernel.PFExiting != 0 {
		return &RefusedError{u.PID, u.Comm, ErrExited}
	}
	o.thread = &u
	return nil
}

// refuse reads t again and says if it must be left alone. A leader that has exited is
// no reason while another thread of it runs.
func refuse(t *kernel.Task, sig Signal) error {
	if err := t.Refresh(); err != nil {
		return gone(t, err)
	}
	no := func(err error) error { return &RefusedError{t.PID, t.Comm, err} }
	switch {
	case t.IsKernelThread():
		return no(ErrKernelThread)
	case t.Sighand == 0:
		return no(ErrExited)
	case t.PID <= 1 && sig != SIGCONT:
		return no(ErrInit)
	}
	for u, err := range t.Threads() {
		if err != nil {
			return err
		}
		if u.Ptrace != 0 {
			return no(ErrTraced)
		}
	}
	if exited(t) {
		return no(ErrExited)
	}
	return nil
}

// exited says whether no thread of a process can take a signal any more. It is not
// asked of the leader alone, which may exit before the others do.
func exited(t *kernel.Task) bool {
	if t.Sighand == 0 {
		return true
	}
	if t.ExitState == 0 && t.Flags&kernel.PFExiting == 0 {
		return false
	}
	threads, err := threadsOf(t)
	return err == nil && len(threads) == 0
}

// timeout returns the error of a wait that ended with err.
func (o *op) timeout(what, state, left string, err error) error {
	if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		return err
	}
	e := &TimeoutError{PID: o.report.PID, What: what, State: state, Left: left, Err: err}
	if !o.resumed.IsZero() {
		e.After = time.Since(o.resumed)
	}
	return e
}

// noteStopped records what the caller may not expect: a process that is, or is
// not, stopped already.
func (o *op) noteStopped(t *kernel.Task, sig Signal) error {
	stopped, _, err := stopState(t, nil)
	if err != nil {
		return err
	}
	switch {
	case sig == SIGCONT && stopped == none:
		o.report.Note = "was not stopped"
	case sig == SIGSTOP && stopped == all:
		o.report.Note = "was stopped already"
	}
	return nil
}

type share int

const (
	none share = iota
	some
	all
)

// stopState says how many threads of a process are stopped and off their CPUs,
// and describes the others.
func stopState(t *kernel.Task, m members) (share, string, error) {
	threads, err := threadsOf(t)
	if err != nil {
		return none, "", err
	}
	stopped := 0
	var others []string
	for _, u := range threads {
		ok, err := u.State&kernel.TaskStopped != 0 && u.OnCPU == 0, error(nil)
		if !ok {
			ok, err = m.holdStopping(u)
		}
		if err != nil {
			return none, "", err
		}
		if ok {
			stopped++
		} else if len(others) < 4 {
			others = append(others, fmt.Sprintf("thread %d is in state %c", u.PID, u.StateChar()))
		}
	}
	switch {
	case stopped == 0:
		return none, strings.Join(others, ", "), nil
	case stopped < len(threads):
		return some, strings.Join(others, ", "), nil
	}
	return all, "", nil
}
