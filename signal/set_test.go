package signal_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/signal"
)

// cgroup makes a control group with at most n processes, mounts cgroup v2 if need be,
// and returns its path in the hierarchy.
func (g *guest) cgroup(t *testing.T, n int) string {
	t.Helper()
	name := fmt.Sprintf("/set-%d", files.Add(1))
	g.sh(t, `set -e
mkdir -p /tmp/cg2
mountpoint -q /tmp/cg2 || mount -t cgroup2 none /tmp/cg2
grep -q pids /tmp/cg2/cgroup.subtree_control || echo +pids > /tmp/cg2/cgroup.subtree_control
mkdir /tmp/cg2%s
echo %d > /tmp/cg2%s/pids.max`, name, n, name)
	t.Cleanup(func() {
		_, _ = g.Exec(context.Background(), "sh", "-c", fmt.Sprintf(
			"d=/tmp/cg2%s; for i in 1 2 3 4 5; do kill -9 $(cat $d/cgroup.procs) 2>/dev/null; sleep 0.2; done; rmdir $d", name))
	})
	return name
}

// inGroup starts a shell script in a group.
func (g *guest) inGroup(t *testing.T, name, script string) *kernel.Task {
	t.Helper()
	return g.start(t, "sh", "-c", "echo $$ > /tmp/cg2"+name+"/cgroup.procs && exec sh -c '"+script+"' >/dev/null 2>&1")
}

// states counts the processes of a group by their state letter, as the guest has it.
func (g *guest) states(t *testing.T, name string) map[string]int {
	t.Helper()
	procs, stats, ok := strings.Cut(g.sh(t, "cat /tmp/cg2%s/cgroup.procs; echo --; cat /proc/[0-9]*/stat 2>/dev/null || :", name), "--")
	require.True(t, ok)
	in := strings.Fields(procs)
	m := map[string]int{}
	for line := range strings.Lines(stats) {
		pid, rest, _ := strings.Cut(line, " ")
		if slices.Contains(in, pid) {
			m[rest[strings.LastIndexByte(rest, ')')+2:][:1]]++
		}
	}
	return m
}

// forkBomb never stops forking; pids.max bounds it.
const forkBomb = `b() { while :; do b & : ; done; }; b`

// tree is a process with a hundred descendants, in two generations.
const tree = `exec python3 -c "
import os, signal
for i in range(10):
    if os.fork() == 0:
        for j in range(9):
            if os.fork() == 0: break
        break
while True: signal.pause()"`

// onceOr returns n in the acceptance run, else 1: these tests start many processes.
func onceOr(n int) int {
	if acceptance() {
		return n
	}
	return 1
}

func pauses(r *signal.SetReport) string {
	return fmt.Sprintf("%s: %d processes, %d threads, %d passes, %d words, paused %v, effect after %v",
		r.Set, len(r.Processes), r.Threads, r.Passes, len(r.Edits), r.Pauses, r.Latency)
}

// needsSets skips a test on PREEMPT_RT kernels, where many processes at once are refused.
func (g *guest) needsSets(t *testing.T) {
	t.Helper()
	if !strings.HasSuffix(g.name, "-rt") {
		return
	}
	task := g.start(t, "sleep", "1000")
	_, err := signal.SendAll(t.Context(), signal.Process(task), signal.SIGSTOP, nil)
	require.ErrorIs(t, err, signal.ErrUnsupported)
	_, err = signal.FreezeAll(t.Context(), signal.Process(task), nil)
	require.ErrorIs(t, err, signal.ErrUnsupported)
	t.Skip("refused, as it should be")
}

