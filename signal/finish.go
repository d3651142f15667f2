package signal

import (
	"context"
	"errors"
	"fmt"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// finish clears up after the transactions of an interrupted operation that are in the
// guest. It works as the operation itself would have, had it been let go on to its
// clearing up, and is recorded in the same journal.
func (o *op) finish(ctx context.Context, s *story, out *Undone) error {
	ctx, cancel := context.WithTimeout(ctx, defaultTimeout)
	defer cancel()
	switch {
	case out.PutBack > 0:
		out.Effect = "taken back"
	case s.step == done:
		out.Effect = "it was carried out"
	default:
		out.Effect = "nothing of it was in the guest"
	}
	if len(o.unsettled) == 0 && len(s.marks) == 0 && !s.work && !s.kicks {
		return nil
	}
	if err := o.isRunning(ctx, o.k); err != nil {
		return err
	}
	o.mu.Lock()
	for _, w := range o.unsettled {
		o.slots.adopt(w.slot)
		o.slots.adopt(w.work)
	}
	o.mu.Unlock()
	if s.work {
		out.Effect = s.aim.Do + " was sent"
		if err := o.finishWork(ctx, s); err != nil {
			return err
		}
	}
	if err := o.finishWakes(ctx); err != nil {
		return err
	}
	switch {
	case len(s.marks) == 0:
	case s.aim.Do != aimFreeze:
		n, err := o.finishStop(ctx, s)
		if err != nil {
			return err
		}
		out.Effect = fmt.Sprintf("%d processes go on", n)
	default:
		n, err := o.finishFreeze(ctx, s.marks)
		if err != nil {
			return err
		}
		out.Effect = fmt.Sprintf("%d threads thawed", n)
	}
	if s.kicks {
		o.mu.Lock()
		o.kicks++ // the one of the program that was killed
		o.machine.kicks++
		o.mu.Unlock()
	}
	return o.afterKick()
}

// finishWork waits until the kernel has run send_signal_work, or takes it back.
func (o *op) finishWork(ctx context.Context, s *story) error {
	w, err := workLayout.Load(o.k, o.at.work)
	if err != nil {
		return err
	}
	b := &byKernel{op: o, w: w}
	if err = waitFor(ctx, b.taken, func() error { return b.nudge(ctx) }); err == nil {
		return nil
	}
	t, err := o.k.TaskAt(s.aim.Task)
	if err != nil {
		return err
	}
	return b.cancel(context.WithoutCancel(ctx), t)
}

// finishWakes waits until every wake-up has landed, or takes it back.
func (o *op) finishWakes(ctx context.Context) error {
	if err := waitFor(ctx, o.allLanded, func() error { return o.nudge(ctx) }); err != nil {
		fresh, cancel := context.WithTimeout(context.WithoutCancel(ctx), pauseLimit)
		defer cancel()
		return errors.Join(err, o.cancelWakes(fresh))
	}
	return o.settle(ctx)
}

// finishFreeze thaws the threads that were marked, one process after the other, and
// returns how many there still were.
func (o *op) finishFreeze(ctx context.Context, marks []mark) (n int, err error) {
	frozen := make(map[kernel.PID]*Frozen)
	var order []*Frozen
	for _, m := range marks {
		t, err := o.k.TaskAt(m.Task)
		if err != nil || t.PID != m.PID || t.BootTime != m.Boot {
			continue // it has died
		}
		f := frozen[m.TGID]
		if f == nil {
			leader, err := t.Leader()
			if err != nil {
				continue
			}
			f = &Frozen{o: o, leader: leader, ours: make(map[kernel.Addr]threadID)}
			frozen[m.TGID] = f
			order = append(order, f)
		}
		f.ours[m.Task] = idOf(t)
		n++
	}
	for _, f := range order {
		o.report.PID, o.report.Comm = f.leader.PID, f.leader.Comm
		if err := f.thaw(ctx); err != nil {
			return n, err
		}
	}
	return n, nil
}

// finishStop lets the processes of a set go on that had been stopped when not all of
// them were.
func (o *op) finishStop(ctx context.Context, s *story) (int, error) {
	var leaders []*kernel.Task
	for _, m := range s.marks {
		t, err := o.k.TaskAt(m.Task)
		if err == nil && t.PID == m.PID && t.BootTime == m.Boot {
			leaders = append(leaders, t)
		}
	}
	r, err := SendAll(ctx, someProcesses(Set{name: s.aim.Set, k: o.k}, leaders), SIGCONT, &Options{Logger: o.log})
	if err != nil {
		return 0, err
	}
	return len(r.Processes), nil
}
