package main

import (
	"encoding/json"
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

// TestUndo kills ovm while it holds a process frozen, and lets the next one undo that.
func TestUndo(t *testing.T) {
	vm := sharedGuest(t, suites[0])
	guest := "qmp:" + vm.QMPSocket()
	t.Setenv("OVM_JOURNAL", t.TempDir())
	started, err := vm.StartProcess(t.Context(), testvm.Process{Argv: []string{"sh", "-c", "while :; do echo >> /tmp/undo; sleep 0.05; done"}})
	require.NoError(t, err)
	pid := strconv.Itoa(started)
	lines := func() string {
		out, err := vm.Exec(t.Context(), "sh", "-c", "wc -l < /tmp/undo")
		require.NoError(t, err)
		return string(out)
	}
	require.Equal(t, "nothing to undo\n", string(ovm(t, "-g", guest, "undo")))

	// The command that is to receive the images kills the one that sends them.
	err = exec.CommandContext(t.Context(), "ovm", "-g", guest, "migrate", pid, "--allow-issues", "--to", "kill -9 $PPID; cat >/dev/null").Run()
	var exit *exec.ExitError
	require.True(t, errors.As(err, &exit), "%v", err)
	require.Equal(t, syscall.SIGKILL, exit.Sys().(syscall.WaitStatus).Signal())
	held := lines()
	time.Sleep(300 * time.Millisecond)
	require.Equal(t, held, lines(), "it is held still")

	requireFails(t, "freeze of pid "+pid+" (sh) was interrupted and is not undone: run ovm undo", "-g", guest, "stop", pid)
	out := string(ovm(t, "-g", guest, "undo"))
	require.Contains(t, out, "freeze of pid "+pid+" (sh)")
	require.Contains(t, out, "  1 threads are frozen\n")
	var listed []struct {
		Operation struct {
			Do   string
			PID  int
			Held []int
		}
		Undone *struct{ Effect string }
	}
	require.NoError(t, json.Unmarshal(ovm(t, "-g", guest, "undo", "--json"), &listed))
	require.Len(t, listed, 1)
	require.Equal(t, started, listed[0].Operation.PID)
	require.Equal(t, []int{started}, listed[0].Operation.Held)
	require.Nil(t, listed[0].Undone)
	require.Contains(t, string(ovm(t, "-g", guest, "undo", "--all")), "  undone: 1 threads thawed\n")
	require.Eventually(t, func() bool { return lines() != held }, 20*time.Second, 100*time.Millisecond)
	require.Equal(t, "nothing to undo\n", string(ovm(t, "-g", guest, "undo")))

	// All of a tree, and left frozen from one ovm to the next.
	require.Contains(t, string(ovm(t, "-g", guest, "freeze", "--tree", pid)), "effect: ")
	held = lines()
	time.Sleep(300 * time.Millisecond)
	require.Equal(t, held, lines(), "it is held")
	require.Contains(t, string(ovm(t, "-g", guest, "thaw", "--tree", pid)), "effect: ")
	require.Eventually(t, func() bool { return lines() != held }, 20*time.Second, 100*time.Millisecond)
	state := func() string {
		out, err := vm.Exec(t.Context(), "sh", "-c", "cut -d' ' -f3 /proc/"+pid+"/stat || echo gone")
		require.NoError(t, err)
		return strings.TrimSpace(string(out))
	}
	require.Contains(t, string(ovm(t, "-g", guest, "stop", "--tree", pid)), "every thread is in state T")
	// D: its child was stopped between vfork and exec.
	require.Contains(t, []string{"T", "D"}, state())
	requireFails(t, "no such control group", "-g", guest, "stop", "--cgroup", "/no/such")
	ovm(t, "-g", guest, "cont", "--tree", pid)
	require.NotEqual(t, "T", state())
	var report struct {
		Processes []int
		PausesUS  []int64 `json:"pauses_us"`
	}
	require.NoError(t, json.Unmarshal(ovm(t, "-g", guest, "kill", "--tree", pid, "--json"), &report))
	require.Contains(t, report.Processes, started)
	require.NotEmpty(t, report.PausesUS)
	require.Contains(t, []string{"gone", "Z", "X"}, state())
	vm.CheckKernel(t)
}
