package signal

import (
	"context"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// What sending by bitmap does for signals that end a process.

// wakesDying is what a wake-up that brings a SIGKILL wakes.
const wakesDying = kernel.TaskInterruptible | kernel.TaskWakeKill

// kill gives one thread a private SIGKILL; it takes the others along
// (kernel/signal.c:do_group_exit). Private, for a killable sleep looks only there.
func (d *delivery) kill(ctx context.Context) error {
	frozen, err := d.inGuestFreezer()
	if err != nil {
		return err
	}
	if frozen {
		return d.killAll(ctx, SIGKILL)
	}
	t := d.pick(func(t *thread) bool { return !t.IsUserWorker() }, wakesDying)
	if t == nil {
		t = d.threads[0] // uninterruptible: it dies when its sleep ends
		d.report.Note = "every thread is in uninterruptible sleep"
	}
	if err := d.killThread(t); err != nil || !t.canWake(wakesDying) {
		return err
	}
	_, err = d.wake(ctx, []*thread{t})
	return err
}

// killThread does to one thread what makes it die when it runs.
func (d *delivery) killThread(t *thread) error {
	if err := d.p.Update(t.w.PendingAddr, 8, t.path("pending.signal"), func(v uint64) uint64 { return v | SIGKILL.bit() }); err != nil {
		return err
	}
	if err := d.notice(t); err != nil {
		return err
	}
	jobctl := t.JobCtl
	if t.Frozen || jobctl&jobctlTrapFreeze != 0 {
		// The freezer's trap comes before the signals.
		jobctl &^= jobctlTrapFreeze
	}
	if t.State&kernel.TaskStopped != 0 {
		jobctl &^= jobctlStopPending | jobctlStopConsume | jobctlStopDequeued | jobctlTrapStop | jobctlTrapNotify
		if err := d.unstop(t); err != nil {
			return err
		}
		jobctl &^= jobctlStopped
	}
	if jobctl == t.JobCtl {
		return nil
	}
	return d.p.Set(t.w.JobCtl, 8, t.path("jobctl"), jobctl)
}

// inGuestFreezer says whether the guest's own cgroup v2 freezer holds a thread.
func (d *delivery) inGuestFreezer() (bool, error) {
	for _, t := range d.threads {
		if !t.Frozen && t.JobCtl&jobctlTrapFreeze == 0 {
			continue
		}
		g, err := t.Cgroup()
		if err != nil || g.Cgroup.EFreeze != 0 {
			return err == nil, err
		}
	}
	return false, nil
}

// killAll marks the whole process for death of sig, as kernel/signal.c:complete_signal
// does, and wakes all threads. That mark is the only thing that is looked at before the
// freezer's trap, which a thread of a frozen control group does not get past otherwise
// (kernel/cgroup/freezer.c:cgroup_leave_frozen).
func (d *delivery) killAll(ctx context.Context, sig Signal) error {
	if err := setAll(d.p.Tx, []Edit{
		{d.s.FlagsAddr, d.signalPath("flags"), 0, signalGroupExit, 4},
		{d.s.ExitCodeAddr, d.signalPath("group_exit_code"), 0, uint64(sig), 4},
		{d.s.GroupStopAddr, d.signalPath("group_stop_count"), 0, 0, 4},
	}); err != nil {
		return err
	}
	var asleep []*thread
	for _, t := range d.threads {
		if err := d.killThread(t); err != nil {
			return err
		}
		if t.canWake(wakesDying | kernel.TaskStopped) {
			asleep = append(asleep, t)
		}
	}
	served, err := d.wake(ctx, asleep)
	d.wanted = asleep[served:]
	return err
}

// fatalNow says whether a signal that kills does so where a thread would not take it by
// itself: in a killable sleep, or in the freezer's trap. The kernel makes such a signal
// a SIGKILL as soon as it finds a thread that might take it
// (kernel/signal.c:complete_signal).
func (d *delivery) fatalNow(sig Signal) (bool, error) {
	if h, err := d.handler(sig); err != nil || h != sigDfl || sig.bit()&(ignoreSignals|stopSignals|dumpSignals) != 0 {
		return false, err
	}
	here, elsewhere := false, false
	for _, t := range d.threads {
		if !d.mayTake(t) || (t.w.Blocked|t.w.Waited)&sig.bit() != 0 || t.State&(kernel.TaskStopped|kernel.TaskTraced) != 0 {
			continue
		}
		switch {
		case t.Frozen || t.JobCtl&jobctlTrapFreeze != 0, t.State&kernel.TaskUninterruptible != 0:
			here = here || t.w.Flags&d.at.tifSigPending == 0
		default:
			elsewhere = true
		}
	}
	return here && !elsewhere, nil
}
