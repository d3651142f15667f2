package signal

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// byBitmap does by hand what the kernel's send_signal would do: it sets the bit in
// a pending set, marks a thread with TIF_SIGPENDING, and wakes it. What the kernel
// does from there on, spreading a stop or a death to the other threads, it does
// itself. A bit without a queued siginfo is legal (kernel/signal.c:collect_signal);
// the handler sees si_code SI_USER and pid 0.
//
// The wake-up is a forged wake_up_process() and not an insertion into the run
// queue: that works on 5.10, leaves "psi: inconsistent task state!" in the log of
// 6.x and crashes 7.x, whose scheduler keeps more books than can be kept from
// outside.
//
// What this way misses: signalfd readers are not woken, a real-time signal that is
// sent again before it is taken is taken once, and a fork that is under way may not
// notice.
type byBitmap struct {
	*op
	wanted []*thread // threads for whose wake-ups there was no room yet

	// With gather, threads are not woken but left to who acts on many processes.
	gather   bool
	sleepers []*thread
}

func (b *byBitmap) deliver(ctx context.Context, t *kernel.Task, sig Signal) error {
	err := b.transact(ctx, func(ctx context.Context, p *plan) error {
		b.report.Attempts++
		if err := b.refuse(t, sig); err != nil {
			return err
		}
		if err := b.sigLockFree(t); err != nil {
			return err
		}
		threads, err := threadsOf(t)
		if err != nil {
			return err
		}
		if len(threads) == 0 {
			return &RefusedError{t.PID, t.Comm, ErrExited}
		}
		s, err := signalLayout.Load(b.k, t.Signal)
		if err != nil {
			return err
		}
		return (&delivery{b, p, t, s, threads}).send(ctx, sig)
	})
	if err != nil || b.report.DryRun {
		return err
	}
	err = waitFor(ctx, b.arrived(ctx), func() error { return b.nudge(ctx) })
	if err == nil {
		return errors.Join(b.settle(ctx), b.afterKick())
	}
	left := "the signal is pending and acts when the process next runs"
	fresh, cancel := context.WithTimeout(context.WithoutCancel(ctx), pauseLimit)
	defer cancel()
	if cancelErr := b.cancelWakes(fresh); cancelErr != nil {
		left += fmt.Sprintf("; its wake-up may still come: %v", cancelErr)
	}
	return b.timeout(sig.String(), "the forged wake-up did not arrive", left, err)
}

// arrived returns a check that every wake-up has landed, which sends those for
// which there was no room before.
func (b *byBitmap) arrived(ctx context.Context) func() (bool, error) {
	return func() (bool, error) {
		ok, err := b.allLanded()
		if !ok || err != nil || len(b.wanted) == 0 {
			return ok, err
		}
		served := 0
		err = b.transact(ctx, func(ctx context.Context, p *plan) error {
			if err := b.planSettle(p); err != nil {
				return err
			}
			b.wanted = slices.DeleteFunc(b.wanted, func(t *thread) bool {
				u, err := b.k.TaskAt(t.Addr)
				return err != nil || idOf(u) != idOf(t.Task) // it has exited
			})
			var err error
			for _, t := range b.wanted {
				if t.w, err = taskLayout.Load(b.k, t.Addr); err != nil {
					return err
				}
			}
			served, err = b.planWake(ctx, p, b.wanted)
			return err
		})
		if err == nil {
			b.wanted = b.wanted[served:]
		}
		return false, err
	}
}

// delivery is one signal on its way into one paused process.
type delivery struct {
	*byBitmap
	p       *plan
	t       *kernel.Task
	s       signalWords
	threads []*thread
}

func (d *delivery) signalPath(member string) string {
	return memberPath("signal_struct(", d.t, member)
}

// flush takes sigs out of every pending set, as prepare_signal does with stop signals
// when a SIGCONT comes and the other way round. A queued siginfo cannot be freed from
// here, so it becomes one of sig, which the kernel takes out of the queue in its time.
func (d *delivery) flush(sigs uint64, sig Signal) error {
	one := func(pending uint64, a, first, head kernel.Addr, path string) error {
		if pending&sigs == 0 {
			return nil
		}
		queued, err := d.turn(first, head, sigs, sig)
		if err != nil {
			return err
		}
		return d.p.Update(a, 8, path, func(v uint64) uint64 {
			v &^= sigs
			if queued {
				v |= sig.bit()
			}
			return v
		})
	}
	if err := one(d.s.Pending, d.s.PendingAddr, d.s.PendingFirst, d.s.PendingHead, d.signalPath("shared_pending.signal")); err != nil {
		return err
	}
	for _, t := range d.threads {
		if err := one(t.w.Pending, t.w.PendingAddr, t.w.PendingFirst, t.w.PendingHead, t.path("pending.signal")); err != nil {
			return err
		}
	}
	return nil
}

