package signal_test

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/signal"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// guest is a virtual machine with its kernel opened from outside.
type guest struct {
	*testvm.VM
	k    *kernel.Kernel
	name string // of its suite or kernel
}

// remarks are lines of the kernel log that are no warnings by name, and still say
// that something of this package was noticed.
var remarks = regexp.MustCompile(`Uhhuh|Dazed|NMI received|psi:|irq_work|csd:`)

func (g *guest) checkLog(t *testing.T) {
	t.Helper()
	g.CheckKernel(t)
	log, err := g.Dmesg(context.Background())
	require.NoError(t, err)
	for line := range strings.Lines(log) {
		if remarks.MatchString(line) && !strings.Contains(line, "psi: Pressure Stall") {
			t.Errorf("guest's kernel: %s", line)
		}
	}
}

func (g *guest) sh(t *testing.T, script string, args ...any) string {
	t.Helper()
	out, err := g.Exec(context.Background(), "sh", "-c", fmt.Sprintf(script, args...))
	require.NoError(t, err)
	return strings.TrimSpace(string(out))
}

// start starts a program and waits until it has settled down. It is killed at the
// end of the test.
func (g *guest) start(t *testing.T, argv ...string) *kernel.Task {
	t.Helper()
	pid, err := g.StartProcess(t.Context(), testvm.Process{Argv: argv, Stderr: "/tmp/stderr"})
	require.NoError(t, err)
	t.Cleanup(func() {
		if g.cat("/proc/%d/stat", pid) != "" {
			_, _ = g.Exec(context.Background(), "kill", "-9", strconv.Itoa(pid))
		}
	})
	return g.settled(t, pid)
}

// cat returns the content of a file in the guest, "" if there is none.
func (g *guest) cat(path string, args ...any) string {
	var b bytes.Buffer
	if err := g.Get(context.Background(), fmt.Sprintf(path, args...), &b); err != nil {
		return ""
	}
	return strings.TrimSpace(b.String())
}

var files atomic.Int32

// file returns the path of a file in the guest that does not exist yet.
func (g *guest) file() string { return fmt.Sprintf("/tmp/signal-%d", files.Add(1)) }

// settled returns the process once its switches come at a steady pace.
func (g *guest) settled(t *testing.T, pid int) *kernel.Task {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var task *kernel.Task
	var faults, same int
	err := testvm.Wait(ctx, "process to settle", func() (bool, error) {
		var err error
		if task, err = g.k.Task(kernel.PID(pid)); err != nil {
			return false, err
		}
		o, err := task.Object()
		if err != nil {
			return false, err
		}
		f, err := o.Field("min_flt")
		if err != nil {
			return false, err
		}
		n, err := f.Uint()
		if int(n) != faults {
			faults, same = int(n), 0
		}
		same++
		return same > 5, err
	})
	require.NoError(t, err)
	return task
}

// procState returns what the guest itself says of a process: its state letter.
func (g *guest) procState(t *testing.T, pid kernel.PID) string {
	t.Helper()
	t.Helper()
	stat := g.cat("/proc/%d/stat", pid)
	if stat == "" {
		return "gone"
	}
	return strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])[0]
}

// kinds are the ways to be busy or asleep that are tried.
var kinds = []struct {
	name  string
	argv  []string
	sleep bool
}{
	{"pause", []string{"-t", "0", "pause"}, true},
	{"nanosleep", []string{"-t", "0", "nanosleep"}, true},
	{"read", []string{"-t", "0", "read"}, true},
	{"futex", []string{"-t", "0", "futex"}, true},
	{"epoll", []string{"-t", "0", "epoll"}, true},
	{"poll", []string{"-t", "0", "poll"}, true},
	{"spin", []string{"-t", "0", "spin"}, false},
	{"8 threads", []string{"-t", "8", "mixed"}, false},
	{"40 threads", []string{"-t", "40", "futex"}, true},
}

