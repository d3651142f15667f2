package signal

import (
	"context"
	"fmt"
	"slices"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// wake is a forged wake_up_process() of one task, in one of two shapes that the
// kernel itself knows: an asynchronous call on the call queue of an idle CPU, or a
// timeout on the timer wheel of a ticking one. While it is in flight the task's
// reference count is one higher where the task may die of something else before the
// kernel comes to it.
type wake struct {
	task  kernel.Addr
	pid   kernel.PID
	slot  kernel.Addr
	timer bool // else a call_single_data

	// A wake-up of many tasks has a second slot, and they are in a wake queue.
	work  kernel.Addr
	tasks []kernel.Addr
	tail  kernel.Addr // of the last one's wake_q.next

	// noRef: no reference was taken, for the task cannot die before it is woken. It
	// sleeps, and the only processor there is comes to its call queue before it
	// comes to any task (kernel/sched/idle.c:do_idle).
	noRef bool

	cleared bool // the slot was given back
}

// wakeRecord is a wake as a journal has it.
type wakeRecord struct {
	Slot  kernel.Addr `json:"slot"`
	Task  kernel.Addr `json:"task"`
	PID   kernel.PID  `json:"pid"`
	Timer bool        `json:"timer,omitempty"`
	NoRef bool        `json:"no_ref,omitempty"`
	Work  kernel.Addr `json:"work,omitempty"`
	Tail  kernel.Addr `json:"tail,omitempty"`
}

func (w *wake) record() wakeRecord {
	return wakeRecord{w.slot, w.task, w.pid, w.timer, w.noRef, w.work, w.tail}
}

func (r wakeRecord) wake() *wake {
	return &wake{slot: r.Slot, task: r.Task, pid: r.PID, timer: r.Timer, noRef: r.NoRef, work: r.Work, tail: r.Tail}
}

func (w *wake) usagePath() string { return fmt.Sprintf("task_struct(%d).usage", w.pid) }

func (w *wake) path(member string) string { return fmt.Sprintf("wake(%d).%s", w.pid, member) }

// planWake adds to p a wake-up of each task, as far as slots go, and returns the
// number of tasks served. The tasks' words must have been read in this pause.
func (o *op) planWake(ctx context.Context, p *plan, tasks []*thread) (served int, err error) {
	if len(tasks) == 0 {
		return 0, nil
	}
	c, err := o.settledCPU0(ctx)
	if err != nil {
		return 0, err
	}
	p.kick = c.kick
	byCall := p.kick && !o.at.cfi
	var base timerBase
	if byCall && c.Lock != 0 {
		return 0, retry("run queue of CPU 0 is locked")
	}
	if (len(tasks) >= queueFrom || o.at.tracksTimers) && o.queue == nil {
		if err := o.planQueue(p, tasks, c); err != nil {
			return 0, err
		}
		return len(tasks), o.planAttention(p, c, byCall)
	}
	if !byCall {
		if base, err = o.timerBaseFree(); err != nil {
			return 0, err
		}
	}
	cpus, err := o.k.OnlineCPUs()
	if err != nil {
		return 0, err
	}
	noRef := byCall && len(cpus) == 1
	for _, t := range tasks {
		if err := t.piLockFree(); err != nil {
			return 0, err
		}
		slot, ok, err := o.slots.take(o.k)
		if err != nil {
			return 0, err
		}
		if !ok {
			break
		}
		w := &wake{task: t.Addr, pid: t.PID, slot: slot, timer: !byCall, noRef: noRef}
		p.wakes = append(p.wakes, w)
		if !noRef {
			if err := p.Update(t.w.Usage, 4, t.path("usage"), func(v uint64) uint64 { return v + 1 }); err != nil {
				return 0, err
			}
		}
		if byCall {
			err = o.planCall(p.Tx, w, o.at.wakeUpProcess, w.task)
		} else {
			err = o.planTimer(p.Tx, w, base)
		}
		if err != nil {
			return 0, err
		}
		served++
	}
	if served == 0 {
		return 0, retry("all memory for wake-ups is in use")
	}
	return served, o.planAttention(p, c, byCall)
}

// planAttention makes an idle CPU 0 look at what was put into its lists.
func (o *op) planAttention(p *plan, c cpu0, byCall bool) error {
	if byCall {
		if err := o.planResched(p.Tx, c); err != nil {
			return err
		}
	}
	if p.kick {
		return o.planKick(p.Tx, c)
	}
	return nil
}

// planCall links a call of f with one argument on CPU 0's call queue. Only for an idle
// CPU that is kicked at once: a busy one never looks there without an IPI, and a
// queue that is not empty keeps other CPUs from sending theirs (kernel/smp.c).
func (o *op) planCall(tx *Tx, w *wake, f, arg kernel.Addr) error {
	c, err := csdLayout.Load(o.k, w.slot)
	if err != nil {
		return err
	}
	head, err := tx.Get(o.at.callQueue, 8)
	if err != nil {
		return err
	}
	return setAll(tx, []Edit{
		{c.Flags, w.path("csd.node.u_flags"), 0, csdLock, 4},
		{c.Func, w.path("csd.func"), 0, uint64(f), 8},
		{c.Info, w.path("csd.info"), 0, uint64(arg), 8},
		{c.Next, w.path("csd.node.llist.next"), 0, head, 8},
		{o.at.callQueue, "call_single_queue(cpu 0).first", 0, uint64(c.Next), 8},
	})
}

// planTimer starts a timer whose function is the kernel's own process_timeout, due
// now. Source: kernel/time/timer.c:enqueue_timer.
func (o *op) planTimer(tx *Tx, w *wake, b timerBase) error {
	t, err := timerLayout.Load(o.k, w.slot)
	if err != nil {
		return err
	}
	idx := b.CLK % timerLevelSize
	bucket := b.Vectors.Add(int(8 * idx))
	first, err := tx.Get(bucket, 8)
	if err != nil {
		return err
	}
	edits := []Edit{
		{t.Expires, w.path("timer.expires"), 0, b.CLK, 8},
		{t.Function, w.path("timer.function"), 0, uint64(o.at.processTimeout), 8},
		{t.Flags, w.path("timer.flags"), 0, idx<<timerArrayShift | timerPinned, 4}, // | CPU 0
		{t.Task, w.path("task"), 0, uint64(w.task), 8},
		{t.Next, w.path("timer.entry.next"), 0, first, 8},
		{t.PPrev, w.path("timer.entry.pprev"), 0, uint64(bucket), 8},
	}
	if first != 0 {
		if !kernel.Addr(first).IsKernel() {
			return fmt.Errorf("%w: timer at %#x", kernel.ErrCorrupt, first)
		}
		// hlist_node.pprev follows hlist_node.next.
		edits = append(edits, Edit{kernel.Addr(first) + 8, "timer_base(cpu 0).vectors[].first.pprev", 0, uint64(t.Next), 8})
	}
	edits = append(edits, Edit{bucket, fmt.Sprintf("timer_base(cpu 0).vectors[%d].first", idx), 0, uint64(t.Next), 8},
		Edit{b.NextExpiry, "timer_base(cpu 0).next_expiry", 0, b.CLK, 8},
		Edit{b.Recalc, "timer_base(cpu 0).next_expiry_recalc", 0, 0, 1})
	if timerBaseLayout.Has(o.k, "TimersPending") {
		edits = append(edits, Edit{b.TimersPending, "timer_base(cpu 0).timers_pending", 0, 1, 1})
	}
	if err := setAll(tx, edits); err != nil {
		return err
	}
	return tx.Update(b.PendingMap, 8, "timer_base(cpu 0).pending_map", func(v uint64) uint64 { return v | 1<<idx })
}

// setAll plans edits, whose Old is ignored.
func setAll(tx *Tx, edits []Edit) error {
	for _, e := range edits {
		if err := tx.Set(e.Addr, e.Width, e.Path, e.New); err != nil {
			return err
		}
	}
	return nil
}

// landed says whether the kernel has let go of w's slot. The guest may be running.
func (o *op) landed(w *wake) (bool, error) {
	if w.cleared {
		return true, nil
	}
	if w.work != 0 {
		return o.queueLanded(w)
	}
	if !w.timer {
		c, err := csdLayout.Load(o.k, w.slot)
		if err != nil {
			return false, err
		}
		flags, err := o.k.ReadU32(c.Flags)
		return flags&csdLock == 0, err
	}
	t, err := timerLayout.Load(o.k, w.slot)
	if err != nil {
		return false, err
	}
	pprev, err := o.k.ReadU64(t.PPrev)
	if err != nil || pprev != 0 {
		return false, err
	}
	// Unlinked, but its function may be running and still read the slot.
	b, err := timerBaseLayout.Load(o.k, o.at.timerBase)
	return b.Running != t.Next, err
}

// wakeUnderWay says whether a wake-up of t has been sent and has not landed.
func (o *op) wakeUnderWay(t *thread) bool {
	for _, w := range o.unsettled {
		if w.task != t.Addr && !slices.Contains(w.tasks, t.Addr) {
			continue
		}
		if ok, err := o.landed(w); err == nil && !ok {
			return true
		}
	}
	return false
}