func TestTree(t *testing.T) {
	eachGuest(t, 1, func(t *testing.T, g *guest) {
		g.needsSets(t)
		name := g.cgroup(t, 1000)
		root := g.inGroup(t, name, tree)
		last := map[string]int{}
		require.Eventually(t, func() bool { last = g.states(t, name); return last["S"] == 101 }, 2*time.Minute, 100*time.Millisecond, "%v", &last)
		before := strings.Fields(g.sh(t, "cat /tmp/cg2%s/cgroup.procs", name))

		r, err := signal.SendAll(t.Context(), signal.Tree(root), signal.SIGSTOP, &signal.Options{DryRun: true})
		require.NoError(t, err)
		require.Len(t, r.Processes, 101)
		require.NotEmpty(t, r.Edits)
		require.Equal(t, map[string]int{"S": 101}, g.states(t, name), "a dry run writes nothing")

		for range onceOr(repetitions(t)) {
			r, err = signal.SendAll(t.Context(), signal.Tree(root), signal.SIGSTOP, nil)
			require.NoError(t, err)
			t.Log(pauses(r))
			require.Len(t, r.Processes, 101)
			require.Equal(t, map[string]int{"T": 101}, g.states(t, name))
			r, err = signal.SendAll(t.Context(), signal.Tree(root), signal.SIGCONT, nil)
			require.NoError(t, err)
			t.Log(pauses(r))
			require.Equal(t, map[string]int{"S": 101}, g.states(t, name))

			f, err := signal.FreezeAll(t.Context(), signal.Tree(root), nil)
			require.NoError(t, err)
			t.Log(pauses(f.Report()))
			require.Len(t, f.Report().Processes, 101)
			require.NoError(t, f.Verify())
			require.Equal(t, map[string]int{"S": 101}, g.states(t, name))
			require.NoError(t, f.Thaw(t.Context()))
			require.NoError(t, f.Thaw(t.Context()))
			untouched(t, root)
		}
		require.ElementsMatch(t, before, strings.Fields(g.sh(t, "cat /tmp/cg2%s/cgroup.procs", name)))
		for _, pid := range before {
			n, err := strconv.Atoi(pid)
			require.NoError(t, err)
			u, err := g.k.Task(kernel.PID(n))
			require.NoError(t, err)
			untouched(t, u)
		}
		requireNothingLeft(t, g.k)

		// Left frozen, and thawed by the next.
		set, err := signal.InCgroup(g.k, name)
		require.NoError(t, err)
		f, err := signal.FreezeAll(t.Context(), set, nil)
		require.NoError(t, err)
		require.NoError(t, f.Leave())
		r, err = signal.ThawAll(t.Context(), set, nil)
		require.NoError(t, err)
		require.Len(t, r.Processes, 101)
		untouched(t, root)
		r, err = signal.ThawAll(t.Context(), set, nil)
		require.NoError(t, err)
		require.Empty(t, r.Processes)

		r, err = signal.SendAll(t.Context(), signal.Tree(root), signal.SIGKILL, nil)
		require.NoError(t, err)
		t.Log(pauses(r))
		require.Eventually(t, func() bool { return len(g.states(t, name)) == 0 }, 10*time.Second, 50*time.Millisecond)
		r, err = signal.SendAll(t.Context(), set, signal.SIGKILL, nil)
		require.NoError(t, err)
		require.Empty(t, r.Processes, "there is nothing left to kill")
	})
}

// A group whose processes do nothing but fork: whatever moment it is hit in, none gets
// away.
func TestForkBomb(t *testing.T) {
	for _, cpus := range []int{1, 2} {
		if cpus > 1 && !acceptance() {
			continue
		}
		t.Run(fmt.Sprintf("%d cpu", cpus), func(t *testing.T) {
			oneGuest(t, 1, cpus, func(t *testing.T, g *guest) {
				g.needsSets(t)
				name := g.cgroup(t, 150)
				g.inGroup(t, name, forkBomb)
				set, err := signal.InCgroup(g.k, name)
				require.NoError(t, err)
				count := func() int { return len(strings.Fields(g.sh(t, "cat /tmp/cg2%s/cgroup.procs", name))) }
				require.Eventually(t, func() bool { return count() > 50 }, 2*time.Minute, 100*time.Millisecond)
				o := &signal.Options{Timeout: 60 * time.Second}
				for range onceOr(repetitions(t)) {
					r, err := signal.SendAll(t.Context(), set, signal.SIGSTOP, o)
					require.NoError(t, err)
					t.Log(pauses(r))
					n := count()
					states := g.states(t, name)
					require.Zero(t, states["R"]+states["S"]+states["D"], "%v", states)
					time.Sleep(100 * time.Millisecond)
					require.Equal(t, n, count(), "somebody still forks")
					r, err = signal.SendAll(t.Context(), set, signal.SIGCONT, o)
					require.NoError(t, err)
					t.Log(pauses(r))

					f, err := signal.FreezeAll(t.Context(), set, &signal.FreezeOptions{Timeout: 60 * time.Second})
					require.NoError(t, err)
					t.Log(pauses(f.Report()))
					n = count()
					time.Sleep(100 * time.Millisecond)
					require.Equal(t, n, count(), "somebody still forks")
					require.NoError(t, f.Verify())
					require.NoError(t, f.Thaw(t.Context()))
				}
				r, err := signal.SendAll(t.Context(), set, signal.SIGKILL, o)
				require.NoError(t, err)
				t.Log(pauses(r))
				require.Eventually(t, func() bool {
					states := g.states(t, name)
					return states["R"]+states["S"]+states["D"]+states["T"] == 0
				}, 10*time.Second, 50*time.Millisecond)
				requireNothingLeft(t, g.k)
			})
		})
	}
}