// sleeper starts one of kinds; intact checks that nothing in it was lost.
func (g *guest) sleeper(t *testing.T, argv []string) (task *kernel.Task, intact func()) {
	t.Helper()
	out := g.file()
	task = g.start(t, slices.Concat([]string{"/opt/ovm/sleeper", "-k", "64", "-o", out}, argv)...)
	return task, func() {
		t.Helper()
		before := g.cat("%s", out)
		g.sh(t, "kill -USR1 %d", task.PID)
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		var last string
		require.NoError(t, testvm.Wait(ctx, "the sleeper's check", func() (bool, error) {
			last = g.cat("%s", out)
			return last != before, nil
		}))
		last = last[strings.LastIndexByte(last, '\n')+1:]
		require.Contains(t, last, " OK ", "sleeper %v", argv)
	}
}

// table collects latencies and prints them.
type table map[string][]time.Duration

func (tab table) add(row string, d time.Duration) { tab[row] = append(tab[row], d) }

func (tab table) log(t *testing.T) {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%-44s %5s %10s %10s\n", "ms from write to effect", "n", "median", "worst")
	rows := make([]string, 0, len(tab))
	for r := range tab {
		rows = append(rows, r)
	}
	slices.Sort(rows)
	for _, r := range rows {
		d := tab[r]
		slices.Sort(d)
		ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
		fmt.Fprintf(&b, "%-44s %5d %10.2f %10.2f\n", r, len(d), ms(d[len(d)/2]), ms(d[len(d)-1]))
	}
	t.Log(b.String())
}

// shortLived is a process that exits about when it is found.
func shortLived(i int) testvm.Process {
	return testvm.Process{Argv: []string{"sleep", fmt.Sprintf("0.%03d", 10*i)}}
}

// loads are what else goes on in the guest.
var loads = []struct {
	name string
	argv []string
}{{"idle", nil}, {"busy", []string{"sh", "-c", "while :; do :; done"}}}

func TestStopContinueKill(t *testing.T) {
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
						for _, strategy := range []signal.Strategy{signal.ByKernel, signal.ByBitmap} {
							for i, kind := range kinds {
								if cpus > 1 && i < len(kinds)-3 {
									continue // sleepers differ no more with more CPUs
								}
								t.Run(string(strategy)+"/"+kind.name, func(t *testing.T) {
									row := fmt.Sprintf("%s %d cpu %s %s ", g.name, cpus, load.name, strategy)
									stopContinueKill(t, g, kind.argv, strategy, row, tab)
								})
							}
						}
					})
				}
			})
		})
	}
}

func stopContinueKill(t *testing.T, g *guest, argv []string, strategy signal.Strategy, row string, tab table) {
	ctx := t.Context()
	o := &signal.Options{Strategy: strategy}
	task, intact := g.sleeper(t, argv)
	do := func(verb string, f func(context.Context, *kernel.Task, *signal.Options) (*signal.Report, error)) *signal.Report {
		t.Helper()
		r, err := f(ctx, task, o)
		require.NoError(t, err, verb)
		require.Equal(t, strategy, r.Strategy)
		require.NotEmpty(t, r.Edits)
		tab.add(row+verb, r.Latency)
		return r
	}
	for i := range repetitions(t) {
		do("stop", signal.Stop)
		if i == 0 {
			require.Equal(t, "T", g.procState(t, task.PID), "the guest's own word")
			r := do("stop, stopped", signal.Stop)
			require.Equal(t, "was stopped already", r.Note)
		}
		do("cont", signal.Continue)
	}
	require.NotEqual(t, "T", g.procState(t, task.PID))
	r, err := signal.Continue(ctx, task, o)
	require.NoError(t, err)
	require.Equal(t, "was not stopped", r.Note)
	intact()

	do("kill", signal.Kill)
	require.Contains(t, []string{"gone", "Z", "X"}, g.procState(t, task.PID))
	_, err = signal.Stop(ctx, task, o)
	require.ErrorIs(t, err, signal.ErrExited)

	task, _ = g.sleeper(t, argv)
	do("stop", signal.Stop)
	do("kill, stopped", signal.Kill)
	require.Contains(t, []string{"gone", "Z", "X"}, g.procState(t, task.PID))
}

