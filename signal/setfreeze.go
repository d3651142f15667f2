package signal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// FrozenSet is the processes of a set, all of whose threads are held as by [Freeze].
// It is safe for use by one goroutine at a time.
type FrozenSet struct {
	*setOp
	known  map[kernel.Addr]*Frozen
	order  []*Frozen
	thawed bool
}

// FreezeAll holds all processes of a set at once, as [Freeze] holds one, and finds them
// as [SendAll] does: those that were being forked are caught before it returns. On any
// error, and if ctx ends, all of them run again when it returns. Errors are those of
// Freeze.
func FreezeAll(ctx context.Context, s Set, opt *FreezeOptions) (*FrozenSet, error) {
	if opt == nil {
		opt = &FreezeOptions{}
	}
	f, err := newFrozenSet(ctx, s, opt)
	if err != nil {
		return nil, err
	}
	timeout := opt.Timeout
	if timeout <= 0 {
		timeout = defaultFreezeTimeout
	}
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := f.freeze(bounded); err != nil {
		fresh, cancel := context.WithTimeout(context.WithoutCancel(ctx), pauseLimit)
		defer cancel()
		if thawErr := f.Thaw(fresh); thawErr != nil {
			f.left = true
			return nil, errors.Join(fmt.Errorf("%w; and not all could be thawed: %w", err, thawErr), f.end())
		}
		return nil, err
	}
	return f, nil
}

func newFrozenSet(ctx context.Context, s Set, opt *FreezeOptions) (*FrozenSet, error) {
	g, err := newSetOp(ctx, s, aimFreeze, &Options{Logger: opt.Logger})
	if err != nil {
		return nil, err
	}
	if g.caps.Freeze != nil {
		return nil, g.caps.Freeze
	}
	return &FrozenSet{setOp: g, known: make(map[kernel.Addr]*Frozen)}, nil
}

// member says whether a process is one of those that are marked.
func (f *FrozenSet) member(t *kernel.Task) bool {
	m := f.known[t.Addr]
	return m != nil && idOf(m.leader) == idOf(t)
}

func (f *FrozenSet) freeze(ctx context.Context) error {
	var waiting string
	for patience := 50 * time.Millisecond; ; patience = min(2*patience, 500*time.Millisecond) {
		fresh, err := f.pass(ctx)
		if err != nil {
			return err
		}
		if f.first.IsZero() {
			f.first = f.resumed
		}
		if fresh == 0 && f.report.Passes > 1 && waiting == "" {
			break
		}
		round, cancel := context.WithTimeout(ctx, patience)
		waiting = "its processes are being looked for"
		next := time.Now().Add(newcomersEvery)
		err = waitFor(round, func() (ok bool, err error) {
			if time.Now().After(next) {
				if f.newcomers(ctx, f.member) {
					waiting = "a process was forked meanwhile"
					return true, nil
				}
				next = time.Now().Add(newcomersEvery)
			}
			if ok, err := f.allLanded(); !ok || err != nil {
				waiting = "a forged wake-up has not arrived"
				return false, err
			}
			waiting, err = f.look()
			return waiting == "", err
		}, nil)
		cancel()
		switch {
		case ctx.Err() != nil:
			return f.timeout(aimFreeze, waiting, context.Cause(ctx))
		case err == nil && waiting == "":
			f.report.Latency = time.Since(f.first)
		case err == nil:
		case !errors.Is(err, context.DeadlineExceeded):
			return err
		default:
			if err := f.nudge(ctx); err != nil {
				return err
			}
		}
	}
	f.report.Effect = fmt.Sprintf("%d processes: all threads are in the freezer's trap", len(f.order))
	return errors.Join(f.settle(ctx), f.afterKick())
}

// pass marks the threads that are not marked yet, of all processes in one pause, and
// returns how many there were.
func (f *FrozenSet) pass(ctx context.Context) (fresh int, err error) {
	marked := make(map[*process][]*thread)
	var all []*process
	err = f.transact(ctx, func(ctx context.Context, p *plan) error {
		clear(marked)
		if err := f.planSettle(p); err != nil {
			return err
		}
		var err error
		if all, err = f.processes(ctx, f.set, 0); err != nil {
			return err
		}
		var asleep []*thread
		for _, u := range all {
			m, a, err := f.planHold(p, u.threads)
			if err != nil {
				return err
			}
			marked[u], asleep = m, append(asleep, a...)
		}
		_, err = f.planWake(ctx, p, asleep)
		return err
	})
	if err != nil {
		return 0, err
	}
	f.report.Passes++
	for _, u := range all {
		m := f.known[u.t.Addr]
		if !f.member(u.t) {
			m = &Frozen{o: f.op, leader: u.t, ours: make(map[kernel.Addr]threadID), others: f.member}
			f.known[u.t.Addr] = m
			f.order = append(f.order, m)
			f.add(u)
			fresh++
		}
		for _, t := range marked[u] {
			m.ours[t.Addr] = idOf(t.Task)
			fresh++
		}
	}
	return fresh, nil
}

