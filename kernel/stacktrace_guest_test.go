package kernel_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// guestStacks returns what /proc/PID/stack of all processes says.
func guestStacks(t *testing.T, z *zoo) map[kernel.PID]string {
	t.Helper()
	out, err := z.vm.Exec(t.Context(), "sh", "-c", "cd /proc; for p in [1-9]*; do echo = $p; cat $p/stack; done 2>/dev/null")
	require.NoError(t, err)
	all := map[kernel.PID]string{}
	for _, one := range strings.Split(string(out), "= ")[1:] {
		pid, stack, _ := strings.Cut(one, "\n")
		n, err := strconv.Atoi(pid)
		require.NoError(t, err)
		all[kernel.PID(n)] = stack
	}
	return all
}

// checkKernelStacks compares the stacks of processes that sleep on with the guest's
// own.
func checkKernelStacks(t *testing.T, z *zoo) {
	before := guestStacks(t, z)
	got := map[kernel.PID]string{}
	for pid := range before {
		task, err := z.k.Task(pid)
		if err != nil {
			continue // it has ended
		}
		s, err := task.KernelStack()
		if err != nil {
			continue
		}
		var b strings.Builder
		for _, f := range s.Blocked() {
			b.WriteString("[<0>] " + f.String() + "\n")
		}
		if s.Err != nil {
			b.WriteString(s.Err.Error())
		}
		got[pid] = b.String()
	}
	same := 0
	for pid, want := range guestStacks(t, z) {
		if before[pid] != want || want == "" {
			continue
		}
		same++
		require.Equal(t, want, got[pid], "process %d", pid)
	}
	t.Logf("%s: %d stacks", z.k.Release(), same)
	require.Greater(t, same, 20)
}
