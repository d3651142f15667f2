package signal_test

import (
	"errors"
	"flag"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/doctable"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/signal"
)

var update = flag.Bool("update", false, "write what was found into docs/signals.md and docs/cycles.md")

const signalsDoc = "../docs/signals.md"

// state is something that a process may be at when a signal comes: a row of the table.
type state struct {
	name string
	argv []string // of the target
	busy bool     // beside a busy loop

	// enter brings the target there, if its program does not by itself; leave undoes
	// what would outlive it.
	enter func(t *testing.T, x *target) (leave func())
	// is says whether a thread is there.
	is func(u *kernel.Task) bool
	// refused is why it is left alone.
	refused error
	// thread: the signal is sent to the last thread, not to the process.
	thread bool
	slow   bool // it does not come to the point where it would be held
	// byBitmap is what sending by bitmap comes to where that is not what kill(2) does.
	byBitmap map[signal.Signal]string
}

func sleeps(u *kernel.Task) bool {
	return u.State&kernel.TaskInterruptible != 0 && u.OnCPU == 0
}

func runs(u *kernel.Task) bool { return u.State == kernel.TaskRunning && u.OnCPU != 0 }

func uninterruptible(u *kernel.Task) bool {
	return u.State&kernel.TaskUninterruptible != 0 && u.State&kernel.TaskWakeKill == 0 && u.OnCPU == 0
}

func killable(u *kernel.Task) bool {
	return u.State&kernel.TaskUninterruptible != 0 && u.State&kernel.TaskWakeKill != 0 && u.OnCPU == 0
}

func asItIs(*kernel.Task) bool { return true }

// unread: nobody wakes who reads a signalfd.
var unread = map[signal.Signal]string{usr1: waits, rt3: waits}

var states = []state{
	{name: "user mode, on the CPU", argv: []string{"spin"}, is: runs},
	{name: "in the kernel, a long read", argv: []string{"kernel"}, is: runs},
	{name: "runnable, waits for the CPU", argv: []string{"runnable"}, busy: true, is: func(u *kernel.Task) bool {
		return u.State == kernel.TaskRunning && u.OnCPU == 0
	}},
	{name: "nanosleep", argv: []string{"nanosleep"}, is: sleeps},
	{name: "nanosleep, busy guest", argv: []string{"nanosleep"}, is: sleeps, busy: true},
	{name: "futex", argv: []string{"futex"}, is: sleeps},
	{name: "epoll_wait", argv: []string{"epoll"}, is: sleeps},
	{name: "poll", argv: []string{"poll"}, is: sleeps},
	{name: "read of a pipe", argv: []string{"pipe"}, is: sleeps},
	{name: "read of a pipe, busy guest", argv: []string{"pipe"}, is: sleeps, busy: true},
	{name: "killable sleep", argv: []string{"killable"}, is: killable, slow: true},
	{name: "vfork wait", argv: []string{"vfork"}, is: killable, slow: true},
	{name: "uninterruptible sleep", argv: []string{"uninterruptible"}, is: uninterruptible, slow: true},
	{name: "stopped", argv: []string{"pause"}, enter: enterStop, is: func(u *kernel.Task) bool { return u.State&kernel.TaskStopped != 0 }},
	{name: "traced", argv: []string{"traced"}, is: func(u *kernel.Task) bool { return u.Ptrace != 0 }, refused: signal.ErrTraced},
	{name: "cgroup v2 freezer", argv: []string{"pause"}, enter: enterFreezer2, is: func(u *kernel.Task) bool { return u.Frozen && sleeps(u) }},
	{name: "cgroup v1 freezer", argv: []string{"pause"}, enter: enterFreezer1, is: func(u *kernel.Task) bool { return !sleeps(u) && u.OnCPU == 0 }, slow: true},
	{name: "zombie", argv: []string{"zombie"}, is: func(u *kernel.Task) bool { return u.ExitState != 0 }, refused: signal.ErrExited},
	{name: "leader has exited, a thread sleeps", argv: []string{"leader"}, is: sleeps},
	{name: "init of a container", argv: []string{"-n", "pause"}, is: sleeps},
	{name: "signal blocked", argv: []string{"-b", "pause"}, is: sleeps},
	{name: "signal ignored", argv: []string{"-i", "pause"}, is: sleeps},
	{name: "handler with SA_RESTART", argv: []string{"-r", "pipe"}, is: sleeps},
	{name: "handler on another stack", argv: []string{"-a", "pipe"}, is: sleeps},
	{name: "sigtimedwait", argv: []string{"sigtimedwait"}, is: sleeps},
	{name: "read of a signalfd", argv: []string{"signalfd"}, is: sleeps, byBitmap: unread},
	{name: "poll of a signalfd", argv: []string{"signalfd-poll"}, is: sleeps, byBitmap: unread},
	{name: "3 threads, to any", argv: []string{"threads"}, is: sleeps},
	{name: "3 threads, to one", argv: []string{"threads"}, is: sleeps, thread: true},
	{name: "SCHED_FIFO, asleep", argv: []string{"fifo-asleep"}, is: sleeps},
	{name: "SCHED_FIFO, working", argv: []string{"fifo"}, is: asItIs},
	{name: "SCHED_FIFO, working, busy guest", argv: []string{"fifo"}, is: asItIs, busy: true},
	{name: "SCHED_DEADLINE, working", argv: []string{"deadline"}, is: asItIs},
}