// look returns what is not held yet, "" for nothing. A process that exits is none.
func (f *FrozenSet) look() (waiting string, err error) {
	for _, m := range f.order {
		switch waiting, err := m.look(); {
		case errors.Is(err, ErrExited):
		case err != nil:
			return "", err
		case waiting != "":
			return fmt.Sprintf("pid %d (%s): %s", m.leader.PID, m.leader.Comm, waiting), nil
		}
	}
	return "", nil
}

// Report returns what FreezeAll, and Thaw if it was called, did.
func (f *FrozenSet) Report() *SetReport { return f.finished() }

// Verify returns nil if no thread has run since FreezeAll; else the error is ErrNotHeld.
func (f *FrozenSet) Verify() error {
	for _, m := range f.order {
		if len(m.held) == 0 { // it exited, and was never held
			continue
		}
		if err := m.Verify(); err != nil {
			return err
		}
	}
	return nil
}

// Leave lets the processes stay frozen when the program ends, with no record of it;
// ThawAll lets them go on.
func (f *FrozenSet) Leave() error { return f.end() }

// Thaw lets all processes go on, in one pause, and returns when no thread is held any
// more. It may be called again, after an error too.
func (f *FrozenSet) Thaw(ctx context.Context) error {
	if f.thawed {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, defaultTimeout)
	defer cancel()
	if err := f.thaw(ctx); err != nil {
		return err
	}
	f.thawed = true
	return f.end()
}

func (f *FrozenSet) thaw(ctx context.Context) error {
	if err := f.release(ctx); err != nil {
		return err
	}
	f.first = f.resumed
	var waiting string
	err := waitFor(ctx, func() (bool, error) {
		for _, m := range f.order {
			var err error
			if waiting, err = m.stillHeld(); waiting != "" || err != nil {
				return false, err
			}
		}
		return f.allLanded()
	}, func() error {
		if err := f.nudge(ctx); err != nil {
			return err
		}
		return f.release(ctx)
	})
	if err != nil {
		err = f.timeout("thaw", waiting, err)
		fresh, cancel := context.WithTimeout(context.WithoutCancel(ctx), pauseLimit)
		defer cancel()
		return errors.Join(err, f.cancelWakes(fresh), f.afterKick())
	}
	f.report.Latency = time.Since(f.first)
	return errors.Join(f.settle(ctx), f.afterKick())
}

// release takes all marks off and wakes the threads in the trap, in one pause.
func (f *FrozenSet) release(ctx context.Context) error {
	return f.transact(ctx, func(ctx context.Context, p *plan) error {
		if err := f.planSettle(p); err != nil {
			return err
		}
		var trapped []*thread
		for _, m := range f.order {
			t, err := m.planUnmark(p)
			if err != nil {
				return err
			}
			trapped = append(trapped, t...)
		}
		_, err := f.planWake(ctx, p, trapped)
		return err
	})
}

// ErrGuestFreezer says that the guest itself has frozen a process.
var ErrGuestFreezer = errors.New("is frozen by the guest's own cgroup freezer")

// ThawAll lets the processes of a set go on that are frozen, by another program or by
// one that has ended (FrozenSet.Leave). Processes that are not frozen are left alone.
// The error is ErrGuestFreezer for what the guest's own freezer holds, else those of
// Freeze.
func ThawAll(ctx context.Context, s Set, opt *FreezeOptions) (*SetReport, error) {
	if opt == nil {
		opt = &FreezeOptions{}
	}
	f, err := newFrozenSet(ctx, s, opt)
	if err != nil {
		return nil, err
	}
	err = f.transact(ctx, func(ctx context.Context, _ *plan) error {
		f.order = nil
		all, err := f.processes(ctx, s, 0)
		if err != nil {
			return err
		}
		for _, u := range all {
			m := &Frozen{o: f.op, leader: u.t, ours: make(map[kernel.Addr]threadID)}
			for _, t := range u.threads {
				if t.JobCtl&jobctlTrapFreeze != 0 {
					m.ours[t.Addr] = idOf(t.Task)
				}
			}
			if len(m.ours) == 0 {
				continue
			}
			g, err := u.t.Cgroup()
			if err != nil {
				return err
			}
			if g.Cgroup.EFreeze != 0 {
				return &RefusedError{u.t.PID, u.t.Comm, ErrGuestFreezer}
			}
			f.order = append(f.order, m)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, f.end())
	}
	for _, m := range f.order {
		f.report.Processes = append(f.report.Processes, m.leader.PID)
		f.report.Threads += len(m.ours)
	}
	f.report.Passes = 1
	f.report.Effect = fmt.Sprintf("%d processes: no thread is in the freezer's trap", len(f.order))
	if len(f.order) > 0 {
		err = f.Thaw(ctx)
	}
	return f.finished(), errors.Join(err, f.end())
}
