package signal

import (
	"context"
	"fmt"
	"slices"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// allLanded says whether every wake-up in flight has arrived. Seeing a task awake
// is no proof of that: something else may have woken it first.
func (o *op) allLanded() (bool, error) {
	for _, w := range o.unsettled {
		if ok, err := o.landed(w); !ok || err != nil {
			return false, err
		}
	}
	return true, nil
}

// settle gives back what the wake-ups that have landed used: slots and references.
// It pauses the guest if there are references.
func (o *op) settle(ctx context.Context) error {
	if err := o.freeSlots(); err != nil || len(o.unsettled) == 0 {
		return err
	}
	return o.transact(ctx, func(_ context.Context, p *plan) error { return o.planSettle(p) })
}

// freeSlots settles the wake-ups that have landed and hold no reference.
func (o *op) freeSlots() (err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.unsettled = slices.DeleteFunc(o.unsettled, func(w *wake) bool {
		if err != nil || !w.noRef {
			return false
		}
		var ok bool
		if ok, err = o.landed(w); err != nil || !ok {
			return false
		}
		err = o.clear(w)
		return err == nil
	})
	return err
}

// clear gives back the slot of a wake-up that has landed.
func (o *op) clear(w *wake) error {
	if w.cleared {
		return nil
	}
	for _, a := range []kernel.Addr{w.slot, w.work} {
		if a == 0 {
			continue
		}
		if err := o.slots.clear(o.k, a); err != nil {
			return err
		}
	}
	w.cleared = true
	return o.rec.note("freed %x", uint64(w.slot))
}

// planSettle adds to p the references to be dropped, and frees the slots.
func (o *op) planSettle(p *plan) error {
	for _, w := range o.unsettled {
		if ok, err := o.landed(w); err != nil {
			return err
		} else if !ok {
			continue
		}
		if err := o.clear(w); err != nil {
			return err
		}
		if w.noRef {
			p.settled = append(p.settled, w)
			continue
		}
		words, err := taskLayout.Load(o.k, w.task)
		if err != nil {
			return err
		}
		n, err := p.Get(words.Usage, 4)
		if err != nil {
			return err
		}
		// The last reference cannot be dropped from here, for that frees the
		// task. One leaked task_struct is better than a freed one in use.
		if n > 1 {
			if err := p.Set(words.Usage, 4, w.usagePath(), n-1); err != nil {
				return err
			}
		} else {
			o.log.Warn("task died while a wake-up was under way; its task_struct stays allocated", "pid", w.pid)
		}
		p.settled = append(p.settled, w)
	}
	return nil
}

// nudge helps wake-ups that have not landed: CPU 0 may have gone idle, or busy,
// since they were made.
func (o *op) nudge(ctx context.Context) error {
	if ok, err := o.allLanded(); ok || err != nil {
		return err
	}
	o.log.Debug("wake-up has not landed, helping", "wakes", len(o.unsettled))
	return o.transact(ctx, func(ctx context.Context, p *plan) error {
		// They may have on the way into this pause. Then an NMI would be for nothing,
		// and there would be no effect of it to wait for.
		if ok, err := o.allLanded(); ok || err != nil {
			return err
		}
		c, err := o.lookCPU0(ctx)
		if err != nil {
			return err
		}
		p.kick = c.kick
		for _, w := range o.unsettled {
			if ok, err := o.landed(w); err != nil {
				return err
			} else if ok || w.timer {
				continue
			}
			if p.kick {
				if err := o.planResched(p.Tx, c); err != nil {
					return err
				}
				continue
			}
			// A busy CPU does not look at its call queue, but its tick looks at timers.
			if w.work != 0 {
				if err := o.linkWork(p.Tx, w); err != nil {
					return err
				}
				continue
			}
			if err := o.requeue(p, w); err != nil {
				return err
			}
		}
		if p.kick {
			return o.planKick(p.Tx, c)
		}
		return nil
	})
}

// requeue turns a call into a timer, as a new wake in a new slot.
func (o *op) requeue(p *plan, w *wake) error {
	found, err := o.unlinkCall(p.Tx, w)
	if err != nil || !found {
		return err
	}
	base, err := o.timerBaseFree()
	if err != nil {
		return err
	}
	slot, ok, err := o.slots.take(o.k)
	if err != nil {
		return err
	}
	if !ok {
		return retry("all memory for wake-ups is in use")
	}
	n := &wake{task: w.task, pid: w.pid, slot: slot, timer: true}
	p.wakes = append(p.wakes, n)
	words, err := taskLayout.Load(o.k, w.task)
	if err != nil {
		return err
	}
	if err := p.Update(words.Usage, 4, w.usagePath(), func(v uint64) uint64 { return v + 1 }); err != nil {
		return err
	}
	return o.planTimer(p.Tx, n, base)
}

// cancelWakes takes wake-ups that have not landed out of the kernel's lists and
// gives back everything.
func (o *op) cancelWakes(ctx context.Context) error {
	if err := o.settle(ctx); err != nil || len(o.unsettled) == 0 {
		return err
	}
	err := o.transact(ctx, func(ctx context.Context, p *plan) error {
		c, err := o.lookCPU0(ctx)
		if err != nil {
			return err
		}
		if p.kick = c.kick; p.kick {
			// The idle task may still be marked for rescheduling, which keeps
			// others from kicking it.
			if err := o.planKick(p.Tx, c); err != nil {
				return err
			}
		}
		for _, w := range o.unsettled {
			if ok, err := o.landed(w); err != nil {
				return err
			} else if ok {
				continue
			}
			unlink := o.unlinkCall
			switch {
			case w.work != 0:
				unlink = o.unlinkQueue
			case w.timer:
				unlink = o.unlinkTimer
			}
			if found, err := unlink(p.Tx, w); err != nil {
				return err
			} else if !found {
				return retry("wake-up of pid %d is being carried out", w.pid)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return o.settle(ctx)
}

// maxQueue bounds a walk of CPU 0's lists of work.
const maxQueue = 4096

// llistUnlink plans to take the node at node out of the llist at head.
func llistUnlink(tx *Tx, head kernel.Addr, node kernel.Addr, name string) (found bool, err error) {
	at := head
	for range maxQueue {
		next, err := tx.Get(at, 8)
		if err != nil {
			return false, err
		}
		if kernel.Addr(next) == node {
			after, err := tx.Get(node, 8)
			if err != nil {
				return false, err
			}
			return true, tx.Set(at, 8, name, after)
		}
		if next == 0 {
			return false, nil
		}
		if at = kernel.Addr(next); !at.IsKernel() || at%8 != 0 {
			return false, fmt.Errorf("%w: %s leads to %s", kernel.ErrCorrupt, name, at)
		}
	}
	return false, fmt.Errorf("%s: %w", name, kernel.ErrLimit)
}

func (o *op) unlinkCall(tx *Tx, w *wake) (found bool, err error) {
	c, err := csdLayout.Load(o.k, w.slot)
	if err != nil {
		return false, err
	}
	found, err = llistUnlink(tx, o.at.callQueue, c.Next, "call_single_queue(cpu 0)")
	if err != nil || !found {
		return found, err
	}
	return true, tx.Set(c.Flags, 4, w.path("csd.node.u_flags"), 0)
}

// unlinkTimer is kernel/time/timer.c:detach_if_pending.
func (o *op) unlinkTimer(tx *Tx, w *wake) (found bool, err error) {
	b, err := o.timerBaseFree()
	if err != nil {
		return false, err
	}
	t, err := timerLayout.Load(o.k, w.slot)
	if err != nil {
		return false, err
	}
	var v [3]uint64
	for i, f := range []struct {
		a kernel.Addr
		n int
	}{{t.Next, 8}, {t.PPrev, 8}, {t.Flags, 4}} {
		if v[i], err = tx.Get(f.a, f.n); err != nil {
			return false, err
		}
	}
	next, pprev, idx := v[0], kernel.Addr(v[1]), v[2]>>timerArrayShift
	if pprev == 0 || idx >= timerLevelSize {
		return false, nil
	}
	if err := tx.Set(pprev, 8, "timer_base(cpu 0).vectors[]", next); err != nil {
		return false, err
	}
	if next != 0 {
		if err := tx.Set(kernel.Addr(next)+8, 8, "timer_base(cpu 0).vectors[].next.pprev", uint64(pprev)); err != nil {
			return false, err
		}
	} else if pprev == b.Vectors.Add(int(8*idx)) {
		if err := tx.Update(b.PendingMap, 8, "timer_base(cpu 0).pending_map", func(v uint64) uint64 { return v &^ (1 << idx) }); err != nil {
			return false, err
		}
	}
	if err := tx.Set(b.Recalc, 1, "timer_base(cpu 0).next_expiry_recalc", 1); err != nil {
		return false, err
	}
	return true, tx.Set(t.PPrev, 8, w.path("timer.entry.pprev"), 0)
}
