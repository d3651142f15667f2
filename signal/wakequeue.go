package signal

import (
	"fmt"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// Many tasks are woken at once by a wake queue, the kernel's own list of tasks that
// somebody is about to wake (include/linux/sched/wake_q.h): it goes through the tasks,
// and wake_up_q() wakes them all and drops the references that the list holds. It is
// called by a call_single_data on CPU 0. An idle CPU looks at its calls when it leaves
// idle; on a busy one an irq_work on the lazy list, whose function is that of the call
// interrupt, makes it look at the next tick. A kernel that keeps track of its timers
// would report a forged one: there a queue wakes even a single task.
//
// Both take two slots, however many tasks there are.

const (
	// queueFrom is the number of tasks from which on they are woken by a queue.
	queueFrom = 9
	// queueHead is where in the slot of the call the wake_q_head lies.
	queueHead = 32
	wakeQTail = 1 // WAKE_Q_TAIL
)

// probeQueue finds what a wake queue needs; without it tasks are woken one by one.
func (m *machine) probeQueue(k *kernel.Kernel) error {
	var err error
	for name, a := range map[string]*kernel.Addr{
		"wake_up_q": &m.at.wakeUpQ, "generic_smp_call_function_single_interrupt": &m.at.callInterrupt,
	} {
		if *a, err = k.Symbol(name); err != nil {
			return unsupported("%w", err)
		}
	}
	if m.at.lazyList, err = k.PerCPU("lazy_list", 0); err != nil {
		return unsupported("%w", err)
	}
	for _, c := range []struct {
		l interface {
			Size(*kernel.Kernel) (int, error)
		}
		room int
	}{{csdLayout, queueHead}, {wakeQLayout, slotSize - queueHead}, {irqWorkLayout, slotSize}} {
		n, err := c.l.Size(k)
		if err != nil {
			return unsupported("%w", err)
		}
		if n > c.room {
			return unsupported("a wake queue needs %d bytes where there are %d", n, c.room)
		}
	}
	// A lazy list that is worked off by a thread makes calls with interrupts on, also
	// those that other CPUs have queued meanwhile. And tasklist_lock is another there.
	if m.at.rt {
		return unsupported("many processes at once, of a PREEMPT_RT kernel")
	}
	if m.at.cfi {
		return unsupported("indirect calls check the callee's type")
	}
	return nil
}

// planQueue adds to p a wake-up of all tasks.
func (o *op) planQueue(p *plan, tasks []*thread, c cpu0) error {
	var slot [2]kernel.Addr
	for i := range slot {
		a, ok, err := o.slots.take(o.k)
		if err != nil || !ok {
			if i > 0 {
				o.slots.untake(slot[0])
			}
			if err == nil {
				err = retry("all memory for wake-ups is in use")
			}
			return err
		}
		slot[i] = a
	}
	w := &wake{slot: slot[0], work: slot[1], pid: tasks[0].PID, noRef: true}
	p.wakes = append(p.wakes, w)
	head := w.slot + queueHead
	h, err := wakeQLayout.Load(o.k, head)
	if err != nil {
		return err
	}
	at, path := h.First, w.path("wake_q_head.first")
	for _, t := range tasks {
		if err := t.piLockFree(); err != nil {
			return err
		}
		// One that is in a wake queue already is about to be woken.
		next, err := p.Get(t.w.WakeQAddr, 8)
		if err != nil {
			return err
		}
		if next != 0 {
			continue
		}
		if err := p.Set(at, 8, path, uint64(t.w.WakeQAddr)); err != nil {
			return err
		}
		if err := p.Update(t.w.Usage, 4, t.path("usage"), func(v uint64) uint64 { return v + 1 }); err != nil {
			return err
		}
		at, path = t.w.WakeQAddr, t.path("wake_q.next")
		w.tasks = append(w.tasks, t.Addr)
		// A later task of this loop must not take it for free.
		if err := p.Set(at, 8, path, wakeQTail); err != nil {
			return err
		}
	}
	if len(w.tasks) == 0 {
		return retry("pid %d is about to be woken", w.pid)
	}
	if err := p.Set(at, 8, path, wakeQTail); err != nil {
		return err
	}
	w.tail = at
	if err := p.Set(h.Last, 8, w.path("wake_q_head.lastp"), uint64(at)); err != nil {
		return err
	}
	if err := o.planCall(p.Tx, w, o.at.wakeUpQ, head); err != nil || c.kick {
		return err
	}
	return o.linkWork(p.Tx, w)
}

// linkWork makes CPU 0 look at its calls at its next tick.
func (o *op) linkWork(tx *Tx, w *wake) error {
	i, err := irqWorkLayout.Load(o.k, w.work)
	if err != nil {
		return err
	}
	flags, err := tx.Get(i.Flags, 4)
	if err != nil || flags != 0 {
		return err // it is linked
	}
	first, err := tx.Get(o.at.lazyList, 8)
	if err != nil {
		return err
	}
	return setAll(tx, []Edit{
		{i.Flags, w.path("irq_work.flags"), 0, csdTypeIRQWork | irqWorkInFlight, 4},
		{i.Func, w.path("irq_work.func"), 0, uint64(o.at.callInterrupt), 8},
		{i.Next, w.path("irq_work.node.llist.next"), 0, first, 8},
		{o.at.lazyList, "lazy_list(cpu 0).first", 0, uint64(i.Next), 8},
	})
}

// queueLanded says whether nothing of the queue is needed any more: the call was made,
// its last task was woken, and the work item has been run or was never linked.
func (o *op) queueLanded(w *wake) (bool, error) {
	c, err := csdLayout.Load(o.k, w.slot)
	if err != nil {
		return false, err
	}
	i, err := irqWorkLayout.Load(o.k, w.work)
	if err != nil {
		return false, err
	}
	for _, f := range []struct {
		a    kernel.Addr
		busy uint32
	}{{c.Flags, csdLock}, {i.Flags, irqWorkInFlight}} {
		flags, err := o.k.ReadU32(f.a)
		if err != nil || flags&f.busy != 0 {
			return false, err
		}
	}
	// The task may be gone by now, and its memory another's: whatever is there, it is
	// not the end of a wake queue for long.
	next, err := o.k.ReadU64(w.tail)
	return next != wakeQTail, err
}

// unlinkQueue takes a queue back that the kernel has not come to.
func (o *op) unlinkQueue(tx *Tx, w *wake) (found bool, err error) {
	c, err := csdLayout.Load(o.k, w.slot)
	if err != nil {
		return false, err
	}
	i, err := irqWorkLayout.Load(o.k, w.work)
	if err != nil {
		return false, err
	}
	if found, err = llistUnlink(tx, o.at.callQueue, c.Next, "call_single_queue(cpu 0)"); err != nil || !found {
		return false, err
	}
	if err := tx.Set(c.Flags, 4, w.path("csd.node.u_flags"), 0); err != nil {
		return false, err
	}
	flags, err := tx.Get(i.Flags, 4)
	if err != nil {
		return false, err
	}
	if flags&irqWorkInFlight != 0 {
		if found, err = llistUnlink(tx, o.at.lazyList, i.Next, "lazy_list(cpu 0)"); err != nil || !found {
			return false, err
		}
		if err := tx.Set(i.Flags, 4, w.path("irq_work.flags"), 0); err != nil {
			return false, err
		}
	}
	return true, o.dissolve(tx, w)
}

// dissolve takes the tasks of a queue apart, and drops their references.
func (o *op) dissolve(tx *Tx, w *wake) error {
	h, err := wakeQLayout.Load(o.k, w.slot+queueHead)
	if err != nil {
		return err
	}
	off, err := wakeQOffset(o.k)
	if err != nil {
		return err
	}
	at := h.First
	for range maxThreads {
		next, err := tx.Get(at, 8)
		if err != nil {
			return err
		}
		if at != h.First {
			if err := tx.Set(at, 8, "task_struct.wake_q.next", 0); err != nil {
				return err
			}
		}
		if next == wakeQTail {
			return nil
		}
		if at = kernel.Addr(next); !at.IsKernel() || at%8 != 0 {
			return fmt.Errorf("%w: a wake queue leads to %s", kernel.ErrCorrupt, at)
		}
		words, err := taskLayout.Load(o.k, at-off)
		if err != nil {
			return err
		}
		n, err := tx.Get(words.Usage, 4)
		if err != nil {
			return err
		}
		if n > 1 { // the last one cannot be dropped from here: see planSettle
			if err := tx.Set(words.Usage, 4, "task_struct.usage", n-1); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("wake queue: %w", kernel.ErrLimit)
}

// wakeQOffset returns where in a task_struct its place in wake queues is.
func wakeQOffset(k *kernel.Kernel) (kernel.Addr, error) {
	c, err := k.Types().Struct("task_struct")
	if err != nil {
		return 0, err
	}
	f, err := c.Lookup("wake_q.next")
	if err != nil {
		return 0, err
	}
	return kernel.Addr(f.Offset()), nil
}
