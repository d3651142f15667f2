package checkpoint_test

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/checkpoint"
	"github.com/ovmigrate/ovmigrate/criuimg"
	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
)

// victim is a process with 16 MiB of memory that shows it is alive.
func victim(t *testing.T, m *machine, log string) kernel.PID {
	t.Helper()
	m.must(t, "rm", "-f", log)
	pid := m.start(t, log, "/opt/ovm/sleeper", "-t", "2", "-k", "16384", "-i", "100", "futex")
	t.Cleanup(func() { m.kill(pid) })
	m.waitLines(t, log, 2)
	return pid
}

// requireAlive checks that the process goes on, unharmed and not stopped.
func requireAlive(t *testing.T, m *machine, log string) {
	t.Helper()
	n := len(m.lines(t, log))
	for i, l := range m.waitLines(t, log, n+3) {
		require.Regexp(t, "^"+strconv.Itoa(i+1)+" OK", l)
	}
	m.CheckKernel(t)
}

func requireNothingIn(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestSaveFails(t *testing.T) {
	p := bootPair(t, "bookworm")
	m := p.src

	t.Run("target exists", func(t *testing.T) {
		pid := victim(t, m, "/root/exists.log")
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "precious"), nil, 0o600))
		_, err := checkpoint.Save(t.Context(), m.k, pid, dir, &kill)
		require.ErrorIs(t, err, fs.ErrExist)
		requireAlive(t, m, "/root/exists.log")
	})
	t.Run("disk full", func(t *testing.T) {
		pid := victim(t, m, "/root/full.log")
		small := t.TempDir()
		require.NoError(t, syscall.Mount("none", small, "tmpfs", 0, "size=6M"))
		t.Cleanup(func() { _ = syscall.Unmount(small, syscall.MNT_DETACH) })
		_, err := checkpoint.Save(t.Context(), m.k, pid, filepath.Join(small, "images"), &kill)
		require.ErrorIs(t, err, syscall.ENOSPC)
		requireNothingIn(t, small)
		requireAlive(t, m, "/root/full.log")
	})
	for _, hold := range []checkpoint.Hold{checkpoint.HoldFreeze, checkpoint.HoldStop} {
		t.Run("interrupted "+string(hold), func(t *testing.T) {
			log := "/root/interrupted-" + string(hold) + ".log"
			pid := victim(t, m, log)
			parent := t.TempDir()
			ctx, cancel := context.WithCancel(t.Context())
			o := checkpoint.SaveOptions{Leave: checkpoint.LeaveKilled, Hold: hold}
			o.Progress = func(done, total int64) {
				if done > total/4 {
					cancel()
				}
			}
			_, err := checkpoint.Save(ctx, m.k, pid, filepath.Join(parent, "images"), &o)
			require.ErrorIs(t, err, context.Canceled)
			requireNothingIn(t, parent)
			requireAlive(t, m, log)
		})
	}
	t.Run("delivery fails", func(t *testing.T) {
		pid := victim(t, m, "/root/delivery.log")
		o := kill
		o.Deliver = func(context.Context, string) error { return syscall.ECONNREFUSED }
		_, err := checkpoint.Save(t.Context(), m.k, pid, filepath.Join(t.TempDir(), "images"), &o)
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		requireAlive(t, m, "/root/delivery.log")
	})
}

// The guest loses its power in the middle: an error soon, and no half of a set. If
// everything had been read by then, the set is there and whole.
func TestGuestDiesWhileSaving(t *testing.T) {
	m := &machine{VM: testvm.Start(t, testvm.Config{Suite: "bookworm"})}
	m.open(t)
	pid := victim(t, m, "/root/dies.log")
	parent := t.TempDir()
	o := checkpoint.SaveOptions{Leave: checkpoint.LeaveKilled}
	o.Progress = func(done, total int64) {
		if done > total/4 {
			_ = syscall.Kill(m.PID(), syscall.SIGKILL)
		}
	}
	start := time.Now()
	_, err := checkpoint.Save(t.Context(), m.k, pid, filepath.Join(parent, "images"), &o)
	require.Error(t, err)
	t.Logf("after %v: %v", time.Since(start), err)
	require.Less(t, time.Since(start), time.Minute)
	left, err := os.ReadDir(parent)
	require.NoError(t, err)
	if len(left) == 0 {
		return
	}
	require.Equal(t, "images", left[0].Name())
	set, err := criuimg.OpenDir(filepath.Join(parent, "images"))
	require.NoError(t, err)
	require.Empty(t, set.Verify())
}

// Who cannot be saved at all is told at once, and nothing is created.
func TestSaveRefuses(t *testing.T) {
	p := bootPair(t, "bookworm")
	m := p.src
	kthreadd := kernel.PID(2)
	for name, c := range map[string]struct {
		pid  kernel.PID
		want error
	}{
		"no such pid":   {4000000, kernel.ErrNoTask},
		"negative":      {-5, kernel.ErrNoTask},
		"kernel thread": {kthreadd, checkpoint.ErrKernelThread},
		"init":          {1, checkpoint.ErrInit},
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			_, err := checkpoint.Save(t.Context(), m.k, c.pid, filepath.Join(parent, "images"), &kill)
			require.ErrorIs(t, err, c.want)
			requireNothingIn(t, parent)
		})
	}
	t.Run("zombie", func(t *testing.T) {
		// The shell that would reap its child has become a program that does not.
		m.start(t, "", "sh", "-c", "sh -c 'exec -a deadchild true' & exec sleep 1000")
		parent := m.find(t, "sleep 1000")
		t.Cleanup(func() { m.kill(parent) })
		var zombie kernel.PID
		require.NoError(t, testvm.Wait(t.Context(), "a zombie", func() (bool, error) {
			task, err := m.k.Task(parent)
			if err != nil {
				return false, err
			}
			for c, err := range task.Children() {
				if err == nil && c.StateChar() == 'Z' {
					zombie = c.PID
					return true, nil
				}
			}
			return false, nil
		}))
		_, err := checkpoint.Save(t.Context(), m.k, zombie, filepath.Join(t.TempDir(), "images"), &kill)
		require.ErrorIs(t, err, checkpoint.ErrExited)
	})
}
