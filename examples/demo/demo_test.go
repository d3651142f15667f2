package main

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

// asProgram makes the test binary behave as the demo itself.
const asProgram = "OVM_DEMO_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests; -short is set")
	}
	for _, suite := range testvm.Suites() {
		t.Run(suite, func(t *testing.T) {
			t.Setenv("TMPDIR", t.TempDir())
			var out, errout bytes.Buffer
			code := run([]string{"-suite", suite}, &out, &errout)
			t.Log(out.String())
			require.Zero(t, code, errout.String())
			require.Empty(t, errout.String())
			require.Contains(t, out.String(), "none missing, none repeated")
			require.Contains(t, out.String(), "No such file or directory", "the process is gone from guest 1")
			require.NotContains(t, out.String(), "\x1b", "colour only on a terminal")
			requireGone(t, out.String())
		})
	}
}

// requireGone checks that neither the guest nor the images are left.
func requireGone(t *testing.T, out string) {
	t.Helper()
	_, rest, ok := strings.Cut(out, "GUEST1=qmp:")
	require.True(t, ok, out)
	socket, _, _ := strings.Cut(rest, "\n")
	require.NoDirExists(t, filepath.Dir(socket))
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "ovm-demo-*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestInterrupt(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests; -short is set")
	}
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	cmd := exec.Command(os.Args[0], "-suite", "bookworm")
	cmd.Env = append(os.Environ(), asProgram+"=1")
	var errout bytes.Buffer
	cmd.Stderr = &errout
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	timeout := time.AfterFunc(5*time.Minute, func() { _ = cmd.Process.Kill() })
	defer timeout.Stop()

	var out strings.Builder
	for r := bufio.NewScanner(stdout); r.Scan(); {
		out.WriteString(r.Text() + "\n")
		if strings.Contains(r.Text(), "guest 1#") {
			require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
		}
	}
	require.Error(t, cmd.Wait())
	require.Equal(t, 1, cmd.ProcessState.ExitCode())
	require.Equal(t, "demo: bookworm: interrupted; the guests are gone\n", errout.String())
	requireGone(t, out.String())
}

func TestUsage(t *testing.T) {
	var out, errout bytes.Buffer
	require.Equal(t, 2, run([]string{"-suite", "potato"}, &out, &errout))
	require.Equal(t, "demo: -suite potato: there are bookworm and trixie\n", errout.String())
	require.Equal(t, 2, run([]string{"-x"}, &out, &errout))
	require.Equal(t, 0, run([]string{"-h"}, &out, &errout))
	require.Empty(t, out.String())
}

func TestNoImage(t *testing.T) {
	t.Setenv("OVM_CACHE", t.TempDir())
	var out, errout bytes.Buffer
	require.Equal(t, 1, run([]string{"-suite", "trixie"}, &out, &errout))
	require.Equal(t, "demo: trixie: trixie: guest image is not built; run 'make guests'\n", errout.String())
}

func TestCheckCounts(t *testing.T) {
	require.NoError(t, checkCounts([]string{"1\n", "2\n", "3\n"}))
	require.EqualError(t, checkCounts([]string{"1\n", "3\n"}), `line 2 of the counts is "3\n", not "2"`)
	require.Error(t, checkCounts([]string{"1\n", "1\n"}), "repeated")
	require.Error(t, checkCounts([]string{"2\n"}), "the first is missing")
	require.Error(t, checkCounts([]string{"1\n", "\n"}))
}

func TestPage(t *testing.T) {
	var out strings.Builder
	p := &page{w: &out}
	p.good("\ndone")
	p.item("%s", strings.Repeat("a-word ", 15))
	require.Equal(t, "\ndone\n    - "+strings.TrimSpace(strings.Repeat("a-word ", 13))+"\n      a-word a-word\n", out.String())
	out.Reset()
	p.colour = true
	p.good("\ndone")
	require.Equal(t, "\n\x1b[32mdone\x1b[0m\n", out.String())
}
