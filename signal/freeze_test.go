package signal_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/signal"
)

// untouched fails if a process still carries a mark of having been frozen.
func untouched(t *testing.T, task *kernel.Task) {
	t.Helper()
	// What the kernel itself does on a thread's way back takes a moment.
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		for u, err := range task.Threads() {
			if !assert.NoError(c, err) {
				return
			}
			assert.Zero(c, u.JobCtl&(1<<23), "thread %d: JOBCTL_TRAP_FREEZE", u.PID)
			assert.False(c, u.Frozen && u.State&(kernel.TaskStopped|kernel.TaskUninterruptible) == 0, "thread %d: frozen", u.PID)
			refs, err := references(u)
			assert.NoError(c, err)
			assert.LessOrEqual(c, refs, uint64(2), "thread %d: references", u.PID)
		}
	}, 5*time.Second, 5*time.Millisecond)
}

func references(t *kernel.Task) (uint64, error) {
	o, err := t.Object()
	if err != nil {
		return 0, err
	}
	f, err := o.Field("usage.refs.counter")
	if err != nil {
		return 0, err
	}
	return f.Uint()
}

func TestFreezeThaw(t *testing.T) {
	for _, cpus := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d cpu", cpus), func(t *testing.T) {
			eachGuest(t, cpus, func(t *testing.T, g *guest) {
				tab := table{}
				defer tab.log(t)
				for _, load := range loads {
					t.Run(load.name, func(t *testing.T) {
						if load.argv != nil {
							g.start(t, load.argv...)
						}
						for i, kind := range kinds {
							if cpus > 1 && i < len(kinds)-3 {
								continue
							}
							t.Run(kind.name, func(t *testing.T) {
								row := fmt.Sprintf("%s %d cpu %s freeze %s", g.name, cpus, load.name, kind.name)
								freezeThaw(t, g, kind.argv, kind.sleep, row, tab)
							})
						}
					})
				}
			})
		})
	}
}

func freezeThaw(t *testing.T, g *guest, argv []string, sleeps bool, row string, tab table) {
	task, intact := g.sleeper(t, argv)
	for i := range repetitions(t) {
		f, err := signal.Freeze(t.Context(), task, nil)
		require.NoError(t, err)
		tab.add(row, f.Report().Latency)
		require.NoError(t, f.Verify())
		if i == 0 {
			require.Equal(t, "S", g.procState(t, task.PID), "nothing to be seen from inside")
			n := 0
			for u, err := range task.Threads() {
				require.NoError(t, err)
				require.Equal(t, u.PID, f.Threads()[n].PID)
				n++
			}
			require.Len(t, f.Threads(), n)
			require.NoError(t, f.Verify(), "it still has not run")
		}
		require.NoError(t, f.Thaw(t.Context()))
		require.NoError(t, f.Thaw(t.Context()), "once more does nothing")
		require.ErrorIs(t, f.Verify(), signal.ErrNotHeld)
		untouched(t, task)
	}
	intact()
	if sleeps {
		require.Equal(t, "S", g.procState(t, task.PID))
	}
}