func enterStop(t *testing.T, x *target) func() {
	require.NoError(t, x.kill(t, signal.SIGSTOP, 0))
	return nil
}

func enterFreezer2(t *testing.T, x *target) func() {
	dir := fmt.Sprintf("/tmp/cg2/frozen-%d", files.Add(1))
	x.g.sh(t, "mkdir -p /tmp/cg2; mountpoint -q /tmp/cg2 || mount -t cgroup2 none /tmp/cg2; "+
		"mkdir %s && echo %d > %s/cgroup.procs && echo 1 > %s/cgroup.freeze", dir, x.task.PID, dir, dir)
	return func() { x.g.sh(t, "echo 0 > %s/cgroup.freeze", dir) }
}

func enterFreezer1(t *testing.T, x *target) func() {
	dir := fmt.Sprintf("/tmp/freezer/%d", files.Add(1))
	if x.g.sh(t, "mkdir -p /tmp/freezer; mountpoint -q /tmp/freezer || mount -t cgroup -o freezer none /tmp/freezer; "+
		"mkdir %s && echo ok || :", dir) != "ok" {
		t.Skip("this kernel has no freezer of cgroup v1")
	}
	x.g.sh(t, "echo %d > %s/cgroup.procs && echo FROZEN > %s/freezer.state", x.task.PID, dir, dir)
	return func() { x.g.sh(t, "echo THAWED > %s/freezer.state", dir) }
}

// What a signal comes to, as seen inside the guest.
const (
	acts  = "✓" // taken, stopped, continued, gone
	waits = "pending"
	lost  = "ignored"
)

const freeze signal.Signal = 0

// verbs are the columns: signals in the order in which they are sent.
var verbs = []struct {
	name string
	sig  signal.Signal
}{
	{"SIGUSR1", usr1},
	{"SIGRTMIN+3", rt3},
	{"SIGSTOP", signal.SIGSTOP},
	{"SIGCONT", signal.SIGCONT},
	{"freeze", freeze},
	{"SIGKILL", signal.SIGKILL},
}

// outcome says what sig has come to so far; before is how often it had been taken.
func (x *target) outcome(sig signal.Signal, tid kernel.PID, before int) string {
	letter := x.letter(tid)
	switch {
	case sig == signal.SIGKILL && (letter == "gone" || letter == "Z" || letter == "X"),
		sig == signal.SIGSTOP && letter == "T",
		sig == signal.SIGCONT && letter != "T" && !x.pending(signal.SIGSTOP, tid),
		sig != signal.SIGKILL && sig != signal.SIGSTOP && sig != signal.SIGCONT && x.taken(sig) > before:
		return acts
	case x.pending(sig, tid):
		return waits
	}
	return lost
}

// TestSignalStates sends signals to processes in every state there is, by kill(2) and
// by both ways of this package, and requires the same to come of it. The table with
// latencies is in docs/signals.md.
func TestSignalStates(t *testing.T) {
	oneGuest(t, 0, 1, func(t *testing.T, g *guest) {
		tab := newStatesTable()
		for _, s := range states {
			t.Run(s.name, func(t *testing.T) { s.test(t, g, tab) })
		}
		t.Run("init", func(t *testing.T) { tab.refuses(t, g, "init of the guest", 1, signal.ErrInit) })
		t.Run("kernel thread", func(t *testing.T) { tab.refuses(t, g, "kernel thread", 2, signal.ErrKernelThread) })
		tab.compare(t, g)
	})
}

// round is one way of sending signals to a target in one state.
type round struct {
	s   state
	x   *target
	way signal.Strategy // "" for kill(2)
	tid kernel.PID
}

