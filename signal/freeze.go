package signal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// FreezeOptions changes how Freeze works. Nil is the zero value.
type FreezeOptions struct {
	Timeout time.Duration // for every thread to be held; 0: 5 s
	Logger  *slog.Logger  // nil: no log

	// ForPause says that Frozen.Pause or Thaw will be called, whatever happens.
	// What Freeze has used in the guest is given back there, which saves a pause.
	ForPause bool
}

// Frozen is a process whose threads are all held inside the kernel. It is safe for
// concurrent use.
type Frozen struct {
	mu     sync.Mutex
	o      *op
	leader *kernel.Task
	ours   map[kernel.Addr]threadID // threads whose jobctl bit we set
	held   []*kernel.Task
	regs   []kernel.PtRegs // of held, for Verify
	thawed bool

	forPause bool
	others   members // of a FrozenSet
}

// threadID tells a thread from a later one in the same memory.
type threadID struct {
	pid  kernel.PID
	boot uint64
}

func idOf(t *kernel.Task) threadID { return threadID{t.PID, t.BootTime} }

// Freeze holds every thread of t's process where it does no more of its own, and
// nobody in the guest is told: no SIGCHLD, no wait status, no state T. It sets the
// JOBCTL_TRAP_FREEZE bit with which the cgroup v2 freezer holds single tasks; each
// thread leaves its system call as for a signal, so that its saved registers say
// how to restart the call, and sleeps in the freezer's trap
// (kernel/signal.c:do_freezer_trap). Signals that would kill it still do.
//
// Freeze returns when every thread was seen held and off its processor. Stopped
// processes can be frozen too. A call that cannot be restarted, epoll_wait above
// all, fails with EINTR in the process after Thaw, as it does after a real stop.
//
// Errors are those of Stop; *TimeoutError names the threads that would not come,
// mostly because of uninterruptible sleep. On any error, and if ctx ends, the
// process runs again when Freeze returns.
func Freeze(ctx context.Context, t *kernel.Task, opt *FreezeOptions) (*Frozen, error) {
	if opt == nil {
		opt = &FreezeOptions{}
	}
	o, err := newOp(ctx, t.Kernel(), opt.Logger)
	if err != nil {
		return nil, err
	}
	if o.caps.Freeze != nil {
		return nil, o.caps.Freeze
	}
	if t, err = processOf(t); err != nil {
		return nil, err
	}
	if err := refuse(t, 0); err != nil {
		return nil, err
	}
	o.report.PID, o.report.Comm, o.report.Strategy = t.PID, t.Comm, ByBitmap
	o.aim = aimAt(aimFreeze, t)
	timeout := opt.Timeout
	if timeout <= 0 {
		timeout = defaultFreezeTimeout
	}
	f := &Frozen{o: o, leader: t, ours: make(map[kernel.Addr]threadID), forPause: opt.ForPause}
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := f.freeze(bounded); err != nil {
		fresh, cancel := context.WithTimeout(context.WithoutCancel(ctx), pauseLimit)
		defer cancel()
		if thawErr := f.Thaw(fresh); thawErr != nil {
			o.left = true
			return nil, errors.Join(fmt.Errorf("%w; and it could not be thawed: %w", err, thawErr), o.end())
		}
		return nil, err
	}
	o.log.Debug("frozen", "pid", t.PID, "threads", len(f.held), "latency", o.report.Latency, "pauses", o.report.Pauses)
	return f, nil
}