// Spinlocks of PREEMPT_RT sleep. What the other tests do on such a kernel is in the
// acceptance run.
func TestPreemptRT(t *testing.T) {
	guests(t, []string{"bookworm-rt"}, 1, func(t *testing.T, g *guest) {
		for _, strategy := range []signal.Strategy{signal.ByKernel, signal.ByBitmap} {
			stopContinueKill(t, g, []string{"-t", "0", "nanosleep"}, strategy, "", table{})
		}
	})
}

// Kernels of PREEMPT_RT that were not seen to bear it are left alone.
func TestOtherPreemptRT(t *testing.T) {
	if !acceptance() && !testvm.AllKernels() {
		t.Skip("boots three guests; $OVM_KERNELS is not all")
	}
	guests(t, []string{"bullseye-rt", "trixie-rt", "sid-rt"}, 1, func(t *testing.T, g *guest) {
		caps, err := signal.Probe(g.k)
		require.NoError(t, err)
		for _, err := range []error{caps.ByKernel, caps.ByBitmap, caps.Freeze, caps.KickIdle} {
			require.ErrorIs(t, err, signal.ErrUnsupported)
		}
	})
}

func TestProbe(t *testing.T) {
	eachGuest(t, 1, func(t *testing.T, g *guest) {
		caps, err := signal.Probe(g.k)
		require.NoError(t, err)
		require.NoError(t, caps.ByKernel)
		require.NoError(t, caps.ByBitmap)
		require.NoError(t, caps.Freeze)
		require.NoError(t, caps.KickIdle)
	})
}

// A killed process ends as by SIGKILL, as its parent in the guest sees it.
func TestKillStatus(t *testing.T) {
	eachGuest(t, 1, func(t *testing.T, g *guest) {
		for _, strategy := range []signal.Strategy{signal.ByKernel, signal.ByBitmap} {
			pidFile := g.sh(t, "mktemp")
			type end struct {
				testvm.Result
				err error
			}
			ended := make(chan end, 1)
			go func() {
				r, err := g.Run(context.Background(), testvm.Cmd{Argv: []string{"sh", "-c", "echo $$ > " + pidFile + "; exec sleep 1000"}})
				ended <- end{r, err}
			}()
			require.Eventually(t, func() bool { return g.sh(t, "cat %s", pidFile) != "" }, 10*time.Second, 50*time.Millisecond)
			pid, err := strconv.Atoi(g.sh(t, "cat %s", pidFile))
			require.NoError(t, err)
			_, err = signal.Kill(t.Context(), g.settled(t, pid), &signal.Options{Strategy: strategy})
			require.NoError(t, err)
			select {
			case e := <-ended:
				require.NoError(t, e.err)
				require.Equal(t, 9, e.Signal, strategy)
			case <-time.After(10 * time.Second):
				t.Fatal("the parent was not told")
			}
		}
	})
}

// Other signals arrive at handlers, wait where they are blocked, and do nothing
// where they are ignored.
func TestSend(t *testing.T) {
	const program = `
import signal, sys, time
out = open(sys.argv[1], "a", buffering=1)
for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGCONT, signal.SIGRTMIN + 3):
    signal.signal(s, lambda n, f: out.write("got %d\n" % n))
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
while True:
    signal.pause()
`
	eachGuest(t, 1, func(t *testing.T, g *guest) {
		for _, strategy := range []signal.Strategy{signal.ByKernel, signal.ByBitmap} {
			o := &signal.Options{Strategy: strategy}
			out := g.sh(t, "mktemp")
			task := g.start(t, "python3", "-c", program, out)
			for _, s := range []signal.Signal{15, 10, signal.SIGCONT, 37} {
				g.sh(t, ": > %s", out)
				_, err := signal.Send(t.Context(), task, s, o)
				require.NoError(t, err)
				require.Eventually(t, func() bool { return g.sh(t, "cat %s", out) == fmt.Sprintf("got %d", s) },
					10*time.Second, 50*time.Millisecond, "%s by %s", s, strategy)
			}
			g.sh(t, ": > %s", out)
			for _, s := range []signal.Signal{12, 17} { // ignored, ignored by default
				_, err := signal.Send(t.Context(), task, s, o)
				require.NoError(t, err)
			}
			_, err := signal.Send(t.Context(), task, 1, o)
			require.NoError(t, err)
			require.Regexp(t, `(?m)^ShdPnd:\s*0000000000000001$`, g.sh(t, "cat /proc/%d/status", task.PID), "SIGHUP waits")
			require.Equal(t, "S", g.procState(t, task.PID))
			require.Empty(t, g.sh(t, "cat %s", out))
		}
	})
}