// The parent of a frozen process is told nothing, and of a stopped one it is.
func TestFreezeIsInvisible(t *testing.T) {
	const parent = `
import os, sys, time
out = open(sys.argv[1], "a", buffering=1)
pid = os.fork()
if pid == 0:
    while True: time.sleep(0.01)
out.write("child %d\n" % pid)
while True:
    _, status = os.waitpid(pid, os.WUNTRACED | os.WCONTINUED)
    out.write("status %#x\n" % status)
    if os.WIFSIGNALED(status): break
`
	eachGuest(t, 1, func(t *testing.T, g *guest) {
		out := g.file()
		g.start(t, "python3", "-c", parent, out)
		require.Eventually(t, func() bool {
			return strings.HasSuffix(g.cat("%s", out), "\n") || strings.Contains(g.cat("%s", out), "child ")
		},
			10*time.Second, 50*time.Millisecond)
		var pid int
		_, err := fmt.Sscanf(g.cat("%s", out), "child %d", &pid)
		require.NoError(t, err)
		child := g.settled(t, pid)
		for range repetitions(t) {
			f, err := signal.Freeze(t.Context(), child, nil)
			require.NoError(t, err)
			time.Sleep(30 * time.Millisecond)
			require.NoError(t, f.Verify())
			require.NoError(t, f.Thaw(t.Context()))
		}
		require.Equal(t, 1, len(strings.Split(g.cat("%s", out), "\n")), "the parent was told something")

		_, err = signal.Stop(t.Context(), child, nil)
		require.NoError(t, err)
		f, err := signal.Freeze(t.Context(), child, nil)
		require.NoError(t, err, "a stopped process can be frozen")
		require.Equal(t, "T", g.procState(t, child.PID))
		g.sh(t, "kill -CONT %d", pid)
		require.Never(t, func() bool { return g.procState(t, child.PID) == "R" }, 300*time.Millisecond, 50*time.Millisecond)
		require.NoError(t, f.Thaw(t.Context()))
		require.Equal(t, "S", g.procState(t, child.PID))
		untouched(t, child)

		stopFrozen(t, g)

		f, err = signal.Freeze(t.Context(), child, nil)
		require.NoError(t, err)
		_, err = signal.Kill(t.Context(), child, nil)
		require.NoError(t, err, "a frozen process can be killed")
		require.ErrorIs(t, f.Verify(), signal.ErrNotHeld)
		require.NoError(t, f.Thaw(t.Context()))
		want := fmt.Sprintf("child %d\nstatus 0x137f\nstatus 0xffff\nstatus 0x9", pid)
		require.Eventually(t, func() bool { return g.cat("%s", out) == want }, 10*time.Second, 50*time.Millisecond, "%s", g.cat("%s", out))

		for _, strategy := range []signal.Strategy{signal.ByBitmap} {
			task, _ := g.sleeper(t, []string{"-t", "8", "mixed"})
			f, err := signal.Freeze(t.Context(), task, nil)
			require.NoError(t, err)
			_, err = signal.Kill(t.Context(), task, &signal.Options{Strategy: strategy})
			require.NoError(t, err)
			require.NoError(t, f.Thaw(t.Context()))
		}
	})
}

// A frozen process that is stopped is stopped when it is thawed, without having
// done anything in between.
func stopFrozen(t *testing.T, g *guest) {
	for _, strategy := range []signal.Strategy{signal.ByKernel, signal.ByBitmap} {
		out := g.file()
		task := g.start(t, "sh", "-c", "while :; do echo >> "+out+"; done")
		f, err := signal.Freeze(t.Context(), task, nil)
		require.NoError(t, err)
		before := g.sh(t, "wc -l < %s", out)
		r, err := signal.Stop(t.Context(), task, &signal.Options{Strategy: strategy})
		require.NoError(t, err)
		require.Contains(t, r.Effect, "frozen")
		require.NoError(t, f.Thaw(t.Context()))
		require.Eventually(t, func() bool { return g.procState(t, task.PID) == "T" }, 10*time.Second, 20*time.Millisecond)
		require.Equal(t, before, g.sh(t, "wc -l < %s", out), "it has run")
		_, err = signal.Continue(t.Context(), task, &signal.Options{Strategy: strategy})
		require.NoError(t, err)
		_, err = signal.Kill(t.Context(), task, &signal.Options{Strategy: strategy})
		require.NoError(t, err)
	}
}

// vforked starts a process whose main thread waits, uninterruptibly, for a child
// that has not executed its program yet; release lets the child go on.
func vforked(t *testing.T, g *guest) (task *kernel.Task, release func()) {
	fifo := g.file()
	g.sh(t, "mkfifo %s", fifo)
	task = g.start(t, "python3", "-c", "import os, sys, time, threading\n"+
		"threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"+
		"os.posix_spawn('/bin/true', ['true'], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, sys.argv[1], os.O_RDONLY, 0)])\n"+
		"time.sleep(1000)", fifo)
	waits := 0 // it may wait for a disk before
	require.Eventually(t, func() bool {
		if waits++; g.procState(t, task.PID) != "D" {
			waits = 0
		}
		return waits > 10
	}, time.Minute, 50*time.Millisecond)
	require.NoError(t, task.Refresh())
	released := false
	release = func() {
		if !released {
			released = true
			g.sh(t, ": > %s", fifo)
		}
	}
	t.Cleanup(release)
	return task, release
}

