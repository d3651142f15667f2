package signal_test

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/doctable"
	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/signal"
)

// scenario is signals for one process, which writes down what it notices of them.
type scenario struct {
	name    string
	argv    []string // of the target
	signals []signal.Signal
	threads []int // to send each to, by their place in the process; nil: to the process
	enter   func(t *testing.T, x *target) (leave func())

	// byBitmap makes, of what kill(2) comes to, what sending by bitmap does, where
	// that differs more than in who sends.
	byBitmap func(log string) string
}

const (
	sigQUIT signal.Signal = 3
	sigSEGV signal.Signal = 11
	sigCHLD signal.Signal = 17
	sigTSTP signal.Signal = 20
	sigTTIN signal.Signal = 21
	winch   signal.Signal = 28
)

func everySignal() (all []signal.Signal) {
	for s := signal.Signal(1); s <= 64; s++ {
		// The C library keeps 32 and 33 for itself.
		if s != signal.SIGKILL && s != signal.SIGSTOP && s != 32 && s != 33 {
			all = append(all, s)
		}
	}
	return all
}

// scenarios are the rows of the table.
func scenarios() []scenario {
	type sigs = []signal.Signal
	const stop, cont, kill = signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL
	all := []scenario{
		{name: "handlers of all signals", argv: []string{"-H", "pause"}, signals: everySignal()},
		{name: "no handlers: STOP, STOP, CONT, CONT, TERM", argv: []string{"-d", "pause"}, signals: sigs{stop, stop, cont, cont, term}},
		{name: "no handlers: TSTP, CONT, TTIN, KILL", argv: []string{"-d", "nanosleep"}, signals: sigs{sigTSTP, cont, sigTTIN, kill}},
		{name: "no handlers: CHLD, WINCH, QUIT", argv: []string{"-d", "pause"}, signals: sigs{sigCHLD, winch, sigQUIT}},
		{name: "no handlers: SEGV", argv: []string{"-d", "spin"}, signals: sigs{sigSEGV}},
		{name: "no handlers: RTMIN+3", argv: []string{"-d", "pipe"}, signals: sigs{rt3}},
		{name: "no handlers, in the kernel: STOP, CONT, KILL", argv: []string{"-d", "kernel"}, signals: sigs{stop, cont, kill}},
		{name: "on another stack: USR1, RTMIN+3", argv: []string{"-a", "pause"}, signals: sigs{usr1, rt3}},
		{
			name: "stopped: USR2, TERM, RTMIN+3, USR1, CONT", argv: []string{"pause"},
			signals: sigs{stop, usr2, term, rt3, usr1, cont},
		},
		{
			name: "stopped: RTMIN+3 three times, CONT", argv: []string{"pause"},
			signals: sigs{stop, rt3, rt3, rt3, cont}, byBitmap: once(rt3),
		},
		{
			name: "blocked, then not: USR1, RTMIN+3, USR1, TERM, USR2", argv: []string{"unblock"},
			signals: sigs{usr1, rt3, usr1, term, usr2},
		},
		{name: "ignored: USR1, RTMIN+3, TERM", argv: []string{"-i", "pause"}, signals: sigs{usr1, rt3, term}},
		{
			name: "tgkill(2) to each of 3 threads: USR1, RTMIN+3", argv: []string{"threads"},
			signals: sigs{usr1, rt3}, threads: []int{0, 1, 2},
		},
		{name: "tgkill(2) to a thread: STOP, CONT, KILL", argv: []string{"threads"}, signals: sigs{stop, cont, kill}, threads: []int{1}},
		{name: "leader has exited: USR1, STOP, CONT, KILL", argv: []string{"leader"}, signals: sigs{usr1, stop, cont, kill}},
		{name: "init of a container: TERM, STOP, CONT, KILL", argv: []string{"-n", "-d", "pause"}, signals: sigs{term, stop, cont, kill}},
		{name: "vfork wait: USR1, KILL", argv: []string{"vfork"}, signals: sigs{usr1, kill}},
		{name: "vfork wait, no handlers: TERM", argv: []string{"-d", "vfork"}, signals: sigs{term}},
		{name: "killable sleep, no handlers: RTMIN+3", argv: []string{"-d", "killable"}, signals: sigs{rt3}},
		{name: "frozen by cgroup v2: USR1, KILL", argv: []string{"pause"}, enter: enterFreezer2, signals: sigs{usr1, kill}},
		{name: "frozen by cgroup v2, no handlers: TERM", argv: []string{"-d", "threads"}, enter: enterFreezer2, signals: sigs{term}},
	}
	for _, c := range []struct{ name, mode string }{
		{"nanosleep", "nanosleep"},
		{"futex", "futex"},
		{"epoll_wait", "epoll"},
		{"poll", "poll"},
		{"read of a pipe", "pipe"},
		{"sigtimedwait", "sigtimedwait"},
	} {
		all = append(all, scenario{name: c.name + ": USR1, STOP, CONT, RTMIN+3, TERM", argv: []string{c.mode}, signals: sigs{usr1, stop, cont, rt3, term}})
		if c.mode != "sigtimedwait" {
			all = append(all, scenario{name: c.name + ", SA_RESTART: USR1", argv: []string{"-r", c.mode}, signals: sigs{usr1, usr1}})
		}
	}
	for _, mode := range []string{"signalfd", "signalfd-poll"} {
		all = append(all, scenario{
			name:    map[string]string{"signalfd": "read", "signalfd-poll": "poll"}[mode] + " of a signalfd: USR1, RTMIN+3",
			argv:    []string{mode},
			signals: sigs{usr1, rt3}, byBitmap: func(string) string { return "" },
		})
	}
	return all
}

