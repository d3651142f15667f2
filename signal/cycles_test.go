package signal_test

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/signal"
	"github.com/ovmigrate/ovmigrate/vmi"
)

//go:embed testdata/cycles.py
var cyclesProgram []byte

const (
	cycleProcesses = 50
	setUp          = 5 * time.Minute // for the processes to start, on a machine with much else to do
)

// stress makes all there is to do for a scheduler.
const stress = "stress-ng --quiet --cpu 1 --pipe 1 --switch 1 --timer 1 --fork 1"

// TestCycles stops and continues processes again and again, in every way there is, while
// the guest is busy and while it is not, and checks after each time that none of them
// has lost anything and that the kernel's data are in order. OVM_SIGNAL_REPS=1000 is the
// acceptance run, on four kernels with one processor and two.
func TestCycles(t *testing.T) {
	kernels, cpus, reps := []string{"trixie-cloud"}, []int{1}, 20
	if acceptance() {
		kernels, cpus, reps = cycleKernels, []int{1, 2}, repetitions(t)
	}
	for _, name := range kernels {
		for _, n := range cpus {
			t.Run(fmt.Sprintf("%s/%d cpu", name, n), func(t *testing.T) {
				vm := testvm.Start(t, testvm.Config{Kernel: name, CPUs: n})
				mem, err := vmi.Open(t.Context(), "qmp:"+vm.QMPSocket(), &vmi.Options{Writable: true})
				require.NoError(t, err)
				defer mem.Close()
				k, err := kernel.Open(t.Context(), mem, nil)
				require.NoError(t, err)
				c := startCycler(t, &guest{vm, k, name})
				c.run(t, reps)
				c.report(t, n)
			})
		}
	}
}

// cycler stops and continues processes that count what they live through.
type cycler struct {
	*guest
	group       string
	set         signal.Set
	stressGroup string
	stress      signal.Set
	mm          *kernel.MM // of all of them
	page        kernel.UserAddr
	tasks       []*kernel.Task
	refs        map[kernel.PID]uint64 // of every thread, before
	sent        [2][cycleProcesses]uint64
	logged      uint64 // the kernel's messages up to this were looked at

	loaded   bool
	cycles   [2]int // without load, and with
	failures int
	stats    [2]cycleStats
	checked  int // how often all queues were
	queued   int // tasks found on them then
	psi      int // how often with pressure stall information, which says nothing of an idle guest
	worst    *kernel.LogRecord
	did      bytes.Buffer // what the package logs in a cycle
}

type cycleStats struct{ stop, cont, pauseOne, pauseAll []time.Duration }

// lives are the counts of the processes: how often each has gone on, had SIGCONT, and
// had SIGUSR1.
type lives [3][cycleProcesses]uint64

const (
	wentOn = iota
	hadCont
	hadUsr1
)

func startCycler(t *testing.T, g *guest) *cycler {
	t.Helper()
	c := &cycler{guest: g, group: g.cgroup(t, 400), refs: make(map[kernel.PID]uint64)}
	require.NoError(t, g.Put(t.Context(), "/tmp/cycles.py", strings.NewReader(string(cyclesProgram)), 0o644))
	out := g.file()
	parent := g.inGroup(t, c.group, fmt.Sprintf("exec python3 /tmp/cycles.py %d %s", cycleProcesses, out))
	require.Eventually(t, func() bool { return g.cat("%s", out) != "" }, setUp, 200*time.Millisecond)
	n, err := strconv.ParseUint(g.cat("%s", out), 10, 64)
	require.NoError(t, err)
	c.page = kernel.UserAddr(n)
	parent, err = g.k.Task(parent.PID)
	require.NoError(t, err)
	c.mm, err = parent.MM()
	require.NoError(t, err)
	for u, err := range parent.Children() {
		require.NoError(t, err)
		c.tasks = append(c.tasks, u)
	}
	require.Len(t, c.tasks, cycleProcesses)
	// They are listed as they were forked, so that the first has the first word.
	slices.SortFunc(c.tasks, func(a, b *kernel.Task) int { return int(a.PID - b.PID) })
	require.Eventually(t, func() bool {
		l, err := c.lives()
		return err == nil && !slices.Contains(l[wentOn][:], 0)
	}, setUp, 200*time.Millisecond)
	c.set, err = signal.InCgroup(g.k, c.group)
	require.NoError(t, err)
	c.stressGroup = g.cgroup(t, 200)
	c.stress, err = signal.InCgroup(g.k, c.stressGroup)
	require.NoError(t, err)
	// What asks the guest is not to wait for all that keeps it busy.
	g.sh(t, "renice -n -10 -p $PPID")
	for rec, err := range g.k.Log() {
		require.NoError(t, err)
		c.logged = rec.Seq
	}
	return c
}

