package signal_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/signal"
	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/qemu"
)

// mortal is a guest whose user dies, by SIGKILL, before the n-th thing that it does to
// it: a write, an NMI, a pause or the end of one.
type mortal struct {
	*qemu.WritableGuest
	n int
}

func (m *mortal) step() {
	if m.n--; m.n < 0 {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

func (m *mortal) WritePhys(p []byte, a vmi.Phys) (int, error) {
	m.step()
	return m.WritableGuest.WritePhys(p, a)
}

func (m *mortal) InjectNMI(ctx context.Context) error {
	m.step()
	return m.WritableGuest.InjectNMI(ctx)
}

func (m *mortal) Pause(ctx context.Context) (func() error, error) {
	m.step()
	resume, err := m.WritableGuest.Pause(ctx)
	return func() error {
		m.step()
		return resume()
	}, err
}

// victim is what the process does that will be killed.
type victim struct {
	qmp, journal, verb string
	strategy           signal.Strategy
	pid, n             int
}

const victimEnv = "OVM_SIGNAL_VICTIM"

func (v victim) env() string {
	return fmt.Sprintf("%s=%s %s %s %s %d %d", victimEnv, v.qmp, v.journal, v.verb, v.strategy, v.pid, v.n)
}

// TestVictim is no test: it is the program that TestKilledAtEveryStep runs.
func TestVictim(t *testing.T) {
	if os.Getenv(victimEnv) == "" {
		t.Skip("runs only as a process of TestKilledAtEveryStep")
	}
	var v victim
	_, err := fmt.Sscanf(os.Getenv(victimEnv), "%s %s %s %s %d %d", &v.qmp, &v.journal, &v.verb, &v.strategy, &v.pid, &v.n)
	require.NoError(t, err)
	ctx := t.Context()
	mem, err := vmi.Open(ctx, v.qmp, &vmi.Options{Writable: true})
	require.NoError(t, err)
	defer mem.Close()
	k, err := kernel.Open(ctx, &mortal{mem.(*qemu.WritableGuest), v.n}, nil)
	require.NoError(t, err)
	require.NoError(t, signal.Record(k, v.journal))
	task, err := k.Task(kernel.PID(v.pid))
	require.NoError(t, err)
	o := &signal.Options{Strategy: v.strategy}
	switch v.verb {
	case "stop":
		_, err = signal.Stop(ctx, task, o)
	case "cont":
		_, err = signal.Continue(ctx, task, o)
	case "kill":
		_, err = signal.Kill(ctx, task, o)
	case "freeze":
		var f *signal.Frozen
		if f, err = signal.Freeze(ctx, task, nil); err == nil {
			err = f.Thaw(ctx)
		}
	}
	require.NoError(t, err)
}

// run returns whether the process was killed; else it has done its work.
func (v victim) run(t *testing.T) (killed bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestVictim$", "-test.count=1")
	cmd.Env = append(os.Environ(), v.env())
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		status, ok := exit.Sys().(syscall.WaitStatus)
		if ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
			return true
		}
	}
	require.NoError(t, err, "%s", out)
	return false
}

// A tool that is killed wherever it may be, while it stops, continues, kills, freezes
// or thaws a process, leaves a guest that is as before, or as if the tool had not been
// killed, or that Undo makes so.
func TestKilledAtEveryStep(t *testing.T) {
	vm := testvm.StartShared(t, testvm.Config{Suite: "bookworm"})
	g := &guest{VM: vm}
	k, done := openGuest(t, vm)
	g.k = k
	done()
	defer func() {
		g.k, done = openGuest(t, vm)
		defer done()
		g.checkLog(t)
	}()
	// Every step takes two processes that open the guest: the acceptance run only.
	stride := 11
	if acceptance() {
		stride = 1
	}
	for i, c := range []struct {
		verb     string
		strategy signal.Strategy
	}{
		{"stop", signal.ByKernel},
		{"stop", signal.ByBitmap},
		{"cont", signal.ByKernel},
		{"cont", signal.ByBitmap},
		{"kill", signal.ByKernel},
		{"kill", signal.ByBitmap},
		{"freeze", signal.ByBitmap},
	} {
		t.Run(c.verb+" "+string(c.strategy), func(t *testing.T) {
			v := victim{qmp: "qmp:" + vm.QMPSocket(), journal: t.TempDir(), verb: c.verb, strategy: c.strategy}
			seen := map[string]int{}
			var pid int
			was := ""
			for v.n = i % stride; ; v.n += stride {
				require.Less(t, v.n, 500)
				if pid == 0 {
					pid = g.sleepers(t)
				}
				v.pid = pid
				if c.verb == "cont" && was != "stopped" {
					g.sh(t, "kill -STOP %d", pid)
				}
				if !v.run(t) {
					break
				}
				var what string
				was, what = afterDeath(t, vm, v)
				seen[was+", "+what]++
				if was == "gone" {
					pid = 0
				}
			}
			t.Logf("killed before every %d. of %d steps: %v", stride, v.n, seen)
			require.Greater(t, v.n, 8)
		})
	}
}

