package signal_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// errInUse says that the guest was stopped while it changed what is to be checked.
var errInUse = errors.New("in use")

// requireSound checks from outside that nothing in the scheduler, the timer wheels and
// the queues of cross-processor calls contradicts itself. It waits for a moment at which
// no lock is held, and returns what was looked at.
func (g *guest) requireSound(t *testing.T) kernel.QueueCheck {
	t.Helper()
	c, err := g.sound(t.Context())
	require.NoError(t, err)
	return c
}

func (g *guest) sound(ctx context.Context) (kernel.QueueCheck, error) {
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		c, err := g.soundNow(ctx)
		if !errors.Is(err, errInUse) && !errors.Is(err, kernel.ErrLocked) || time.Now().After(end) {
			return c, err
		}
	}
}

// soundNow checks the guest as it is at one moment.
func (g *guest) soundNow(ctx context.Context) (c kernel.QueueCheck, err error) {
	resume, err := g.k.Memory().(vmi.Pauser).Pause(ctx)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, resume()) }()
	if c, err = g.k.CheckRunQueues(); err == nil {
		err = g.orderly()
	}
	return c, err
}

// orderly checks the timer wheels and the queues of calls of a guest that stands still.
func (g *guest) orderly() error {
	cpus, err := g.k.OnlineCPUs()
	if err != nil {
		return err
	}
	for _, cpu := range cpus {
		if err := wheels(g.k, cpu); err != nil {
			return fmt.Errorf("timers of CPU %d: %w", cpu, err)
		}
		if err := calls(g.k, cpu); err != nil {
			return fmt.Errorf("calls of CPU %d: %w", cpu, err)
		}
	}
	return nil
}

type wheelWords struct {
	Lock    uint32      `k:"lock.raw_lock.val.counter"`
	Running kernel.Addr `k:"running_timer"`
	CPU     uint32      `k:"cpu"`
	Pending kernel.Addr `k:"&pending_map"`
	Vectors kernel.Addr `k:"&vectors"`
}

type timerWords struct {
	Next     kernel.Addr `k:"entry.next"`
	PPrev    kernel.Addr `k:"entry.pprev"`
	Function kernel.Addr `k:"function"`
	Flags    uint32      `k:"flags"`
}

type callWords struct {
	Next  kernel.Addr `k:"llist.next"`
	Flags uint32      `k:"u_flags"`
}

var (
	wheelLayout     = kernel.LayoutOf[wheelWords]("timer_base")
	timerWordLayout = kernel.LayoutOf[timerWords]("timer_list")
	callWordLayout  = kernel.LayoutOf[callWords]("__call_single_node")
)

// wheels checks the timer wheels of a CPU. Source: kernel/time/timer.c:enqueue_timer,
// detach_if_pending.
func wheels(k *kernel.Kernel, cpu int) error {
	a, err := k.PerCPU("timer_bases", cpu)
	if err != nil {
		return err
	}
	size, err := wheelLayout.Size(k)
	if err != nil {
		return err
	}
	bases := 2
	if _, t, err := k.Types().PerCPU("timer_bases"); err == nil {
		bases = t.Len
	}
	base, err := k.Types().Struct("timer_base")
	if err != nil {
		return err
	}
	vectors, err := base.Lookup("vectors")
	if err != nil {
		return err
	}
	for i := range bases {
		if err := wheel(k, a+kernel.Addr(i*size), cpu, vectors.Type.Len); err != nil {
			return fmt.Errorf("base %d: %w", i, err)
		}
	}
	return nil
}

func wheel(k *kernel.Kernel, base kernel.Addr, cpu, buckets int) error {
	b, err := wheelLayout.Load(k, base)
	if err != nil {
		return err
	}
	if b.Lock != 0 || b.Running != 0 {
		return errInUse
	}
	if int(b.CPU) != cpu || buckets < 1 || buckets > 1<<12 {
		return fmt.Errorf("of CPU %d, with %d buckets", b.CPU, buckets)
	}
	words := make([]byte, 8*buckets)
	if _, err := k.ReadAt(words, b.Vectors); err != nil {
		return err
	}
	pending := make([]byte, 8*((buckets+63)/64))
	if _, err := k.ReadAt(pending, b.Pending); err != nil {
		return err
	}
	for i := range buckets {
		node := kernel.Addr(binary.LittleEndian.Uint64(words[8*i:]))
		if set := pending[i/8]>>(i%8)&1 != 0; set != (node != 0) {
			return fmt.Errorf("bucket %d begins with %s, but its bit is %v", i, node, set)
		}
		from := b.Vectors + kernel.Addr(8*i)
		for n := 0; node != 0; n++ {
			t, err := timerWordLayout.Load(k, node)
			if err != nil {
				return fmt.Errorf("bucket %d: %w", i, err)
			}
			if t.PPrev != from || int(t.Flags>>22) != i || int(t.Flags&0x3ffff) != cpu || !t.Function.IsKernel() || n > 1<<16 {
				return fmt.Errorf("bucket %d, timer %s after %s: %+v", i, node, from, t)
			}
			node, from = t.Next, node
		}
	}
	return nil
}

