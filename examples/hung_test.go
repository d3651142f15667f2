package examples_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
)

// hungTask is an element of what hung -json prints.
type hungTask struct {
	PID, TID   kernel.PID
	Comm       string
	AsleepNS   uint64 `json:"asleep_ns"`
	Switches   uint64
	Killable   bool
	Blocker    string
	Stack      []string
	StackError string `json:"stack_error"`
}

// testHung brings processes into state D and looks for them: two write to the same open
// file of a file system that is frozen, so that the second waits for the first; a third
// waits for its child of vfork, which waits for somebody to open a pipe.
func testHung(t *testing.T, g *guest) {
	all, status := runJSON[[]hungTask](t, g, "hung", "-min", "0")
	require.Empty(t, all)
	require.Zero(t, status)

	// The file is opened before: kernels differ in whether that writes.
	g.spawn(t, testvm.Process{Argv: []string{
		"sh", "-c", "exec >>/root/file; until [ -p /dev/pipe ]; do sleep .1; done; echo a & sleep 1; echo b & wait",
	}})
	err := testvm.Wait(t.Context(), "the file to be open", func() (bool, error) {
		return g.sh(t, "[ -e /root/file ] && echo yes || true") == "yes", nil
	})
	require.NoError(t, err)
	g.sh(t, "sync; fsfreeze -f /; mkfifo /dev/pipe")
	thaw := func() { // not sh: a test that is over has no context
		ctx, cancel := lastingContext(t)
		defer cancel()
		_, err := g.Exec(ctx, "fsfreeze", "-u", "/")
		require.NoError(t, err)
	}
	thawed := false
	t.Cleanup(func() {
		if !thawed {
			thaw()
		}
	})
	vfork := g.spawn(t, testvm.Process{Argv: []string{"python3", "-B", "-c", `import os
os.posix_spawn("/bin/true", ["true"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, "/dev/pipe", os.O_RDONLY, 0)])`}})

	err = testvm.Wait(t.Context(), "three tasks to be stuck", func() (bool, error) {
		all, status = runJSON[[]hungTask](t, g, "hung", "-min", "200ms", "-interval", "300ms")
		require.Equal(t, len(all) > 0, status == 1)
		return len(all) == 3, nil
	})
	require.NoError(t, err)
	for _, h := range all {
		g.compareHung(t, h)
		require.Equal(t, h.PID == kernel.PID(vfork), h.Killable, "%+v", h)
	}
	// Only one of the two gets as far as to the file system.
	var first, second *hungTask
	for i := range all {
		switch h := &all[i]; {
		case h.Killable:
		case first == nil:
			first = h
		default:
			second = h
		}
	}
	g.compareBlocker(t, first, second)

	out, status := g.run(t, "hung", "-min", "200ms", "-interval", "0")
	require.Equal(t, 1, status)
	require.Contains(t, out, ": 3 stuck\n")
	require.Regexp(t, fmt.Sprintf(`(?m)^%d \("python3"\), of process %d, has slept for [\d.]+m?s, killable`, vfork, vfork), out)

	thaw()
	thawed = true
	g.sh(t, "true > /dev/pipe; rm /dev/pipe /root/file")
	err = testvm.Wait(t.Context(), "nothing to be stuck", func() (bool, error) {
		all, _ = runJSON[[]hungTask](t, g, "hung", "-min", "0")
		return len(all) == 0, nil
	})
	require.NoError(t, err)
}

// compareHung compares what is said of a task with what the guest says of it.
func (g *guest) compareHung(t *testing.T, h hungTask) {
	t.Helper()
	out := strings.Split(g.sh(t, fmt.Sprintf(`cat /proc/uptime; cd /proc/%d/task/%d; cat stat comm
echo $(sed -n 's/.*voluntary_ctxt_switches://p' status); cat stack`, h.PID, h.TID)), "\n")
	up, err := strconv.ParseFloat(strings.Fields(out[0])[0], 64)
	require.NoError(t, err)
	require.Positive(t, h.AsleepNS)
	require.Less(t, h.AsleepNS, uint64(up*1e9))
	require.Equal(t, "D", strings.Fields(out[1])[2])
	require.Equal(t, h.Comm, out[2])
	switches := uint64(0)
	for _, n := range strings.Fields(out[3]) {
		v, err := strconv.ParseUint(n, 10, 64)
		require.NoError(t, err)
		switches += v
	}
	require.Equal(t, switches, h.Switches)
	require.Empty(t, h.StackError)
	var stack []string
	for _, line := range out[4:] {
		stack = append(stack, strings.TrimPrefix(line, "[<0>] "))
	}
	require.Equal(t, stack, h.Stack)
}

// compareBlocker looks at who waits for whom, on kernels that know it.
func (g *guest) compareBlocker(t *testing.T, a, b *hungTask) {
	t.Helper()
	if !strings.HasPrefix(g.name, "sid-") || g.name == "sid-rt" {
		require.Empty(t, a.Blocker+b.Blocker)
		return
	}
	if a.Blocker == "" {
		a, b = b, a
	}
	require.Regexp(t, fmt.Sprintf(`^mutex 0x[0-9a-f]+, held by %d \(%q\)$`, b.TID, b.Comm), a.Blocker)
	require.Empty(t, b.Blocker)
}