func (s state) test(t *testing.T, g *guest, tab *statesTable) {
	if s.busy {
		g.start(t, loads[1].argv...)
	}
	if s.refused != nil {
		x := g.target(t, s.argv...)
		x.until(t, s.name, func() bool { u := *x.task; return u.Refresh() == nil && s.is(&u) })
		tab.refuses(t, g, s.name, x.task.PID, s.refused)
		return
	}
	want := s.rounds(t, g, "", nil, tab)
	for _, way := range []signal.Strategy{signal.ByKernel, signal.ByBitmap} {
		s.rounds(t, g, way, want, tab)
	}
}

// rounds sends every signal, again and again, and returns what came of each.
func (s state) rounds(t *testing.T, g *guest, way signal.Strategy, want map[signal.Signal]string, tab *statesTable) map[signal.Signal]string {
	found := map[signal.Signal]string{}
	n := repetitions(t)
	if !acceptance() {
		n = min(n, 3)
	}
	if way == "" || s.slow && !acceptance() {
		n = 1
	}
	kills := max(1, n/10) // each takes a new process
	for range kills {
		r := s.begin(t, g, way)
		for range max(1, n/kills) {
			for _, v := range verbs[:len(verbs)-1] {
				r.send(t, v.sig, want, found, tab)
			}
		}
		r.send(t, signal.SIGKILL, want, found, tab)
	}
	return found
}

func (s state) begin(t *testing.T, g *guest, way signal.Strategy) *round {
	r := &round{s: s, x: g.target(t, s.argv...), way: way}
	r.tid = r.x.thread(t).PID
	r.enter(t)
	return r
}

// enter brings the target into the state, for which it may have to come out of it
// first, and waits for it to be there.
func (r *round) enter(t *testing.T) {
	t.Helper()
	if r.s.enter != nil {
		if leave := r.s.enter(t, r.x); leave != nil {
			t.Cleanup(leave)
		}
	}
	r.settle(t)
}

func (r *round) settle(t *testing.T) {
	t.Helper()
	r.x.until(t, r.s.name, func() bool {
		u, err := r.x.g.k.Task(r.tid)
		return err == nil && r.s.is(u)
	})
}

// send sends one signal and checks what comes of it.
func (r *round) send(t *testing.T, sig signal.Signal, want, found map[signal.Signal]string, tab *statesTable) {
	t.Helper()
	if sig == freeze {
		r.freeze(t, tab)
		return
	}
	before := r.x.taken(sig)
	expected := want[sig]
	if other, ok := r.s.byBitmap[sig]; ok && r.way == signal.ByBitmap {
		expected = other
	}
	latency := r.post(t, sig, expected)
	// The first is kill(2), of which nothing is expected: it is given time.
	end := time.Now().Add(10 * time.Second)
	if r.way == "" {
		end = time.Now().Add(250 * time.Millisecond)
		expected = acts
	}
	got := r.x.outcome(sig, r.tid, before)
	for got != expected && time.Now().Before(end) {
		time.Sleep(5 * time.Millisecond)
		got = r.x.outcome(sig, r.tid, before)
	}
	found[sig] = got
	if r.way != "" {
		require.Equal(t, expected, got, "%s %s by %s, which is not what kill(2) does\n%s", r.s.name, sig, r.way, r.x.said())
		tab.add(r.s.name, sig, r.way, got, latency)
	}
	if sig == signal.SIGCONT {
		if r.s.name == "stopped" {
			r.enter(t)
		}
		r.settle(t)
	}
	if sig != signal.SIGKILL && sig != signal.SIGSTOP && got == acts {
		r.settle(t)
	}
}

// post sends sig, and requires no success to be claimed that there was not.
func (r *round) post(t *testing.T, sig signal.Signal, expected string) time.Duration {
	t.Helper()
	to, tid := r.x.task, kernel.PID(0)
	if r.s.thread {
		tid = r.tid
		var err error
		to, err = r.x.g.k.Task(tid)
		require.NoError(t, err)
	}
	if r.way == "" {
		require.NoError(t, r.x.kill(t, sig, tid))
		return 0
	}
	o := &signal.Options{Strategy: r.way, Thread: r.s.thread}
	if expected == waits && (sig == signal.SIGSTOP || sig == signal.SIGKILL) {
		o.Timeout = 500 * time.Millisecond // and no effect of it
	}
	report, err := signal.Send(t.Context(), to, sig, o)
	if expected == waits && (sig == signal.SIGSTOP || sig == signal.SIGKILL) && !(err == nil && strings.Contains(report.Effect, "is frozen")) {
		require.ErrorIs(t, err, signal.ErrTimeout, "%s %s by %s", r.s.name, sig, r.way)
		return 0
	}
	require.NoError(t, err, "%s %s by %s\n%s", r.s.name, sig, r.way, r.x.said())
	require.Equal(t, r.way, report.Strategy)
	return report.Latency
}