// turn makes the siginfos of sigs in a queue ones of sig, and says if there were any.
func (d *delivery) turn(first, head kernel.Addr, sigs uint64, sig Signal) (found bool, err error) {
	for at, n := first, 0; at != head; n++ {
		if n >= maxQueue {
			return false, fmt.Errorf("signals of pid %d: %w", d.t.PID, kernel.ErrLimit)
		}
		if !at.IsKernel() || at%8 != 0 {
			return false, fmt.Errorf("%w: signal queue of pid %d leads to %s", kernel.ErrCorrupt, d.t.PID, at)
		}
		q, err := sigqueueLayout.Load(d.k, at) // whose first member is the list
		if err != nil {
			return false, err
		}
		if q.Signo > 0 && q.Signo <= int32(sigMax) && Signal(q.Signo).bit()&sigs != 0 {
			if err := d.p.Set(q.SignoAddr, 4, d.signalPath("pending.list[].info.si_signo"), uint64(sig)); err != nil {
				return false, err
			}
			found = true
		}
		at = q.Next
	}
	return found, nil
}

// wake plans to wake threads, and returns for how many there was room.
func (d *delivery) wake(ctx context.Context, threads []*thread) (served int, err error) {
	if d.gather {
		d.sleepers = append(d.sleepers, threads...)
		return len(threads), nil
	}
	return d.planWake(ctx, d.p, threads)
}

// send plans what sig takes.
func (d *delivery) send(ctx context.Context, sig Signal) error {
	switch sig {
	case SIGKILL:
		return d.kill(ctx)
	case SIGCONT:
		return d.cont(ctx)
	}
	return d.post(ctx, sig)
}

// notice makes thread t look at its pending signals.
func (d *delivery) notice(t *thread) error {
	return d.p.Update(t.w.FlagsAddr, 8, t.path("thread_info.flags"), func(v uint64) uint64 { return v | d.at.tifSigPending })
}

// pick chooses the thread that is to take a signal: one that runs, else one that
// is about to, else one that sleeps and can be woken. It is nil if there is none.
// Source: kernel/signal.c:wants_signal.
func (d *delivery) pick(accept func(*thread) bool, wakeable uint64) *thread {
	var best *thread
	rank := 0
	for _, t := range d.threads {
		r := 0
		switch {
		case !accept(t):
		case t.State == kernel.TaskRunning && t.OnCPU != 0:
			r = 3
		case t.State == kernel.TaskRunning || t.State&kernel.TaskWaking != 0:
			r = 2
		case t.canWake(wakeable):
			r = 1
		}
		if r > rank {
			best, rank = t, r
		}
	}
	return best
}

// post delivers any signal but SIGKILL and SIGCONT to the process.
func (d *delivery) post(ctx context.Context, sig Signal) error {
	if sig.bit()&stopSignals != 0 {
		if err := d.flush(SIGCONT.bit(), sig); err != nil {
			return err
		}
	}
	ignored, err := d.ignored(sig)
	if err != nil {
		return err
	}
	if ignored {
		d.report.Note = "the process ignores the signal; nothing was written"
		d.report.Effect = "none"
		return nil
	}
	if err := d.enqueue(sig); err != nil {
		return err
	}
	if fatal, err := d.fatalNow(sig); err != nil || fatal {
		if err != nil {
			return err
		}
		return d.killAll(ctx, sig)
	}
	t := d.pick(func(t *thread) bool {
		return d.mayTake(t) && t.w.Blocked&sig.bit() == 0 && t.State&(kernel.TaskStopped|kernel.TaskTraced) == 0 && !t.IsUserWorker()
	}, kernel.TaskInterruptible)
	if t == nil {
		return d.unpicked(sig)
	}
	if err := d.notice(t); err != nil {
		return err
	}
	if t.canWake(kernel.TaskInterruptible) {
		_, err = d.wake(ctx, []*thread{t})
	}
	return err
}

// mayTake says whether a thread is one that the signal is for.
func (b *byBitmap) mayTake(t *thread) bool { return b.thread == nil || b.thread.Addr == t.Addr }

// enqueue sets the bit of sig among the pending signals of the process, or of the one
// thread that is to get it.
func (d *delivery) enqueue(sig Signal) error {
	at, path := d.s.PendingAddr, d.signalPath("shared_pending.signal")
	for _, t := range d.threads {
		if d.thread != nil && d.mayTake(t) {
			at, path = t.w.PendingAddr, t.path("pending.signal")
		}
	}
	return d.p.Update(at, 8, path, func(v uint64) uint64 { return v | sig.bit() })
}