func (c *cycler) lives() (l lives, err error) {
	var b [8 * 3 * cycleProcesses]byte
	if _, err := c.mm.ReadAt(b[:], c.page); err != nil {
		return l, err
	}
	for i := range l {
		for j := range l[i] {
			l[i][j] = binary.LittleEndian.Uint64(b[8*(i*cycleProcesses+j):])
		}
	}
	return l, nil
}

// references returns the reference counts of all threads, once they have stopped
// changing: whoever looks at /proc has one for a moment.
func (c *cycler) references(t *testing.T) map[kernel.PID]uint64 {
	t.Helper()
	var last map[kernel.PID]uint64
	same := 0
	require.Eventually(t, func() bool {
		now := make(map[kernel.PID]uint64)
		for _, p := range c.tasks {
			for u, err := range p.Threads() {
				if err != nil {
					return false
				}
				n, err := references(u)
				if err != nil {
					return false
				}
				now[u.PID] = n
			}
		}
		if same++; fmt.Sprint(now) != fmt.Sprint(last) {
			last, same = now, 0
		}
		return same > 10
	}, setUp, 10*time.Millisecond)
	return last
}

// run does n cycles.
func (c *cycler) run(t *testing.T, n int) {
	c.refs = c.references(t)
	phases := 2 // with load and without, in turn
	if acceptance() {
		phases = 4
	}
	for i := range n {
		if i == 0 || i*phases/n != (i-1)*phases/n {
			c.phase(t, i*phases/n%2 == 0)
		}
		if err := c.cycle(t, i); err != nil {
			c.failures++
			t.Errorf("cycle %d, load %v: %v", i, c.loaded, err)
			if c.failures >= 5 {
				break
			}
			c.recover(t)
		}
		c.cycles[index(c.loaded)]++
		if i%100 == 99 {
			c.checkLog(t)
			t.Logf("%d cycles, %d failures", i+1, c.failures)
		}
	}
	c.phase(t, false)
	for tid, n := range c.references(t) {
		// A thread that lives has one of its own. The kernel may have had another one,
		// for some work of its own, and be through with it.
		if before, ok := c.refs[tid]; !ok || n != before && n != 1 {
			t.Errorf("thread %d has %d references, and had %d", tid, n, before)
		}
	}
	requireNothingLeft(t, c.k)
	require.NotZero(t, c.psi)
	require.Greater(t, c.queued, n)
	c.checkLog(t)
}

func index(b bool) int {
	if b {
		return 1
	}
	return 0
}

// phase begins to keep the guest busy, or ends it.
func (c *cycler) phase(t *testing.T, load bool) {
	t.Helper()
	if c.loaded {
		_, err := signal.SendAll(t.Context(), c.stress, signal.SIGKILL, &signal.Options{Timeout: time.Minute})
		require.NoError(t, err)
		c.await(t, func(n int) bool { return n == 0 })
	}
	if c.loaded = load; load {
		_, err := c.StartProcess(t.Context(), testvm.Process{Argv: []string{
			"sh", "-c", "echo $$ > /tmp/cg2" + c.stressGroup + "/cgroup.procs && exec nice -n 10 " + stress,
		}})
		require.NoError(t, err)
		c.await(t, func(n int) bool { return n >= 6 })
	}
}

// await waits until there are as many of stress-ng's processes as it takes.
func (c *cycler) await(t *testing.T, enough func(n int) bool) {
	t.Helper()
	require.Eventually(t, func() bool {
		n := 0
		for u, err := range c.k.Tasks() {
			if err == nil && strings.HasPrefix(u.Comm, "stress-ng") {
				n++
			}
		}
		return enough(n)
	}, setUp, 50*time.Millisecond)
}

// recover lets all go on after a failure.
func (c *cycler) recover(t *testing.T) {
	t.Helper()
	_, err := signal.ThawAll(t.Context(), c.set, nil)
	t.Logf("thawed after a failure: %v", err)
	c.sh(t, "kill -CONT $(cat /tmp/cg2%s/cgroup.procs)", c.group)
	time.Sleep(time.Second)
	l, err := c.lives()
	require.NoError(t, err)
	c.sent = [2][cycleProcesses]uint64{l[hadCont], l[hadUsr1]}
}