func (f *Frozen) freeze(ctx context.Context) error {
	var written time.Time
	var last string
	for patience := 10 * time.Millisecond; ; patience = min(2*patience, 500*time.Millisecond) {
		more, err := f.hold(ctx)
		if err != nil {
			return err
		}
		if written.IsZero() {
			written = f.o.resumed
		}
		round, cancel := context.WithTimeout(ctx, patience)
		if more {
			err = waitFor(round, f.o.allLanded, nil)
		} else {
			err = waitFor(round, func() (bool, error) {
				waiting, err := f.look()
				last = waiting
				return waiting == "", err
			}, nil)
		}
		cancel()
		if err == nil && !more {
			break
		}
		if err == nil {
			patience /= 2 // there was nothing to be patient about
			continue
		}
		if ctx.Err() != nil {
			return f.o.timeout("freeze", last, "", context.Cause(ctx))
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		if err := f.o.nudge(ctx); err != nil {
			return err
		}
	}
	f.o.report.Latency = time.Since(written)
	f.o.report.Effect = fmt.Sprintf("%d threads in the freezer's trap", len(f.held))
	if err := waitFor(ctx, f.o.allLanded, func() error { return f.o.nudge(ctx) }); err != nil {
		return f.o.timeout("freeze", "a forged wake-up did not arrive", "", err)
	}
	if f.forPause {
		return f.o.afterKick()
	}
	return errors.Join(f.o.settle(ctx), f.o.afterKick())
}

// hold marks every thread and wakes those that sleep, as far as there is room for
// wake-ups; more says that there was not enough.
func (f *Frozen) hold(ctx context.Context) (more bool, err error) {
	var marked []*thread
	err = f.o.transact(ctx, func(ctx context.Context, p *plan) error {
		f.o.report.Attempts++
		if err := refuse(f.leader, 0); err != nil {
			return err
		}
		if err := f.o.sigLockFree(f.leader); err != nil {
			return err
		}
		if err := f.o.planSettle(p); err != nil {
			return err
		}
		threads, err := threadsOf(f.leader)
		if err != nil {
			return err
		}
		var asleep []*thread
		if marked, asleep, err = f.o.planHold(p, threads); err != nil {
			return err
		}
		served, err := f.o.planWake(ctx, p, asleep)
		more = served < len(asleep)
		return err
	})
	if err == nil {
		for _, t := range marked {
			f.ours[t.Addr] = idOf(t.Task)
		}
	}
	return more, err
}

// planHold marks threads for the trap, and returns those that were not marked and
// those that must be woken.
func (o *op) planHold(p *plan, threads []*thread) (marked, asleep []*thread, err error) {
	for _, t := range threads {
		if t.JobCtl&jobctlTrapFreeze == 0 {
			p.marks = append(p.marks, markOf(t.Task))
			if err := p.Set(t.w.JobCtl, 8, t.path("jobctl"), t.JobCtl|jobctlTrapFreeze); err != nil {
				return nil, nil, err
			}
			marked = append(marked, t)
		}
		if t.inTrap() {
			continue
		}
		if err := p.Update(t.w.FlagsAddr, 8, t.path("thread_info.flags"), func(v uint64) uint64 { return v | o.at.tifSigPending }); err != nil {
			return nil, nil, err
		}
		if t.canWake(kernel.TaskInterruptible) && !o.wakeUnderWay(t) {
			asleep = append(asleep, t)
		}
	}
	return marked, asleep, nil
}

// inTrap says whether the thread needs no push: it is in the trap, or stopped and
// will enter it before it does anything else. The frozen bit alone does not say so:
// a thread that waits for its vfork child has it too (kernel/fork.c:wait_for_vfork_done).
func (t *thread) inTrap() bool {
	return t.Frozen && t.State&kernel.TaskInterruptible != 0 || t.State&kernel.TaskStopped != 0
}

// isHeld says whether the thread is off its processor for good. The jobctl bit is
// set, or was just planned.
func (t *thread) isHeld() bool {
	return t.inTrap() && t.JobCtl&jobctlTrapFreeze != 0 && t.asleep(kernel.TaskInterruptible|kernel.TaskStopped)
}

// look returns what is not held yet, "" for nothing; then f.held is filled.
func (f *Frozen) look() (waiting string, err error) {
	u := *f.leader
	if err := u.Refresh(); err != nil {
		return "", gone(&u, err)
	}
	if exited(&u) {
		return "", &RefusedError{u.PID, u.Comm, ErrExited}
	}
	before, waiting, err := heldThreads(&u, f.others)
	if err != nil || waiting != "" {
		return waiting, err
	}
	// A thread may have been cloned behind the back of the first pass, by one
	// that was held before the pass came to it. Not behind the second's.
	after, waiting, err := heldThreads(&u, f.others)
	if err != nil || waiting != "" {
		return waiting, err
	}
	if !sameThreads(before, after) {
		return "threads come and go", nil
	}
	f.held = after
	if f.regs, err = userRegs(after); err != nil {
		return fmt.Sprintf("registers in motion: %v", err), nil
	}
	return "", nil
}

// userRegs returns the saved user-mode registers of threads.
func userRegs(threads []*kernel.Task) ([]kernel.PtRegs, error) {
	all := make([]kernel.PtRegs, len(threads))
	for i, t := range threads {
		r, err := t.UserRegs()
		if err != nil {
			return nil, err
		}
		all[i] = *r
	}
	return all, nil
}

// heldThreads returns the threads of a process that are held, and says which are not.
func heldThreads(t *kernel.Task, m members) (held []*kernel.Task, waiting string, err error) {
	threads, err := threadsOf(t)
	if errors.Is(err, kernel.ErrCorrupt) {
		return nil, "thread list in motion", nil
	}
	if err != nil {
		return nil, "", err
	}
	var others []string
	for _, u := range threads {
		ok, err := u.isHeld(), error(nil)
		if !ok && u.JobCtl&jobctlTrapFreeze != 0 {
			ok, err = m.hold(u)
		}
		if errors.Is(err, kernel.ErrCorrupt) {
			return nil, "list of children in motion", nil
		}
		if err != nil {
			return nil, "", err
		}
		if ok {
			held = append(held, u.Task)
		} else if len(others) < 4 {
			others = append(others, fmt.Sprintf("thread %d is in state %c", u.PID, u.StateChar()))
		}
	}
	if len(threads) == 0 {
		return nil, "no threads", nil
	}
	return held, strings.Join(others, ", "), nil
}

// sameThreads says whether a and b are the same threads and none ran in between.
func sameThreads(a, b []*kernel.Task) bool {
	if len(a) != len(b) {
		return false
	}
	for i, t := range a {
		u := b[i]
		if t.Addr != u.Addr || idOf(t) != idOf(u) || t.NVCSW != u.NVCSW || t.NIVCSW != u.NIVCSW {
			return false
		}
	}
	return true
}

// Threads returns the threads of the process as they were when all were held, the
// leader first.
func (f *Frozen) Threads() []*kernel.Task {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*kernel.Task(nil), f.held...)
}