// All or nothing: where one process must be left alone, none is touched, and where one
// does not stop, none stays stopped.
func TestAllOrNothing(t *testing.T) {
	oneGuest(t, 0, 1, func(t *testing.T, g *guest) {
		g.needsSets(t)
		name := g.cgroup(t, 100)
		g.inGroup(t, name, "sleep 1000 & sleep 1001")
		traced := g.inGroup(t, name, `exec python3 -c "import ctypes, time; ctypes.CDLL(None).ptrace(0, 0, 0, 0); time.sleep(1000)"`)
		set, err := signal.InCgroup(g.k, name)
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			u, err := g.k.Task(traced.PID)
			return err == nil && u.Ptrace != 0
		}, 20*time.Second, 50*time.Millisecond)
		before := g.states(t, name)
		_, err = signal.SendAll(t.Context(), set, signal.SIGSTOP, nil)
		require.ErrorIs(t, err, signal.ErrTraced)
		_, err = signal.FreezeAll(t.Context(), set, nil)
		require.ErrorIs(t, err, signal.ErrTraced)
		require.Equal(t, before, g.states(t, name))
		g.sh(t, "kill -9 %d", traced.PID)

		task, release := vforked(t, g)
		g.sh(t, "echo %d > /tmp/cg2%s/cgroup.procs", task.PID, name)
		r, err := signal.SendAll(t.Context(), set, signal.SIGSTOP, &signal.Options{Timeout: 500 * time.Millisecond})
		require.ErrorIs(t, err, signal.ErrTimeout, "%+v", r.Processes)
		require.Contains(t, err.Error(), fmt.Sprintf("thread %d is in state D", task.PID))
		require.Zero(t, g.states(t, name)["T"])
		_, err = signal.FreezeAll(t.Context(), set, &signal.FreezeOptions{Timeout: 500 * time.Millisecond})
		require.ErrorIs(t, err, signal.ErrTimeout)
		untouched(t, task)
		release()
		_, err = signal.InCgroup(g.k, "/no/such/group")
		require.ErrorIs(t, err, signal.ErrNoCgroup)
		_, err = signal.InCgroup(g.k, "nowhere:/x")
		require.ErrorIs(t, err, signal.ErrNoCgroup)
	})
}

// A process that waits for its vfork child cannot come to where it stops while the child
// is stopped too. It does nothing either.
func TestVforkInSet(t *testing.T) {
	oneGuest(t, 0, 1, func(t *testing.T, g *guest) {
		g.needsSets(t)
		task, release := vforked(t, g)
		set := signal.Tree(task)
		child, err := task.VforkChild()
		require.NoError(t, err)
		require.NotNil(t, child)
		parent, err := child.PPID()
		require.NoError(t, err)
		require.Equal(t, task.PID, parent)

		f, err := signal.FreezeAll(t.Context(), set, nil)
		require.NoError(t, err)
		require.Len(t, f.Report().Processes, 2)
		require.NoError(t, f.Verify())
		require.NoError(t, f.Thaw(t.Context()))
		untouched(t, task)

		for range 2 {
			_, err = signal.SendAll(t.Context(), set, signal.SIGSTOP, nil)
			require.NoError(t, err)
			require.Equal(t, "D", g.procState(t, task.PID))
			require.Equal(t, "T", g.procState(t, child.PID))
			_, err = signal.SendAll(t.Context(), set, signal.SIGCONT, nil)
			require.NoError(t, err)
			require.Eventually(t, func() bool { return g.procState(t, child.PID) == "S" }, 10*time.Second, 20*time.Millisecond)
			untouched(t, task)
		}

		_, err = signal.SendAll(t.Context(), set, signal.SIGSTOP, nil)
		require.NoError(t, err)
		g.sh(t, "kill -CONT %d", child.PID)
		release()
		require.Eventually(t, func() bool { return g.procState(t, task.PID) == "T" }, 10*time.Second, 20*time.Millisecond, "it stops once the child has gone on")
		_, err = signal.SendAll(t.Context(), set, signal.SIGCONT, nil)
		require.NoError(t, err)
		require.Eventually(t, func() bool { return g.procState(t, task.PID) == "S" }, 10*time.Second, 20*time.Millisecond)
		requireNothingLeft(t, g.k)
	})
}