// logger keeps what the package does in this cycle.
func (c *cycler) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(&c.did, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// slow is longer than any way of this package waits before it looks again.
const slow = 2 * time.Second

// cycle stops some of the processes and lets them go on, and checks what has come of it.
func (c *cycler) cycle(t *testing.T, i int) error {
	ctx := t.Context()
	chosen := rand.Perm(cycleProcesses)[:1+i/5%3]
	var err error
	c.did.Reset()
	stops, conts := len(c.stats[index(c.loaded)].stop), len(c.stats[index(c.loaded)].cont)
	look := func() error { return nil }
	if i%25 < 5 { // now and then, and each way as often as the others
		look = func() error { return c.standStill(t, i%5 == 2 || i%5 == 4, i%5 >= 3, chosen) }
	}
	switch i % 5 {
	case 0:
		err = c.each(ctx, chosen, signal.ByKernel, look)
	case 1:
		err = c.each(ctx, chosen, signal.ByBitmap, look)
	case 2:
		err = c.all(ctx, look)
	case 3:
		err = c.freeze(ctx, chosen, look)
	case 4:
		err = c.freezeAll(ctx, look)
	}
	if s := c.stats[index(c.loaded)]; slices.Max(slices.Concat(s.stop[stops:], s.cont[conts:], []time.Duration{0})) > slow {
		t.Logf("cycle %d, load %v, took %v and %v:\n%s", i, c.loaded, s.stop[stops:], s.cont[conts:], c.did.String())
	}
	if err != nil {
		return err
	}
	if i%5 == 2 || i%5 == 4 {
		chosen = rand.Perm(cycleProcesses)
	}
	before, err := c.lives()
	if err != nil {
		return err
	}
	// Another signal, to one that was stopped, and none of it may get lost either.
	way := []signal.Strategy{signal.ByKernel, signal.ByBitmap}[i%2]
	if _, err := signal.Send(ctx, c.tasks[chosen[0]], 10, &signal.Options{Strategy: way, Timeout: time.Minute}); err != nil {
		return fmt.Errorf("SIGUSR1 by %s: %w", way, err)
	}
	c.sent[hadUsr1-1][chosen[0]]++
	if err := c.goesOn(before, chosen); err != nil {
		return err
	}
	q, err := c.sound(ctx)
	if err != nil {
		return err
	}
	if q.Tasks < cycleProcesses {
		return fmt.Errorf("not all was checked: %+v", q)
	}
	c.checked++
	c.queued += q.Queued
	c.psi += index(q.PSI)
	return c.readLog()
}

// each stops single processes and lets them go on.
func (c *cycler) each(ctx context.Context, chosen []int, way signal.Strategy, look func() error) error {
	o := &signal.Options{Strategy: way, Timeout: time.Minute, Logger: c.logger()}
	s := &c.stats[index(c.loaded)]
	for _, j := range chosen {
		r, err := signal.Stop(ctx, c.tasks[j], o)
		if err != nil {
			return fmt.Errorf("stop pid %d by %s: %w", c.tasks[j].PID, way, err)
		}
		s.stop, s.pauseOne = append(s.stop, r.Latency), append(s.pauseOne, r.Pauses...)
	}
	if err := look(); err != nil {
		return err
	}
	for _, j := range chosen {
		r, err := signal.Continue(ctx, c.tasks[j], o)
		if err != nil {
			return fmt.Errorf("continue pid %d by %s: %w", c.tasks[j].PID, way, err)
		}
		c.sent[hadCont-1][j]++
		s.cont, s.pauseOne = append(s.cont, r.Latency), append(s.pauseOne, r.Pauses...)
	}
	return nil
}

func (c *cycler) all(ctx context.Context, look func() error) error {
	o := &signal.Options{Timeout: time.Minute, Logger: c.logger()}
	s := &c.stats[index(c.loaded)]
	r, err := signal.SendAll(ctx, c.set, signal.SIGSTOP, o)
	if err != nil {
		return fmt.Errorf("stop all: %w", err)
	}
	s.stop, s.pauseAll = append(s.stop, r.Latency), append(s.pauseAll, r.Pauses...)
	if len(r.Processes) != cycleProcesses+1 {
		return fmt.Errorf("%d processes in the group", len(r.Processes))
	}
	if err := look(); err != nil {
		return err
	}
	if r, err = signal.SendAll(ctx, c.set, signal.SIGCONT, o); err != nil {
		return fmt.Errorf("continue all: %w", err)
	}
	for j := range c.sent[hadCont-1] {
		c.sent[hadCont-1][j]++
	}
	s.cont, s.pauseAll = append(s.cont, r.Latency), append(s.pauseAll, r.Pauses...)
	return nil
}

func (c *cycler) freeze(ctx context.Context, chosen []int, look func() error) error {
	s := &c.stats[index(c.loaded)]
	var held []*signal.Frozen
	for _, j := range chosen {
		f, err := signal.Freeze(ctx, c.tasks[j], &signal.FreezeOptions{Timeout: time.Minute, Logger: c.logger()})
		if err != nil {
			return fmt.Errorf("freeze pid %d: %w", c.tasks[j].PID, err)
		}
		held = append(held, f)
		s.stop = append(s.stop, f.Report().Latency)
	}
	if err := look(); err != nil {
		return err
	}
	for _, f := range held {
		if err := errors.Join(f.Verify(), f.Thaw(ctx)); err != nil {
			return fmt.Errorf("thaw pid %d: %w", f.Report().PID, err)
		}
		s.pauseOne = append(s.pauseOne, f.Report().Pauses...)
	}
	return nil
}

func (c *cycler) freezeAll(ctx context.Context, look func() error) error {
	s := &c.stats[index(c.loaded)]
	f, err := signal.FreezeAll(ctx, c.set, &signal.FreezeOptions{Timeout: time.Minute, Logger: c.logger()})
	if err != nil {
		return fmt.Errorf("freeze all: %w", err)
	}
	s.stop = append(s.stop, f.Report().Latency)
	if len(f.Report().Processes) != cycleProcesses+1 {
		return fmt.Errorf("%d processes in the group", len(f.Report().Processes))
	}
	if err := errors.Join(look(), f.Verify(), f.Thaw(ctx)); err != nil {
		return fmt.Errorf("thaw all: %w", err)
	}
	s.pauseAll = append(s.pauseAll, f.Report().Pauses...)
	return nil
}

// standStill checks, in the guest's own words if they are stopped, that processes do.
func (c *cycler) standStill(t *testing.T, all, frozen bool, chosen []int) error {
	t.Helper()
	if all {
		chosen = rand.Perm(cycleProcesses)
	}
	before, err := c.lives()
	if err != nil {
		return err
	}
	if !frozen {
		states := c.states(t, c.group)
		want := len(chosen)
		if all {
			want++ // their parent
		}
		if states["T"] != want {
			return fmt.Errorf("%d processes were stopped, the guest has %v", want, states)
		}
	} else {
		time.Sleep(200 * time.Millisecond)
	}
	after, err := c.lives()
	if err != nil {
		return err
	}
	for _, j := range chosen {
		if before[wentOn][j] != after[wentOn][j] {
			return fmt.Errorf("pid %d should stand still, but goes on", c.tasks[j].PID)
		}
	}
	return nil
}

// goesOn waits until all have had the signals they were sent, no more and no fewer, and
// the chosen have gone on since.
func (c *cycler) goesOn(before lives, chosen []int) error {
	var missing string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		l, err := c.lives()
		if err != nil {
			return err
		}
		missing = ""
		for _, j := range chosen {
			if l[wentOn][j] == before[wentOn][j] {
				missing = fmt.Sprintf("pid %d does not go on", c.tasks[j].PID)
			}
		}
		for k, name := range []string{"SIGCONT", "SIGUSR1"} {
			for j, want := range c.sent[k] {
				switch got := l[k+1][j]; {
				case got > want:
					return fmt.Errorf("pid %d had %d of %d %s", c.tasks[j].PID, got, want, name)
				case got < want:
					missing = fmt.Sprintf("pid %d had %d of %d %s", c.tasks[j].PID, got, want, name)
				}
			}
		}
		if missing == "" {
			return nil
		}
	}
	return errors.New(missing)
}

// readLog reads what the kernel has logged since the last time, from outside, and keeps
// the worst of it.
func (c *cycler) readLog() error {
	for rec, err := range c.k.Log() {
		if err != nil {
			return err
		}
		if rec.Seq <= c.logged {
			continue
		}
		c.logged = rec.Seq
		if rec.Facility == 0 && (c.worst == nil || rec.Level < c.worst.Level) {
			c.worst = &rec
		}
		if remarks.MatchString(rec.Text) || strings.Contains(rec.Text, "WARNING:") || strings.Contains(rec.Text, "BUG") {
			return fmt.Errorf("the kernel says: %s", rec.Text)
		}
	}
	return nil
}