// sleepers starts a process with threads of several kinds.
func (g *guest) sleepers(t *testing.T) int {
	t.Helper()
	pid, err := g.StartProcess(t.Context(), testvm.Process{Argv: []string{"/opt/ovm/sleeper", "-t", "3", "-k", "64", "mixed"}, Stderr: "/tmp/stderr"})
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = g.Exec(context.Background(), "kill", "-9", strconv.Itoa(pid)) })
	return pid
}

func openGuest(t *testing.T, vm *testvm.VM) (*kernel.Kernel, func()) {
	t.Helper()
	mem, err := vmi.Open(t.Context(), "qmp:"+vm.QMPSocket(), &vmi.Options{Writable: true})
	require.NoError(t, err)
	k, err := kernel.Open(t.Context(), mem, nil)
	require.NoError(t, err)
	return k, func() { require.NoError(t, mem.Close()) }
}

// afterDeath undoes what is to be undone, checks that the guest is in a state that is
// allowed, and says in which.
func afterDeath(t *testing.T, vm *testvm.VM, v victim) (state, how string) {
	t.Helper()
	ctx := t.Context()
	k, done := openGuest(t, vm)
	defer done()
	pending, err := signal.Pending(k, v.journal)
	require.NoError(t, err)
	how = "nothing to undo"
	for _, u := range pending {
		d, err := u.Undo(ctx, nil)
		require.NoError(t, err, "step %d: %v, words %v", v.n, u, u.Words)
		how = d.Effect
	}
	again, err := signal.Pending(k, v.journal)
	require.NoError(t, err)
	require.Empty(t, again)
	status, err := k.Memory().(vmi.Stater).Status(ctx)
	require.NoError(t, err)
	require.True(t, status.Running, "step %d: the guest stands still", v.n)
	requireNothingLeft(t, k)

	// All of it, or none.
	want := map[string][2]string{
		"stop": {"asleep", "stopped"}, "cont": {"stopped", "asleep"}, "kill": {"asleep", "gone"}, "freeze": {"asleep", "asleep"},
	}[v.verb]
	expect := want[1:]
	switch {
	case how == "nothing to undo": // not begun, or done to the end
		expect = want[:]
	case strings.HasPrefix(how, "nothing") || how == "taken back":
		expect = want[:1]
	}
	require.Eventually(t, func() bool {
		task, err := k.Task(kernel.PID(v.pid))
		if err != nil {
			state = "gone"
			return errors.Is(err, kernel.ErrNoTask) && slices.Contains(expect, state)
		}
		state = settledState(task)
		return slices.Contains(expect, state)
	}, 10*time.Second, 2*time.Millisecond, "step %d, %s: it is not %v", v.n, how, expect)
	if task, err := k.Task(kernel.PID(v.pid)); err == nil && state != "gone" {
		untouched(t, task)
		if v.verb != "cont" && state == "stopped" {
			_, err := signal.Continue(ctx, task, nil)
			require.NoError(t, err)
		}
	}
	return state, how
}

// settledState says what all threads of a process are in, "" while they differ.
func settledState(task *kernel.Task) string {
	state := ""
	for u, err := range task.Threads() {
		if err != nil {
			return ""
		}
		now := "asleep"
		switch {
		case u.ExitState != 0:
			now = "gone"
		case u.State&kernel.TaskStopped != 0 && u.OnCPU == 0:
			now = "stopped"
		case u.Frozen || u.JobCtl&(1<<23) != 0:
			return ""
		}
		if state != "" && state != now {
			return ""
		}
		state = now
	}
	return state
}

// requireNothingLeft checks the memory of forged wake-ups, and that an NMI would not
// be swallowed.
func requireNothingLeft(t *testing.T, k *kernel.Kernel) {
	t.Helper()
	var page [2]uint64
	for i, name := range []string{"vmcoreinfo_data", "vmcoreinfo_size"} {
		a, err := k.Symbol(name)
		require.NoError(t, err)
		page[i], err = k.ReadU64(a)
		require.NoError(t, err)
	}
	rest := make([]byte, 4096-page[1])
	_, err := k.ReadAt(rest, kernel.Addr(page[0]+page[1]))
	require.NoError(t, err)
	require.Equal(t, make([]byte, len(rest)), rest, "forged wake-ups are left")
	a, err := k.PerCPU("swallow_nmi", 0)
	require.NoError(t, err)
	var b [1]byte
	_, err = k.ReadAt(b[:], a)
	require.NoError(t, err)
	require.Zero(t, b[0], "swallow_nmi")
}