// unpicked leaves a signal that no thread can take now where it will be found.
func (d *delivery) unpicked(sig Signal) error {
	for _, t := range d.threads {
		if t.w.Blocked&sig.bit() != 0 || !d.mayTake(t) {
			continue
		}
		// Stopped, or in uninterruptible sleep.
		if d.report.Note == "" {
			d.report.Note = "no thread can take the signal now; it is pending"
		}
		return d.notice(t)
	}
	d.report.Note = "every thread that may take the signal blocks it; it is pending"
	return nil
}

// ignored is kernel/signal.c:sig_task_ignored for a process that is not traced.
func (d *delivery) ignored(sig Signal) (bool, error) {
	for _, t := range d.threads {
		asked := t.PID == t.TGID // whom the kernel asks for its process
		if d.thread != nil {
			asked = d.mayTake(t)
		}
		if asked && (t.w.Blocked|t.w.Waited)&sig.bit() != 0 {
			return false, nil // blocked signals are queued, whatever the handler
		}
	}
	h, err := d.handler(sig)
	unkillable := d.s.Flags&signalUnkillable != 0 && sig != SIGSTOP // the init of a container
	return h == sigIgn || h == sigDfl && (sig.bit()&ignoreSignals != 0 || unkillable), err
}

const (
	sigDfl = 0
	sigIgn = 1
)

func (d *delivery) handler(sig Signal) (uint64, error) {
	sighand, err := sighandLayout.Load(d.k, d.t.Sighand)
	if err != nil {
		return 0, err
	}
	size, err := sigactionLayout.Size(d.k)
	if err != nil {
		return 0, err
	}
	a, err := sigactionLayout.Load(d.k, sighand.Action.Add(int(sig-1)*size))
	return a.Handler, err
}

// unstop makes a stopped thread one that wake_up_process() wakes. Interruptible,
// and not uninterruptible, which would count as load.
func (d *delivery) unstop(t *thread) error {
	if err := t.piLockFree(); err != nil {
		return err
	}
	if !t.asleep(kernel.TaskStopped) {
		return retry("thread %d is on its way to a stop", t.PID)
	}
	return d.p.Set(t.w.StateAddr, d.at.stateWidth, t.path("__state"), kernel.TaskInterruptible)
}

// cont does what prepare_signal does for SIGCONT, and wakes the stopped threads.
func (d *delivery) cont(ctx context.Context) error {
	if err := d.flush(stopSignals, SIGCONT); err != nil {
		return err
	}
	flags := d.s.Flags
	switch {
	case flags&signalStopStopped != 0:
		flags = flags&^signalStopMask | signalCLDContinued | signalStopContinued
	case d.s.GroupStop != 0:
		flags = flags&^signalStopMask | signalCLDStopped | signalStopContinued
	}
	if flags != d.s.Flags {
		for _, e := range []Edit{
			{d.s.FlagsAddr, d.signalPath("flags"), 0, uint64(flags), 4},
			{d.s.GroupStopAddr, d.signalPath("group_stop_count"), 0, 0, 4},
			{d.s.ExitCodeAddr, d.signalPath("group_exit_code"), 0, 0, 4},
		} {
			if err := d.p.Set(e.Addr, e.Width, e.Path, e.New); err != nil {
				return err
			}
		}
	}
	var stopped []*thread
	for _, t := range d.threads {
		jobctl := t.JobCtl &^ jobctlStopped
		if jobctl&jobctlStopPending != 0 {
			jobctl &^= jobctlStopPending | jobctlStopConsume | jobctlStopDequeued
		}
		if t.State&kernel.TaskStopped != 0 {
			if err := d.unstop(t); err != nil {
				return err
			}
			if err := d.notice(t); err != nil {
				return err
			}
			stopped = append(stopped, t)
		}
		if jobctl != t.JobCtl {
			if err := d.p.Set(t.w.JobCtl, 8, t.path("jobctl"), jobctl); err != nil {
				return err
			}
		}
	}
	if h, err := d.handler(SIGCONT); err != nil {
		return err
	} else if h != sigDfl && h != sigIgn {
		if err := d.enqueue(SIGCONT); err != nil {
			return err
		}
		if len(stopped) == 0 {
			return d.post(ctx, SIGCONT)
		}
	}
	served, err := d.wake(ctx, stopped)
	d.wanted = stopped[served:]
	return err
}