// A thread that does not come makes Freeze give up and let the others go on.
func TestUninterruptible(t *testing.T) {
	eachGuest(t, 1, func(t *testing.T, g *guest) {
		task, release := vforked(t, g)
		_, err := signal.Freeze(t.Context(), task, &signal.FreezeOptions{Timeout: 300 * time.Millisecond})
		var timeout *signal.TimeoutError
		require.ErrorAs(t, err, &timeout)
		require.ErrorIs(t, err, signal.ErrTimeout)
		require.Contains(t, err.Error(), fmt.Sprintf("thread %d is in state D", task.PID))
		untouched(t, task)

		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(200*time.Millisecond, cancel)
		_, err = signal.Freeze(ctx, task, nil)
		require.ErrorIs(t, err, context.Canceled)
		untouched(t, task)

		for _, strategy := range []signal.Strategy{signal.ByKernel, signal.ByBitmap} {
			o := &signal.Options{Strategy: strategy, Timeout: 300 * time.Millisecond}
			_, err = signal.Stop(t.Context(), task, o)
			require.ErrorIs(t, err, signal.ErrTimeout)
			require.Contains(t, err.Error(), "pending")
			_, err = signal.Continue(t.Context(), task, o)
			require.NoError(t, err)
			untouched(t, task)
		}
		require.Equal(t, "D", g.procState(t, task.PID))
		release()
		require.Eventually(t, func() bool { return g.procState(t, task.PID) == "S" }, 10*time.Second, 50*time.Millisecond)
		f, err := signal.Freeze(t.Context(), task, nil)
		require.NoError(t, err)
		require.NoError(t, f.Thaw(t.Context()))

		for _, strategy := range []signal.Strategy{signal.ByKernel, signal.ByBitmap} {
			task, release := vforked(t, g)
			_, err := signal.Kill(t.Context(), task, &signal.Options{Strategy: strategy})
			require.NoError(t, err, "a killable sleep ends, %s", strategy)
			release()
		}
	})
}

// Threads that come and go all the time, and processes that do.
func TestFreezeMovingTarget(t *testing.T) {
	eachGuest(t, 2, func(t *testing.T, g *guest) {
		task := g.start(t, "python3", "-c", "import threading, time\n"+
			"def many():\n"+
			" while True:\n"+
			"  ts = [threading.Thread(target=time.sleep, args=(0.001,)) for _ in range(5)]\n"+
			"  for t in ts: t.start()\n"+
			"  for t in ts: t.join()\n"+
			"for _ in range(3): threading.Thread(target=many).start()")
		for range repetitions(t) {
			f, err := signal.Freeze(t.Context(), task, nil)
			require.NoError(t, err)
			time.Sleep(20 * time.Millisecond)
			require.NoError(t, f.Verify())
			require.NoError(t, f.Thaw(t.Context()))
		}
		_, err := signal.Kill(t.Context(), task, nil)
		require.NoError(t, err)

		for i := range 4 * repetitions(t) {
			pid, err := g.StartProcess(t.Context(), shortLived(i))
			require.NoError(t, err)
			u, err := g.k.Task(kernel.PID(pid))
			if err != nil {
				require.ErrorIs(t, err, kernel.ErrNoTask)
				continue
			}
			f, err := signal.Freeze(t.Context(), u, nil)
			if err != nil {
				require.ErrorIs(t, err, signal.ErrExited)
				continue
			}
			require.NoError(t, f.Thaw(t.Context()))
		}
	})
}

// Several users of one guest at a time do not get into each other's way.
func TestConcurrent(t *testing.T) {
	eachGuest(t, 2, func(t *testing.T, g *guest) {
		var wg sync.WaitGroup
		errs := make(chan error, 64)
		for i := range 4 {
			task, intact := g.sleeper(t, slices.Clone(kinds[i].argv))
			defer intact()
			wg.Go(func() {
				o := &signal.Options{Strategy: []signal.Strategy{signal.ByKernel, signal.ByBitmap}[i%2]}
				for range repetitions(t) {
					_, err := signal.Stop(t.Context(), task, o)
					_, err2 := signal.Continue(t.Context(), task, o)
					f, err3 := signal.Freeze(t.Context(), task, nil)
					if err3 == nil {
						err3 = f.Thaw(t.Context())
					}
					if err := errors.Join(err, err2, err3); err != nil {
						errs <- err
						return
					}
				}
			})
		}
		wg.Wait()
		close(errs)
		for err := range errs {
			t.Error(err)
		}
	})
}