func TestRefusals(t *testing.T) {
	eachGuest(t, 1, func(t *testing.T, g *guest) {
		ctx := t.Context()
		task := func(pid int) *kernel.Task {
			t.Helper()
			u, err := g.k.Task(kernel.PID(pid))
			require.NoError(t, err)
			return u
		}
		refused := func(u *kernel.Task, want error) {
			t.Helper()
			for _, f := range []func(context.Context, *kernel.Task, *signal.Options) (*signal.Report, error){signal.Stop, signal.Kill} {
				_, err := f(ctx, u, nil)
				var r *signal.RefusedError
				require.ErrorAs(t, err, &r)
				require.ErrorIs(t, err, want)
				require.NotContains(t, err.Error(), "\n")
			}
			_, err := signal.Freeze(ctx, u, nil)
			require.ErrorIs(t, err, want)
		}
		refused(task(1), signal.ErrInit)
		refused(task(2), signal.ErrKernelThread)

		parent := g.start(t, "sh", "-c", "sleep 0 & exec sleep 1000")
		zombie := func() string {
			return g.sh(t, "grep -l '^PPid:[[:space:]]%d$' /proc/[0-9]*/status | cut -d/ -f3", parent.PID)
		}
		require.Eventually(t, func() bool { return zombie() != "" }, 10*time.Second, 50*time.Millisecond)
		pid, err := strconv.Atoi(zombie())
		require.NoError(t, err)
		require.Eventually(t, func() bool { return g.procState(t, kernel.PID(pid)) == "Z" }, 10*time.Second, 50*time.Millisecond)
		refused(task(pid), signal.ErrExited)

		traced := g.start(t, "python3", "-c", "import ctypes, time, os\n"+
			"if os.fork() == 0: ctypes.CDLL(None).ptrace(0, 0, 0, 0); time.sleep(1000)\n"+
			"time.sleep(1000)")
		require.Eventually(t, func() bool {
			pid, err = strconv.Atoi(g.sh(t, "grep -l '^PPid:[[:space:]]%d$' /proc/[0-9]*/status | cut -d/ -f3", traced.PID))
			return err == nil
		}, 20*time.Second, 50*time.Millisecond)
		t.Cleanup(func() { g.sh(t, "kill -9 %d", pid) })
		refused(g.settled(t, pid), signal.ErrTraced)

		_, err = signal.Send(ctx, parent, 65, nil)
		require.ErrorIs(t, err, signal.ErrBadSignal)
		_, err = signal.Send(ctx, parent, 0, nil)
		require.ErrorIs(t, err, signal.ErrBadSignal)
		_, err = signal.Stop(ctx, parent, &signal.Options{Strategy: "hope"})
		require.ErrorContains(t, err, "hope")

		r, err := signal.Stop(ctx, parent, &signal.Options{DryRun: true})
		require.NoError(t, err)
		require.True(t, r.DryRun)
		require.NotEmpty(t, r.Edits)
		require.Equal(t, "S", g.procState(t, parent.PID), "a dry run writes nothing")

		cancelled, cancel := context.WithCancel(ctx)
		cancel()
		_, err = signal.Stop(cancelled, parent, nil)
		require.ErrorIs(t, err, context.Canceled)

		_, err = g.QMP(ctx, "stop", nil)
		require.NoError(t, err)
		_, stopErr := signal.Stop(ctx, parent, nil)
		_, err = g.QMP(ctx, "cont", nil)
		require.NoError(t, err)
		require.ErrorIs(t, stopErr, signal.ErrNotRunning)
		require.Equal(t, "S", g.procState(t, parent.PID))
	})
}