// freeze freezes the target, looks at it and thaws it.
func (r *round) freeze(t *testing.T, tab *statesTable) {
	t.Helper()
	if r.way != signal.ByBitmap {
		return // there is one way only
	}
	o := &signal.FreezeOptions{}
	if r.s.slow {
		o.Timeout = 500 * time.Millisecond
	}
	f, err := signal.Freeze(t.Context(), r.x.task, o)
	if errors.Is(err, signal.ErrTimeout) && r.s.slow {
		tab.add(r.s.name, freeze, r.way, waits, 0)
		return
	}
	require.NoError(t, err, r.s.name)
	require.NoError(t, f.Verify())
	tab.add(r.s.name, freeze, r.way, acts, f.Report().Latency)
	require.NoError(t, f.Thaw(t.Context()))
	r.settle(t)
}

// statesTable is the table of one kernel.
type statesTable struct {
	doctable.Table
	took  table                 // by row, verb and way
	found map[string]([]string) // what came of it, likewise
}

func newStatesTable() *statesTable {
	tab := &statesTable{Table: doctable.Table{Corner: "state"}, took: table{}, found: map[string][]string{}}
	for _, v := range verbs {
		tab.Columns = append(tab.Columns, v.name)
	}
	for _, s := range states {
		tab.Rows = append(tab.Rows, s.name)
	}
	tab.Rows = append(tab.Rows, "init of the guest", "kernel thread")
	return tab
}

func key(row string, sig signal.Signal, way signal.Strategy) string {
	return fmt.Sprintf("%s %d %s", row, sig, way)
}

func (tab *statesTable) add(row string, sig signal.Signal, way signal.Strategy, found string, took time.Duration) {
	k := key(row, sig, way)
	tab.took.add(k, took)
	if !slices.Contains(tab.found[k], found) {
		tab.found[k] = append(tab.found[k], found)
	}
}

// refuses requires every verb to be refused.
func (tab *statesTable) refuses(t *testing.T, g *guest, row string, pid kernel.PID, why error) {
	t.Helper()
	u, err := g.k.Task(pid)
	require.NoError(t, err)
	short := map[error]string{
		signal.ErrInit: "init", signal.ErrKernelThread: "kernel thread", signal.ErrTraced: "traced", signal.ErrExited: "exited",
	}[why]
	for _, v := range verbs {
		if v.sig == signal.SIGCONT && why == signal.ErrInit {
			continue // harmless
		}
		for _, way := range []signal.Strategy{signal.ByKernel, signal.ByBitmap} {
			if v.sig == freeze {
				_, err = signal.Freeze(t.Context(), u, nil)
			} else {
				_, err = signal.Send(t.Context(), u, v.sig, &signal.Options{Strategy: way})
			}
			require.ErrorIs(t, err, why, "%s %s", row, v.name)
			tab.add(row, v.sig, way, "refused: "+short, 0)
		}
	}
}

// cell is what both ways have come to: the same word, or one for each.
func (tab *statesTable) cell(row string, sig signal.Signal) string {
	var both []string
	for _, way := range []signal.Strategy{signal.ByKernel, signal.ByBitmap} {
		k := key(row, sig, way)
		found := strings.Join(tab.found[k], "/")
		if d := tab.took[k]; found == acts {
			slices.Sort(d)
			ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
			found = fmt.Sprintf("%s %.1f / %.1f", acts, ms(d[len(d)/2]), ms(d[len(d)-1]))
		}
		if found != "" && (strings.HasPrefix(found, acts) || !slices.Contains(both, found)) {
			both = append(both, found)
		}
	}
	return strings.Join(both, " · ")
}

var numbers = regexp.MustCompile(`[ /.0-9]+`)

// compare compares what came of the signals with the document, latencies left out.
func (tab *statesTable) compare(t *testing.T, g *guest) {
	for _, row := range tab.Rows {
		for _, v := range verbs {
			tab.Set(row, v.name, tab.cell(row, v.sig))
		}
	}
	name := "states " + g.name
	if *update {
		require.NoError(t, tab.Write(signalsDoc, name))
		return
	}
	words := func(s string) string { return strings.Join(strings.Fields(numbers.ReplaceAllString(s, " ")), " ") }
	d, err := tab.Compare(signalsDoc, name, func(a, b string) bool { return words(a) == words(b) })
	require.NoError(t, err)
	for _, x := range d {
		assert.Equal(t, x.Document, x.Now, "%s: %s of %q is not as in %s; -update writes it", g.name, x.Column, x.Row, signalsDoc)
	}
	t.Logf("%s\n%s", g.k.Release(), tab.Markdown())
}
