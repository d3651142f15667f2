package checkpoint_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/checkpoint"
	"github.com/ovmigrate/ovmigrate/criuimg"
	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/sources"
)

// suites are the guests that everything here is shown on: 6.1 with CRIU 3.17.1 and
// 6.12 with CRIU 4.1.1.
var suites = []string{"bookworm", "trixie"}

// machine is a guest with its kernel opened from outside.
type machine struct {
	*testvm.VM
	k        *kernel.Kernel
	firstPID int
}

// pair are two guests of one suite; processes move from one to the other.
type pair struct{ src, dst *machine }

// bootPair boots two guests whose process numbers do not meet: a process keeps its
// number when it is restored.
func bootPair(t *testing.T, suite string) *pair {
	t.Helper()
	boot := func(role string, firstPID int) *machine {
		vm := testvm.StartShared(t, testvm.Config{Suite: suite, KernelArgs: "ovm.role=" + role})
		m := &machine{VM: vm, firstPID: firstPID}
		m.movePIDs(t)
		m.open(t)
		return m
	}
	return &pair{boot("source", 5000), boot("destination", 20000)}
}

// movePIDs lets new processes of the guest have numbers from firstPID on. A restore
// moves them to where the restored process has its own, and a kernel worker that is
// made then would sit for ever on a number that is needed later.
func (m *machine) movePIDs(t *testing.T) {
	t.Helper()
	m.must(t, "sh", "-c", fmt.Sprintf("n=$(cat /proc/sys/kernel/ns_last_pid); [ $n -ge %[1]d ] || echo %[1]d > /proc/sys/kernel/ns_last_pid", m.firstPID))
}

func (m *machine) open(t *testing.T) {
	t.Helper()
	mem, err := vmi.Open(t.Context(), "qmp:"+m.QMPSocket(), &vmi.Options{Writable: true})
	require.NoError(t, err)
	t.Cleanup(func() { mem.Close() })
	m.k, err = kernel.Open(t.Context(), mem, nil)
	require.NoError(t, err)
}

func (m *machine) must(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := m.Exec(t.Context(), argv...)
	require.NoError(t, err)
	return string(out)
}

func (m *machine) start(t *testing.T, out string, argv ...string) kernel.PID {
	t.Helper()
	pid, err := m.StartProcess(t.Context(), testvm.Process{Argv: argv, Stdout: out, Dir: "/root"})
	require.NoError(t, err)
	return kernel.PID(pid)
}

// waitReady waits until a sleeper takes SIGUSR1 and all its threads are there.
func (m *machine) waitReady(t *testing.T, pid kernel.PID, threads int) {
	t.Helper()
	const usr1 = 10
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, testvm.Wait(ctx, "sleeper to get ready", func() (bool, error) {
		task, err := m.k.Task(pid)
		if err != nil {
			return false, err
		}
		acts, err := task.SigActions()
		if err != nil {
			return false, err
		}
		masks, err := task.SigMasks()
		if err != nil {
			return false, err
		}
		n := 0
		for _, err := range task.Threads() {
			if err == nil {
				n++
			}
		}
		return n == threads+1 && (acts[usr1-1].Handler > 1 || (masks.Blocked|masks.RealBlocked)>>(usr1-1)&1 != 0), nil
	}))
}

func (m *machine) kill(pid kernel.PID) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, _ = m.Exec(ctx, "kill", "-9", strconv.Itoa(int(pid)))
}

// lines returns the complete lines of a file of the guest, none if it is not there.
func (m *machine) lines(t *testing.T, path string) []string {
	t.Helper()
	var b bytes.Buffer
	if err := m.Get(t.Context(), path, &b); err != nil {
		require.ErrorContains(t, err, "no such file")
		return nil
	}
	s := b.String()
	return slices.Collect(strings.Lines(s[:strings.LastIndexByte(s, '\n')+1]))
}

func (m *machine) waitLines(t *testing.T, path string, n int) []string {
	t.Helper()
	var lines []string
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := testvm.Wait(ctx, fmt.Sprintf("%d lines in %s", n, path), func() (bool, error) {
		lines = m.lines(t, path)
		return len(lines) >= n, nil
	})
	require.NoError(t, err, "has %q", lines[max(0, len(lines)-3):])
	return lines
}

// save saves a process of m and leaves it killed.
func (m *machine) save(t *testing.T, pid kernel.PID, o checkpoint.SaveOptions) (*checkpoint.Result, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "images")
	o.NoSync = true
	r, err := checkpoint.Save(t.Context(), m.k, pid, dir, &o)
	require.NoError(t, err)
	set, err := criuimg.OpenDir(dir)
	require.NoError(t, err)
	for _, p := range set.Verify() {
		if p.Severity == criuimg.Error {
			t.Errorf("image set: %v", p)
		}
	}
	if o.Leave == checkpoint.LeaveKilled {
		m.waitGone(t, pid)
	}
	return r, dir
}

// waitGone waits until the guest's init has reaped the process, which takes it up
// to a second: until then the number is taken.
func (m *machine) waitGone(t *testing.T, pid kernel.PID) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, testvm.Wait(ctx, "the process to be reaped", func() (bool, error) {
		_, err := m.k.Task(pid)
		return errors.Is(err, kernel.ErrNoTask), nil
	}))
}

// hand copies an image set and files from one guest to the other.
func (p *pair) hand(t *testing.T, dir, to string, files ...string) {
	t.Helper()
	p.dst.must(t, "rm", "-rf", to)
	p.dst.must(t, "mkdir", "-p", to)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		f, err := os.Open(filepath.Join(dir, e.Name()))
		require.NoError(t, err)
		require.NoError(t, p.dst.Put(t.Context(), filepath.Join(to, e.Name()), f, 0o600))
		f.Close()
	}
	for _, path := range files {
		var b bytes.Buffer
		require.NoError(t, p.src.Get(t.Context(), path, &b))
		require.NoError(t, p.dst.Put(t.Context(), path, &b, 0o644))
	}
}

// restore runs stock CRIU on an image set in the guest.
func (m *machine) restore(t *testing.T, dir string, options ...string) {
	t.Helper()
	argv := append([]string{"criu", "restore", "-d", "-D", dir, "-v4", "-o", "restore.log"}, options...)
	if _, err := m.Exec(t.Context(), argv...); err != nil {
		var log bytes.Buffer
		_ = m.Get(t.Context(), dir+"/restore.log", &log)
		s := log.String()
		t.Fatalf("%v\n%s\n%s", err, s[max(0, len(s)-3000):], m.must(t, "ps", "-eLo", "pid,tid,ppid,stat,args"))
	}
	m.movePIDs(t)
}
