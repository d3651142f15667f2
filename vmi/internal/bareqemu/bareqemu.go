// Package bareqemu starts QEMUs without a guest operating system, for tests of
// the memory sources. Such a machine is up in a few hundredths of a second and its
// RAM costs nothing until it is touched.
package bareqemu

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// QEMU is a running machine without an operating system, stopped before its first
// instruction.
type QEMU struct {
	Dir string // a directory of its own on tmpfs, removed at the end of the test
	QMP string // monitor socket
	PID int
}

// Start starts QEMU, that of arm64 for its machine virt and else that of x86-64, with
// args, in which DIR stands for its directory, and kills it
// at the end of the test, or when the test program dies. With -short it skips the
// test; without QEMU it fails it.
func Start(t testing.TB, args ...string) *QEMU {
	t.Helper()
	if testing.Short() {
		t.Skip("starts QEMU")
	}
	program := "qemu-system-x86_64"
	if slices.ContainsFunc(args, func(a string) bool { return a == "virt" || strings.HasPrefix(a, "virt,") }) {
		program = "qemu-system-aarch64"
	}
	path, err := exec.LookPath(program)
	require.NoError(t, err, "this test needs %s (Debian packages qemu-system-x86 and qemu-system-arm), or -short", program)
	dir, err := os.MkdirTemp("/dev/shm", "ovmigrate-qemu")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &QEMU{Dir: dir, QMP: filepath.Join(dir, "qmp.sock")}
	all := append([]string{
		"-accel", "tcg", "-S", "-display", "none", "-nodefaults", "-qmp", "unix:" + b.QMP + ",server=on,wait=off",
	}, args...)
	for i := range all {
		all[i] = strings.ReplaceAll(all[i], "DIR", dir)
	}
	cmd := exec.Command(path, all...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // the thread that forks is the parent that dies
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
		close(ended)
	}()
	require.NoError(t, <-started)
	b.PID = cmd.Process.Pid
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
		if t.Failed() && stderr.Len() > 0 {
			t.Logf("QEMU: %s", &stderr)
		}
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(b.QMP); err == nil {
			return b
		}
		select {
		case <-ended:
			t.Fatalf("QEMU ended: %s", stderr.String())
		default:
		}
		require.True(t, time.Now().Before(deadline), "QEMU made no socket")
	}
}

// Content makes a file of n random bytes, the same for the same seed, for Load.
func Content(t testing.TB, n int, seed uint64) (path string, data []byte) {
	data = make([]byte, n)
	rng := rand.New(rand.NewPCG(seed, 0))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	path = filepath.Join(t.TempDir(), "content")
	require.NoError(t, os.WriteFile(path, data, 0o600))
	return path, data
}

// Load returns the arguments with which QEMU itself puts a file into guest RAM.
func Load(path string, addr uint64) []string {
	return []string{"-device", fmt.Sprintf("loader,file=%s,addr=%#x,force-raw=on", path, addr)}
}
