package signal_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/signal"
)

// The signals that the target has handlers for, by default.
const (
	usr1 signal.Signal = 10
	usr2 signal.Signal = 12
	term signal.Signal = 15
	rt3  signal.Signal = 37 // SIGRTMIN+3
)

const targetPath = "/tmp/target"

var buildTarget = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "target")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	exe := filepath.Join(dir, "target")
	out, err := exec.Command("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-static", "-o", exe, "testdata/target.c").CombinedOutput()
	if err != nil {
		return out, err
	}
	return os.ReadFile(exe)
})

var hasTarget sync.Map // *testvm.VM → true

// target is the process of testdata/target.c that signals are sent to.
type target struct {
	g      *guest
	log    string       // where it writes down what it notices
	task   *kernel.Task // its leader
	holder int          // of the lock that it waits for, if any
}

// target starts the program in a mode; it is killed at the end of the test.
func (g *guest) target(t *testing.T, argv ...string) *target {
	t.Helper()
	if _, ok := hasTarget.LoadOrStore(g.VM, true); !ok {
		exe, err := buildTarget()
		require.NoError(t, err, "%.1000s", exe)
		require.NoError(t, g.Put(t.Context(), targetPath, bytes.NewReader(exe), 0o755))
	}
	x := &target{g: g, log: g.file()}
	at := len(argv) - 1
	argv = append(append([]string{targetPath}, argv[:at]...), x.log, argv[at])
	parent, err := g.StartProcess(t.Context(), testvm.Process{Argv: argv, Stderr: "/tmp/stderr"})
	require.NoError(t, err)
	x.until(t, "target to be ready", func() bool { return strings.Contains(x.said(), "ready\n") && strings.Contains(x.said(), "target ") })
	pid := x.number(t, "target")
	if strings.Contains(x.said(), "holder") {
		x.holder = x.number(t, "holder")
	}
	t.Cleanup(func() { x.end(parent) })
	x.task, err = g.k.Task(kernel.PID(pid))
	require.NoError(t, err)
	return x
}

// end ends it and those that it has started, whose parents' deaths end them.
func (x *target) end(parent int) {
	ctx := context.Background()
	if x.holder != 0 {
		_, _ = x.g.Run(ctx, testvm.Cmd{Argv: []string{targetPath, "send", strconv.Itoa(x.holder), "0", "9"}})
	}
	_, _ = x.g.Run(ctx, testvm.Cmd{Argv: []string{targetPath, "send", strconv.Itoa(parent), "0", "9"}})
	_, _ = x.g.Run(ctx, testvm.Cmd{Argv: []string{"rm", "-f", x.log}})
}

func (x *target) until(t *testing.T, what string, f func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, testvm.Wait(ctx, what, func() (bool, error) { return f(), nil }), "%s", x.said())
}

// said returns what it has written down so far.
func (x *target) said() string {
	s := x.g.cat("%s", x.log)
	if s != "" {
		s += "\n"
	}
	return s
}

func (x *target) number(t *testing.T, what string) int {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + what + ` (\d+)$`).FindStringSubmatch(x.said())
	require.NotNil(t, m, "%s", x.said())
	n, err := strconv.Atoi(m[1])
	require.NoError(t, err)
	return n
}

// taken counts how often it was given a signal, by whatever way.
func (x *target) taken(sig signal.Signal) int {
	return len(regexp.MustCompile(`(?m)(handler|sigtimedwait|signalfd) `+strconv.Itoa(int(sig))+` code`).FindAllString(x.said(), -1))
}

// thread returns a thread of it that lives: the last one, which is the leader if it is
// the only one.
func (x *target) thread(t *testing.T) *kernel.Task {
	t.Helper()
	last := x.task
	for u, err := range x.task.Threads() {
		require.NoError(t, err)
		last = u
	}
	return last
}

// letter returns the state of a thread as the guest's own ps has it, "gone" if there is none.
func (x *target) letter(tid kernel.PID) string {
	stat := x.g.cat("/proc/%d/task/%d/stat", x.task.PID, tid)
	if stat == "" {
		return "gone"
	}
	return strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])[0]
}

// pending says whether a signal waits for the process or a thread of it.
func (x *target) pending(sig signal.Signal, tid kernel.PID) bool {
	for _, m := range regexp.MustCompile(`(?m)^S[ih][gd]Pnd:\s*([0-9a-f]+)$`).
		FindAllStringSubmatch(x.g.cat("/proc/%d/task/%d/status", x.task.PID, tid), -1) {
		bits, err := strconv.ParseUint(m[1], 16, 64)
		if err == nil && bits&(1<<(sig-1)) != 0 {
			return true
		}
	}
	return false
}

// kill sends a signal from inside the guest, to the process or, if tid is not 0, to a
// thread of it.
func (x *target) kill(t *testing.T, sig signal.Signal, tid kernel.PID) error {
	t.Helper()
	r, err := x.g.Run(t.Context(), testvm.Cmd{Argv: []string{
		targetPath, "send", strconv.Itoa(int(x.task.PID)), strconv.Itoa(int(tid)), strconv.Itoa(int(sig)),
	}})
	require.NoError(t, err)
	return r.Err()
}