// once leaves the first of a signal: a bit is set or not, and counts nothing.
func once(sig signal.Signal) func(string) string {
	return func(log string) string {
		var out strings.Builder
		seen := false
		for line := range strings.Lines(log) {
			if strings.HasPrefix(line, fmt.Sprintf("handler %d ", sig)) {
				if seen {
					continue
				}
				seen = true
			}
			out.WriteString(line)
		}
		return out.String()
	}
}

// TestSameAsKill has one program write down what it notices of signals that are sent by
// kill(2) and tgkill(2) from inside, and of the same signals sent by this package from
// outside: handlers and their siginfo, in which order and thread; what its system calls
// return; what its parent is told. Only the sender may differ.
func TestSameAsKill(t *testing.T) {
	tab := &doctable.Table{Corner: "signals", Columns: []string{"kill(2)", "`kernel`", "`bitmap`"}}
	for _, s := range scenarios() {
		tab.Rows = append(tab.Rows, s.name)
	}
	oneGuest(t, 1, 1, func(t *testing.T, g *guest) {
		for _, s := range scenarios() {
			t.Run(s.name, func(t *testing.T) {
				byKill := s.run(t, g, "", nil)
				tab.Set(s.name, tab.Columns[0], inTable(byKill[len(byKill)-1]))
				for i, way := range []signal.Strategy{signal.ByKernel, signal.ByBitmap} {
					got := s.run(t, g, way, byKill)
					tab.Set(s.name, tab.Columns[i+1], inTable(got[len(got)-1]))
				}
			})
		}
		if *update {
			require.NoError(t, tab.Write(signalsDoc, "same as kill"))
		}
		d, err := tab.Compare(signalsDoc, "same as kill", func(a, b string) bool { return a == b })
		require.NoError(t, err)
		for _, x := range d {
			assert.Equal(t, x.Document, x.Now, "%s: %s of %q is not as in %s; -update writes it", g.name, x.Column, x.Row, signalsDoc)
		}
	})
}

// run sends the signals, one after the other, and returns what the log was after each.
func (s scenario) run(t *testing.T, g *guest, way signal.Strategy, byKill []string) (logs []string) {
	t.Helper()
	x := g.target(t, s.argv...)
	tid := x.thread(t).PID
	x.until(t, "target to settle", func() bool {
		u, err := g.k.Task(tid)
		return err == nil && (u.State != kernel.TaskRunning || s.argv[len(s.argv)-1] == "spin" || s.argv[len(s.argv)-1] == "kernel")
	})
	if s.enter != nil {
		t.Cleanup(s.enter(t, x))
		x.until(t, "target to be frozen", func() bool {
			u, err := g.k.Task(tid)
			return err == nil && u.Frozen && u.State&kernel.TaskInterruptible != 0
		})
	}
	tids := []kernel.PID{0}
	if s.threads != nil {
		tids = nil
		var all []kernel.PID
		for u, err := range x.task.Threads() {
			require.NoError(t, err)
			all = append(all, u.PID)
		}
		for _, n := range s.threads {
			tids = append(tids, all[n])
		}
	}
	for _, sig := range s.signals {
		for _, tid := range tids {
			s.send(t, x, way, sig, tid)
			if way == "" {
				logs = append(logs, x.atRest(t, logs))
				continue
			}
			want := anonymous(byKill[len(logs)], "")
			if way == signal.ByBitmap && s.byBitmap != nil {
				want = s.byBitmap(want)
			}
			got := ""
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			err := testvm.Wait(ctx, "what kill(2) does", func() (bool, error) {
				got = x.noticed()
				return anonymous(got, way) == want, nil
			})
			cancel()
			require.NoError(t, err, "%s %s by %s:\n%s\nby kill(2):\n%s", s.name, sig, way, got, want)
			logs = append(logs, got)
		}
	}
	last := logs[len(logs)-1]
	require.Equal(t, last, x.atRest(t, logs), "there was more to come")
	return logs
}

