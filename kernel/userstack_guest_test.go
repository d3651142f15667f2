package kernel_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
)

// TestUserStack compares user stacks with what the C library's own unwinder finds in
// the program: testdata/backtrace.c.
func TestUserStack(t *testing.T) {
	eachZoo(t, func(t *testing.T, z *zoo) {
		for _, link := range []string{"-pie", "-static"} {
			t.Run(link, func(t *testing.T) { checkUserStack(t, z, link) })
		}
	})
}

func checkUserStack(t *testing.T, z *zoo, link string) {
	exe := filepath.Join(t.TempDir(), "backtrace")
	out, err := exec.CommandContext(t.Context(), "gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-fomit-frame-pointer", link,
		"-o", exe, "testdata/backtrace.c").CombinedOutput()
	require.NoError(t, err, "%s", out)
	program, err := os.ReadFile(exe)
	require.NoError(t, err)
	path := "/root/backtrace" + link
	require.NoError(t, z.vm.Put(t.Context(), path, bytes.NewReader(program), 0o755))
	pid, err := z.vm.StartProcess(t.Context(), testvm.Process{Argv: []string{path}, Stdout: path + ".log"})
	require.NoError(t, err)
	t.Cleanup(func() { z.vm.Exec(t.Context(), "kill", "-KILL", fmt.Sprint(pid)) })
	var want []string
	require.NoError(t, testvm.Wait(t.Context(), "the program", func() (bool, error) {
		out, err := z.vm.Exec(t.Context(), "cat", path+".log")
		want = strings.Fields(string(out))
		return len(want) > 0 && want[len(want)-1] == "ready", err
	}))
	want = want[:len(want)-1]
	task, err := z.k.Task(kernel.PID(pid))
	require.NoError(t, err)
	var frames []kernel.UserFrame
	require.NoError(t, testvm.Wait(t.Context(), "its sleep", func() (bool, error) {
		if err := task.Refresh(); err != nil || task.StateChar() != 'S' {
			return false, err
		}
		frames, err = task.UserStack()
		return true, err
	}), "%+v", frames)
	names := map[string]int{}
	signals := 0
	var got []string
	for i, f := range frames {
		names[f.Symbol]++
		if f.Signal {
			signals++
		}
		if i > 0 {
			require.Equal(t, "eh_frame", f.How)
		}
		got = append(got, fmt.Sprintf("%#x", uint64(f.Addr)))
	}
	t.Logf("%s: %v", z.k.Release(), frames)
	// The innermost function of the two sleeps in one and looks in the other.
	at := len(got) - len(want)
	require.Positive(t, at)
	require.Equal(t, want[1:], got[at+1:])
	require.Equal(t, "show_and_sleep", frames[at].Symbol)
	require.Equal(t, 1, signals)
	require.Equal(t, []int{1, 6, 1, 1}, []int{names["handler"], names["deep"], names["compare"], names["main"]})
}
