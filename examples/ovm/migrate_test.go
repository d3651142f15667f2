package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

// TestSignals stops, continues and kills a process, each way.
func TestSignals(t *testing.T) {
	for _, suite := range suites {
		for _, strategy := range []string{"kernel", "bitmap"} {
			t.Run(suite+"/"+strategy, func(t *testing.T) {
				vm := sharedGuest(t, suite)
				guest := "qmp:" + vm.QMPSocket()
				pid, err := vm.StartProcess(t.Context(), testvm.Process{Argv: []string{"sleep", "1000"}})
				require.NoError(t, err)
				state := func(p string) string {
					out, err := vm.Exec(t.Context(), "sh", "-c", "cut -d' ' -f3 /proc/"+p+"/stat || echo gone")
					require.NoError(t, err)
					return strings.TrimSpace(string(out))
				}
				send := func(args ...string) string {
					args = append([]string{"-g", guest, "--strategy", strategy}, args...)
					return string(ovm(t, append(args, strconv.Itoa(pid))...))
				}
				p := strconv.Itoa(pid)
				require.Contains(t, send("stop", "--dry-run"), "SIGSTOP would be sent to "+p+" (sleep), strategy "+strategy)
				require.Equal(t, "S", state(p), "nothing was written")
				require.Contains(t, send("stop"), "\neffect: ")
				require.Equal(t, "T", state(p))
				send("cont")
				require.Equal(t, "S", state(p))
				send("signal", "STOP")
				require.Equal(t, "T", state(p))
				send("signal", "18")
				require.Equal(t, "S", state(p))
				send("kill")
				require.Contains(t, []string{"gone", "Z", "X"}, state(p))
				vm.CheckKernel(t)
			})
		}
	}
}

// TestMigrate moves a process from one guest to another, where stock CRIU restores
// it.
func TestMigrate(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			src := testvm.Start(t, testvm.Config{Suite: suite})
			dst := testvm.Start(t, testvm.Config{Suite: suite})
			// A process keeps its number: no two guests may use the same.
			_, err := src.Exec(t.Context(), "sh", "-c", "echo 5000 >/proc/sys/kernel/ns_last_pid")
			require.NoError(t, err)
			v := startVictim(t, src, 8)
			guest := "qmp:" + src.QMPSocket()

			// The command hands the images to this test, and waits for what it makes
			// of them.
			dir := t.TempDir()
			images, verdict := filepath.Join(dir, "images.tar"), filepath.Join(dir, "verdict")
			to := fmt.Sprintf("cat >%s.part && mv %s.part %s; while [ ! -e %s ]; do sleep 0.02; done; exit $(cat %s)",
				images, images, images, verdict, verdict)
			done := make(chan int, 1)
			var stdout, stderr bytes.Buffer
			go func() { done <- run([]string{"-g", guest, "migrate", v.pid, "--to", to}, &stdout, &stderr) }()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			require.NoError(t, testvm.Wait(ctx, "images", func() (bool, error) {
				_, err := os.Stat(images)
				if os.IsNotExist(err) {
					err = nil
				} else if err == nil {
					return true, nil
				}
				return false, err
			}))
			// It stands still there, until it has been restored here.
			held := v.count(t)
			carry(t, src, dst, v.out)
			tar, err := os.Open(images)
			require.NoError(t, err)
			defer tar.Close()
			require.NoError(t, dst.PutTar(t.Context(), "/root/images", tar))
			out, rerr := dst.Exec(t.Context(), "criu", "restore", "-d", "-D", "/root/images", "-v2")
			code := "0"
			if rerr != nil {
				code = "1"
			}
			require.Equal(t, held, v.count(t))
			require.NoError(t, os.WriteFile(verdict, []byte(code), 0o600))
			require.NoErrorf(t, rerr, "criu restore: %s", out)
			require.Zerof(t, <-done, "ovm migrate: %s", stderr.String())
			t.Log(stdout.String())
			require.Contains(t, stdout.String(), v.pid+" (python3) has moved")

			for _, p := range ovmJSON[[]process](t, "-g", guest, "ps") {
				require.Truef(t, fmt.Sprint(p.PID) != v.pid || p.State == "Z", "process %s is still there", v.pid)
			}
			moved := &victim{dst, v.pid, v.out}
			moved.requireRuns(t)
			numbers, err := dst.Exec(t.Context(), "cat", v.out)
			require.NoError(t, err)
			for i, line := range strings.Fields(string(numbers)) {
				require.Equal(t, strconv.Itoa(i+1), line, "no number is skipped or repeated")
			}
			src.CheckKernel(t)
			dst.CheckKernel(t)
		})
	}
}

// carry copies a file from one guest to the other: files are not the library's duty.
func carry(t *testing.T, src, dst *testvm.VM, path string) {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, src.Get(t.Context(), path, &b))
	require.NoError(t, dst.Put(t.Context(), path, &b, 0o644))
}