// Report returns what Freeze, and Thaw if it was called, did.
func (f *Frozen) Report() *Report {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.o.report
	return &r
}

// ErrNotHeld says that a frozen process has run, or that it is gone.
var ErrNotHeld = errors.New("the process was not held all the time")

// trapReentry is how long a thread may be on its way back into the trap.
const trapReentry = 500 * time.Millisecond

// Verify returns nil if the process is held and no thread of it has run since
// Freeze: registers, stacks and memory that only it writes are unchanged. Else the
// error is ErrNotHeld. A fatal signal, or the guest's own freezer, can do that.
func (f *Frozen) Verify() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	no := func(why string) error { return fmt.Errorf("pid %d: %w: %s", f.leader.PID, ErrNotHeld, why) }
	if f.thawed {
		return no("it was thawed")
	}
	u := *f.leader
	if err := u.Refresh(); err != nil {
		return no(err.Error())
	}
	// A signal wakes a held thread, which finds the trap still set and goes back to
	// sleep in it: a moment later it is held again, with the same registers.
	var now []*kernel.Task
	var waiting string
	ctx, cancel := context.WithTimeout(context.Background(), trapReentry)
	defer cancel()
	err := waitFor(ctx, func() (bool, error) {
		var err error
		now, waiting, err = heldThreads(&u, f.others)
		return waiting == "", err
	}, nil)
	switch {
	case err != nil && waiting != "":
		return no(waiting)
	case err != nil:
		return no(err.Error())
	}
	return f.unmoved(now, no)
}

// unmoved compares the threads that are held now with those of Freeze. A thread
// that left the trap for user mode and came back has other registers, but for the
// most improbable of loops.
func (f *Frozen) unmoved(now []*kernel.Task, no func(string) error) error {
	if len(now) != len(f.held) {
		return no("threads came or went")
	}
	regs, err := userRegs(now)
	if err != nil {
		return no(err.Error())
	}
	for i, t := range now {
		if t.Addr != f.held[i].Addr || idOf(t) != idOf(f.held[i]) || regs[i] != f.regs[i] {
			return no(fmt.Sprintf("thread %d has run", t.PID))
		}
	}
	return nil
}
