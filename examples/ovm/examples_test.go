package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestExamples runs the small programs beside this one.
func TestExamples(t *testing.T) {
	vm := sharedGuest(t, "trixie")
	v := startVictim(t, vm, 1)
	guest, dir := "qmp:"+vm.QMPSocket(), t.TempDir()
	example := func(name string, args ...string) string {
		t.Helper()
		bin := filepath.Join(dir, name)
		out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "../"+name).CombinedOutput()
		require.NoErrorf(t, err, "%s", out)
		cmd := exec.CommandContext(t.Context(), bin, args...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err = cmd.Output()
		require.NoErrorf(t, err, "%s: %s", name, stderr.String())
		return string(out)
	}
	comm := " \"python3\"\n"
	require.Regexp(t, fmt.Sprintf(`(?m)^ *%s +\d+ [RS]%s`, v.pid, comm), example("guest-ps", guest))
	require.Regexp(t, fmt.Sprintf(`(?m)^ *%s +%s [RS] +120 .* 0xffff[0-9a-f]{12}%s`, v.pid, v.pid, comm), example("vmcore-ps", guest))
	require.True(t, strings.HasPrefix(example("guest-cat", guest, v.pid, "1"), "1\n2\n3\n"))
	require.Contains(t, example("guest-checkpoint", guest, v.pid, filepath.Join(dir, "images")), "python3: 1 threads")
	require.Contains(t, string(ovm(t, "verify", filepath.Join(dir, "images"))), "no problem found")
	v.requireRuns(t)

	// A pipe that nobody reads any more is no failure of a command that shows.
	out, err := exec.CommandContext(t.Context(), "bash", "-c",
		`set -o pipefail; (exec -a ovm "$0" -g "$1" obj --depth 9 --elements 500 init_task) | head -n 1`, self(t), guest).CombinedOutput()
	require.NoErrorf(t, err, "%s", out)
	require.Equal(t, "(struct task_struct) init_task = {\n", string(out))
}