func (s scenario) send(t *testing.T, x *target, way signal.Strategy, sig signal.Signal, tid kernel.PID) {
	t.Helper()
	if way == "" {
		require.NoError(t, x.kill(t, sig, tid))
		return
	}
	to := x.task
	if tid != 0 {
		var err error
		to, err = x.g.k.Task(tid)
		require.NoError(t, err)
	}
	_, err := signal.Send(t.Context(), to, sig, &signal.Options{Strategy: way, Thread: tid != 0})
	require.NoError(t, err, "%s %s by %s\n%s", s.name, sig, way, x.said())
}

// noticed is the log without what is no sign of a signal: what the target wrote, then
// its parent. Which of two processes is the first to write is by chance.
func (x *target) noticed() string {
	var own, parents strings.Builder
	for line := range strings.Lines(x.said()) {
		switch {
		case strings.HasPrefix(line, "parent: "):
			parents.WriteString(line)
		case !begins.MatchString(strings.TrimSpace(line)):
			own.WriteString(line)
		}
	}
	return own.String() + parents.String()
}

var begins = regexp.MustCompile(`^(ready|target \d+|holder \d+)$`)

// atRest returns the log when nothing has been added to it for a while, which is
// shorter if something has been added since the last time.
func (x *target) atRest(t *testing.T, logs []string) string {
	t.Helper()
	last, same, long := "", 0, 6
	x.until(t, "target's log to be at rest", func() bool {
		now := x.noticed()
		if same++; now != last {
			last, same = now, 0
		}
		if len(logs) > 0 && now != logs[len(logs)-1] {
			long = 2
		}
		return same > long
	})
	return last
}

var sender = map[signal.Strategy]*regexp.Regexp{
	"":              regexp.MustCompile(`code (0|-6) pid \d+ uid 0 `),
	signal.ByKernel: regexp.MustCompile(`code 128 pid 0 uid 0 `),
	signal.ByBitmap: regexp.MustCompile(`code 0 pid 0 uid 0 `),
}

// anonymous leaves out who sent the signals, if it is who is to be expected.
func anonymous(log string, way signal.Strategy) string { return sender[way].ReplaceAllString(log, "") }

var (
	handled = regexp.MustCompile(`^(.*) (\d+) code (-?\d+) pid (\d+) uid 0 thread (\d+)$`)
	codes   = map[string]string{"0": "SI_USER", "-6": "SI_TKILL", "128": "SI_KERNEL"}
)

// inTable is a log as a cell: one line for consecutive ones that differ in the signal
// only, together with what a system call returned each time.
func inTable(log string) string {
	var out, signals, parents []string
	how := ""
	flush := func() {
		if len(signals) > 0 {
			out = append(out, strings.Replace(how, "#", ranges(signals), 1))
		}
		signals = nil
	}
	lines := strings.Split(strings.TrimSpace(log), "\n")
	for i := 0; i < len(lines); i++ {
		m := handled.FindStringSubmatch(lines[i])
		if m == nil {
			flush()
			if told, ok := strings.CutPrefix(lines[i], "parent: "); ok {
				parents = append(parents, told)
			} else if lines[i] != "" {
				out = append(out, lines[i])
			}
			continue
		}
		from := "pid 0"
		if m[4] != "0" {
			from = "its pid"
		}
		now := fmt.Sprintf("%s # %s %s", m[1], codes[m[3]], from)
		if m[5] != "0" {
			now += ", thread " + m[5]
		}
		if i+1 < len(lines) && strings.HasSuffix(lines[i+1], " failed with EINTR") && strings.Contains(m[1], "handler") {
			i++
			now += ", " + lines[i]
		}
		if now != how {
			flush()
		}
		how, signals = now, append(signals, m[2])
	}
	flush()
	if parents != nil {
		out = append(out, "parent: "+strings.Join(parents, ", "))
	}
	if out == nil {
		return "nothing"
	}
	return strings.Join(out, "<br>")
}

// ranges writes numbers that follow each other as 34–64.
func ranges(numbers []string) string {
	var out []string
	for i := 0; i < len(numbers); {
		j := i
		for j+1 < len(numbers) && follows(numbers[j], numbers[j+1]) {
			j++
		}
		if j > i+1 {
			out = append(out, numbers[i]+"–"+numbers[j])
		} else {
			out = append(out, numbers[i:j+1]...)
		}
		i = j + 1
	}
	return strings.Join(out, " ")
}

func follows(a, b string) bool {
	var x, y int
	_, err1 := fmt.Sscan(a, &x)
	_, err2 := fmt.Sscan(b, &y)
	return err1 == nil && err2 == nil && y == x+1
}