// deaf is a memory source that cannot inject an NMI, as QEMU on other machines.
type deaf struct {
	vmi.Memory
	vmi.Writer
	vmi.Pauser
}

// Without a kick an idle guest acts when it wakes by itself.
func TestWithoutNMI(t *testing.T) {
	eachGuest(t, 1, func(t *testing.T, g *guest) {
		mem := g.k.Memory()
		k, err := kernel.Open(t.Context(), deaf{mem, mem.(vmi.Writer), mem.(vmi.Pauser)}, nil)
		require.NoError(t, err)
		caps, err := signal.Probe(k)
		require.NoError(t, err)
		require.ErrorIs(t, caps.KickIdle, signal.ErrUnsupported)
		task, intact := g.sleeper(t, []string{"-t", "4", "futex"})
		task, err = k.Task(task.PID)
		require.NoError(t, err)
		tab := table{}
		for _, strategy := range []signal.Strategy{signal.ByKernel, signal.ByBitmap} {
			o := &signal.Options{Strategy: strategy, Timeout: 30 * time.Second}
			for range 2 {
				r, err := signal.Stop(t.Context(), task, o)
				require.NoError(t, err)
				tab.add("no kick, stop by "+string(strategy), r.Latency)
				r, err = signal.Continue(t.Context(), task, o)
				require.NoError(t, err)
				tab.add("no kick, cont by "+string(strategy), r.Latency)
			}
		}
		f, err := signal.Freeze(t.Context(), task, &signal.FreezeOptions{Timeout: 30 * time.Second})
		require.NoError(t, err)
		tab.add("no kick, freeze", f.Report().Latency)
		require.NoError(t, f.Thaw(t.Context()))
		intact()
		tab.log(t)
	})
}

// What cannot write, or cannot pause, says so.
func TestPoorSources(t *testing.T) {
	eachGuest(t, 1, func(t *testing.T, g *guest) {
		mem := g.k.Memory()
		for _, c := range []struct {
			mem  vmi.Memory
			want error
		}{
			{struct{ vmi.Memory }{mem}, signal.ErrReadOnly},
			{struct {
				vmi.Memory
				vmi.Writer
			}{mem, mem.(vmi.Writer)}, signal.ErrNoPause},
		} {
			k, err := kernel.Open(t.Context(), c.mem, nil)
			require.NoError(t, err)
			task := g.start(t, "sleep", "1000")
			task, err = k.Task(task.PID)
			require.NoError(t, err)
			for _, s := range []signal.Strategy{signal.Auto, signal.ByKernel, signal.ByBitmap} {
				_, err = signal.Stop(t.Context(), task, &signal.Options{Strategy: s})
				require.ErrorIs(t, err, c.want)
			}
			_, err = signal.Freeze(t.Context(), task, nil)
			require.ErrorIs(t, err, c.want)
			require.Equal(t, "S", g.procState(t, task.PID))
		}
	})
}

// A stop signal that waits, with its siginfo, for a process that is stopped already is
// no reason for SIGCONT not to do its work, nor does it come back.
func TestContinueQueuedStop(t *testing.T) {
	oneGuest(t, 0, 1, func(t *testing.T, g *guest) {
		for _, strategy := range []signal.Strategy{signal.ByKernel, signal.ByBitmap} {
			task, intact := g.sleeper(t, []string{"-t", "4", "futex"})
			for range 3 {
				g.sh(t, "kill -STOP %d; kill -STOP %d; kill -TSTP %d", task.PID, task.PID, task.PID)
				require.Eventually(t, func() bool { return g.procState(t, task.PID) == "T" }, 20*time.Second, 20*time.Millisecond)
				_, err := signal.Continue(t.Context(), task, &signal.Options{Strategy: strategy})
				require.NoError(t, err)
				require.Eventually(t, func() bool { return g.procState(t, task.PID) == "S" }, 20*time.Second, 20*time.Millisecond)
				require.Regexp(t, `(?m)^ShdPnd:\s*0000000000000000$`, g.sh(t, "cat /proc/%d/status", task.PID))
			}
			intact()
		}
	})
}