// calls checks the lists of what a CPU is to do for others. They need no lock. An idle
// CPU with something in them has been told, or will wait for long: that is an error if
// it is still so the next times. Source: kernel/smp.c:__flush_smp_call_function_queue,
// kernel/irq_work.c:irq_work_run_list.
func calls(k *kernel.Kernel, cpu int) error {
	rq, err := k.RunQueue(cpu)
	if err != nil {
		return err
	}
	for _, name := range []string{"call_single_queue", "raised_list", "lazy_list"} {
		a, err := k.PerCPU(name, cpu)
		if err != nil {
			return err
		}
		node, err := k.ReadAddr(a)
		if err != nil {
			return err
		}
		if node != 0 && rq.IsIdle() {
			return fmt.Errorf("%w: %s is not empty", errInUse, name)
		}
		for n := 0; node != 0; n++ {
			c, err := callWordLayout.Load(k, node)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			kind := c.Flags & 0xf0 // CSD_FLAG_TYPE_MASK
			switch {
			case n > 1<<16, kind > 0x30:
				return fmt.Errorf("%s: %s has flags %#x", name, node, c.Flags)
			case kind != 0x30 && c.Flags&1 == 0: // CSD_FLAG_LOCK, IRQ_WORK_PENDING; a wake-up has neither
				return fmt.Errorf("%s: %s is linked, but its flags are %#x", name, node, c.Flags)
			}
			node = c.Next
		}
	}
	return nil
}

// otherWords is memory of which some words are others.
type otherWords struct {
	vmi.Memory
	words map[vmi.Phys]uint64
}

func (o otherWords) ReadPhys(b []byte, a vmi.Phys) (int, error) {
	n, err := o.Memory.ReadPhys(b, a)
	for at, w := range o.words {
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], w)
		for i, v := range word {
			if off := int64(at) + int64(i) - int64(a); off >= 0 && off < int64(n) {
				b[off] = v
			}
		}
	}
	return n, err
}

// The checks find one word that is not what it should be.
func TestInvariants(t *testing.T) {
	oneGuest(t, 1, 1, func(t *testing.T, g *guest) {
		g.start(t, loads[1].argv...) // an idle CPU may have nothing in its queues
		g.requireSound(t)
		o := otherWords{struct{ vmi.Memory }{g.k.Memory()}, make(map[vmi.Phys]uint64)}
		k, err := kernel.Open(t.Context(), o, nil)
		require.NoError(t, err)
		changed := &guest{g.VM, k, g.name}
		bases, err := k.PerCPU("timer_bases", 0)
		require.NoError(t, err)
		b, err := wheelLayout.Load(k, bases)
		require.NoError(t, err)
		lazy, err := k.PerCPU("lazy_list", 0)
		require.NoError(t, err)
		nothing, err := k.Symbol("empty_zero_page")
		require.NoError(t, err)
		for _, c := range []struct {
			at     kernel.Addr
			change func(uint64) uint64
			want   string
		}{
			{b.Pending, func(v uint64) uint64 { return v ^ 1 }, "its bit is"},
			{b.Vectors, func(uint64) uint64 { return uint64(bases) }, "bucket 0"},
			{lazy, func(uint64) uint64 { return uint64(nothing) }, "is linked, but its flags are 0x0"},
		} {
			phys, err := k.Phys(c.at)
			require.NoError(t, err)
			require.Eventually(t, func() bool {
				resume, err := g.k.Memory().(vmi.Pauser).Pause(t.Context())
				if err != nil {
					return false
				}
				defer resume()
				v, err := g.k.ReadU64(c.at)
				if err != nil {
					return false
				}
				o.words[phys] = c.change(v)
				defer delete(o.words, phys)
				err = changed.orderly()
				return err != nil && strings.Contains(err.Error(), c.want)
			}, 20*time.Second, 10*time.Millisecond, "%s", c.want)
		}
		g.requireSound(t)
	})
}
