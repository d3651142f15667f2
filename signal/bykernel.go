package signal

import (
	"context"
	"errors"
	"fmt"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// byKernel delivers through the per-CPU send_signal_work of CPU 0
// (kernel/trace/bpf_trace.c). An interrupt of CPU 0 runs do_bpf_send_signal() on
// it, which is group_send_sig_info() and put_task_struct(): every lock, rule and
// wake-up is the kernel's own. Linked on the call queue of an idle CPU it runs when
// the CPU leaves idle, on the lazy list of any CPU at its next tick. PREEMPT_RT takes
// sleeping locks to send a signal and has a thread for the lazy list: there it is the
// only way, and an idle CPU is kicked so that it ticks (kernel/irq_work.c:irq_work_needs_cpu).
type byKernel struct {
	*op
	w sendSignalWork
}

// deliver hands sig to the kernel and returns when the kernel has taken it.
func (b *byKernel) deliver(ctx context.Context, t *kernel.Task, sig Signal) error {
	var err error
	if b.w, err = workLayout.Load(b.k, b.at.work); err != nil {
		return err
	}
	err = b.transact(ctx, func(ctx context.Context, p *plan) error {
		b.report.Attempts++
		if err := b.refuse(t, sig); err != nil {
			return err
		}
		kind := pidTypeTGID
		if b.thread != nil {
			t, kind = b.thread, pidTypePID
		}
		return b.plan(ctx, p, t, sig, kind)
	})
	if err != nil || b.report.DryRun {
		return err
	}
	err = waitFor(ctx, b.taken, func() error { return b.nudge(ctx) })
	if err == nil {
		return errors.Join(b.rec.note("taken"), b.afterKick())
	}
	if b.thread != nil {
		t = b.thread
	}
	left := ""
	if takeBack := b.cancel(context.WithoutCancel(ctx), t); takeBack != nil {
		b.left = true
		left = fmt.Sprintf("the signal may still come: %v", takeBack)
	}
	return b.timeout(sig.String(), "the guest did not run its work item", left, err)
}

// taken says whether the kernel has run the work.
func (b *byKernel) taken() (bool, error) {
	v, err := b.k.ReadU32(b.w.Flags)
	return v&irqWorkInFlight == 0, err
}

func (b *byKernel) plan(ctx context.Context, p *plan, t *kernel.Task, sig Signal, kind int) error {
	flags, err := p.Get(b.w.Flags, 4)
	if err != nil {
		return err
	}
	if flags&irqWorkInFlight != 0 {
		return retry("send_signal_work is in use (%#x)", flags)
	}
	c, err := b.settledCPU0(ctx)
	if err != nil {
		return err
	}
	words, err := taskLayout.Load(b.k, t.Addr)
	if err != nil {
		return err
	}
	path := func(member string) string { return "send_signal_work(cpu 0)." + member }
	if b.at.dropsTask {
		if err := p.Update(words.Usage, 4, fmt.Sprintf("task_struct(%d %s).usage", t.PID, t.Comm), func(v uint64) uint64 { return v + 1 }); err != nil {
			return err
		}
	}
	edits := []Edit{
		{b.w.Task, path("task"), 0, uint64(t.Addr), 8},
		{b.w.Sig, path("sig"), 0, uint64(sig), 4},
		{b.w.Type, path("type"), 0, uint64(kind), 4},
	}
	if workLayout.Has(b.k, "HasSiginfo") {
		edits = append(edits, Edit{b.w.HasSiginfo, path("has_siginfo"), 0, 0, 1})
	}
	edits = append(edits, Edit{b.w.Flags, path("irq_work.flags"), 0, csdTypeIRQWork | irqWorkInFlight, 4})
	if err := setAll(p.Tx, edits); err != nil {
		return err
	}
	p.kick, p.work = c.kick, true
	head, name := b.at.callQueue, "call_single_queue(cpu 0)"
	if !p.kick || b.at.rt {
		head, name = b.at.lazyList, "lazy_list(cpu 0)"
	}
	if err := b.link(p, head, name); err != nil || !p.kick {
		return err
	}
	if err := b.planResched(p.Tx, c); err != nil {
		return err
	}
	return b.planKick(p.Tx, c)
}

// link pushes the work on an llist.
func (b *byKernel) link(p *plan, head kernel.Addr, name string) error {
	first, err := p.Get(head, 8)
	if err != nil {
		return err
	}
	if kernel.Addr(first) == b.w.Next {
		return retry("send_signal_work is queued already")
	}
	if err := p.Set(b.w.Next, 8, "send_signal_work(cpu 0).irq_work.node.llist.next", first); err != nil {
		return err
	}
	return p.Set(head, 8, name+".first", uint64(b.w.Next))
}

// nudge helps work that has not been run: CPU 0 may have passed the point where it
// looks at the list when we put it there.
func (b *byKernel) nudge(ctx context.Context) error {
	return b.transact(ctx, func(ctx context.Context, p *plan) error {
		if ok, err := b.taken(); ok || err != nil {
			return err
		}
		c, err := b.lookCPU0(ctx)
		if err != nil {
			return err
		}
		if p.kick = c.kick; p.kick {
			// Also right for the lazy list, whose tick an idle CPU arms on its way to sleep.
			if err := b.planResched(p.Tx, c); err != nil {
				return err
			}
			return b.planKick(p.Tx, c)
		}
		found, err := llistUnlink(p.Tx, b.at.callQueue, b.w.Next, "call_single_queue(cpu 0)")
		if err != nil || !found {
			return err
		}
		return b.link(p, b.at.lazyList, "lazy_list(cpu 0)")
	})
}

// cancel takes work back that the kernel has not run.
func (b *byKernel) cancel(ctx context.Context, t *kernel.Task) error {
	ctx, stop := context.WithTimeout(ctx, pauseLimit)
	defer stop()
	err := b.transact(ctx, func(ctx context.Context, p *plan) error {
		if ok, err := b.taken(); ok || err != nil {
			return err
		}
		found := false
		for _, l := range []struct {
			head kernel.Addr
			name string
		}{{b.at.callQueue, "call_single_queue(cpu 0)"}, {b.at.lazyList, "lazy_list(cpu 0)"}} {
			ok, err := llistUnlink(p.Tx, l.head, b.w.Next, l.name)
			if err != nil {
				return err
			}
			found = found || ok
		}
		if !found {
			return retry("send_signal_work is being run")
		}
		if err := p.Set(b.w.Flags, 4, "send_signal_work(cpu 0).irq_work.flags", csdTypeIRQWork); err != nil {
			return err
		}
		if !b.at.dropsTask {
			return nil
		}
		words, err := taskLayout.Load(b.k, t.Addr)
		if err != nil {
			return err
		}
		n, err := p.Get(words.Usage, 4)
		if err != nil || n <= 1 {
			return err // the last reference must not be dropped from here
		}
		return p.Set(words.Usage, 4, fmt.Sprintf("task_struct(%d %s).usage", t.PID, t.Comm), n-1)
	})
	if err != nil {
		return err
	}
	return b.afterKick()
}
