// Package examples_test runs the programs here that look for something wrong in a guest:
// as their users do, on guests in which it is.
package examples_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/support"
	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

var _ = flag.Bool("update", false, "write what came of the checks into docs/kernel-support.md") // for package support

// check is a program with its test, which leaves nothing behind.
type check struct {
	program string
	test    func(t *testing.T, g *guest)
}

// checks are run one after the other on the same guest.
var checks = []check{
	{"newcheck", testNewCheck},
	{"hidden", testHidden},
	{"hung", testHung},
	{"conmem", testConmem},
}

// TestChecks runs every check on one kernel, or on all if $OVM_KERNELS is "all", and
// then what only older kernels have. What came of it is a table in
// docs/kernel-support.md.
func TestChecks(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests; -short is set")
	}
	dir := build(t)
	var machines, rows []string
	for _, k := range testvm.Kernels() {
		machines = append(machines, k.Name)
	}
	for _, c := range checks {
		rows = append(rows, c.program)
	}
	table := support.New("../docs/kernel-support.md", "checks", "program", machines, rows)
	t.Cleanup(func() { table.CompareDocs(t) })
	for _, k := range testvm.Kernels() {
		if k.Name == "trixie-cloud" || testvm.AllKernels() {
			t.Run(k.Name, func(t *testing.T) {
				defer table.Fill(k.Name, t)
				runChecks(t, table, dir, k.Name, checks...)
			})
		}
	}
	if testvm.AllKernels() {
		t.Run("cgroup v1", func(t *testing.T) {
			runChecks(t, nil, dir, "bookworm-cloud", check{"conmem", testConmemV1})
		})
	}
}

// runChecks runs checks on a guest and stores in table, if that is not nil, what has
// come of them.
func runChecks(t *testing.T, table *support.Grid, dir, kernel string, checks ...check) {
	t.Parallel()
	g := &guest{VM: testvm.Start(t, testvm.Config{Kernel: kernel}), name: kernel, programs: dir}
	if table != nil {
		table.Booted(kernel, g.sh(t, "uname -r"))
	}
	for _, c := range checks {
		t.Run(c.program, func(t *testing.T) {
			if table != nil {
				defer table.Set(kernel, c.program, t)
			}
			c.test(t, g)
		})
	}
	g.CheckKernel(t)
}

// build builds the programs and returns the directory in which they are.
func build(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	argv := []string{"build", "-o", dir}
	for _, c := range checks {
		argv = append(argv, "./"+c.program)
	}
	out, err := exec.CommandContext(t.Context(), "go", argv...).CombinedOutput()
	require.NoErrorf(t, err, "%s", out)
	return dir
}

// guest is a guest that the programs look at.
type guest struct {
	*testvm.VM
	name     string // of its kernel
	programs string
}

// run runs a program on the guest and returns what it prints and its exit status.
func (g *guest) run(t *testing.T, program string, args ...string) (out string, status int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(g.programs, program), append([]string{"-g", g.RAMTarget()}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = nil
	}
	require.NoError(t, err)
	require.Emptyf(t, stderr.String(), "%s %v: %s", program, args, b)
	return string(b), cmd.ProcessState.ExitCode()
}

// runJSON decodes what a program prints with -json.
func runJSON[T any](t *testing.T, g *guest, program string, args ...string) (v T, status int) {
	t.Helper()
	out, status := g.run(t, program, append(args, "-json")...)
	require.NoError(t, json.Unmarshal([]byte(out), &v))
	return v, status
}

// sh runs a shell script in the guest and returns what it prints.
func (g *guest) sh(t *testing.T, script string) string {
	t.Helper()
	out, err := g.Exec(t.Context(), "sh", "-ec", script)
	require.NoError(t, err, script)
	return strings.TrimSpace(string(out))
}

// spawn starts a program in the guest that ends with the test.
func (g *guest) spawn(t *testing.T, p testvm.Process) (pid int) {
	t.Helper()
	pid, err := g.StartProcess(t.Context(), p)
	require.NoError(t, err)
	t.Cleanup(func() { g.kill(t, pid) })
	return pid
}

// kill ends a process of the guest, and waits until it is gone.
func (g *guest) kill(t *testing.T, pid int) {
	t.Helper()
	ctx, cancel := lastingContext(t)
	defer cancel()
	_, err := g.Exec(ctx, "sh", "-c", fmt.Sprintf("kill -9 %d && while [ -e /proc/%d ]; do :; done || true", pid, pid))
	require.NoError(t, err)
}

// lastingContext returns a context that serves when the test is over, too.
func lastingContext(t *testing.T) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
}
