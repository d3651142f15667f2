package checkpoint_test

import (
	"bytes"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/checkpoint"
	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
)

// odd starts a process with one piece of state that cannot be carried, and returns
// who has it.
func (m *machine) odd(t *testing.T, kind string) kernel.PID {
	t.Helper()
	const dir = "/root/odd"
	log := dir + "/" + strings.ReplaceAll(kind, " ", "-") + ".log"
	m.must(t, "mkdir", "-p", dir)
	m.must(t, "rm", "-f", log, dir+"/odd-file")
	if _, err := m.Exec(t.Context(), "test", "-x", dir+"/odd"); err != nil {
		require.NoError(t, m.Put(t.Context(), dir+"/odd", bytes.NewReader(compile(t, "odd")), 0o755))
	}
	pid, err := m.StartProcess(t.Context(), testvm.Process{Argv: []string{dir + "/odd", kind}, Dir: dir, Stdout: log})
	require.NoError(t, err)
	t.Cleanup(func() { m.kill(kernel.PID(pid)) })
	line := m.waitLines(t, log, 1)[0]
	who, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "ready ")))
	require.NoError(t, err, line)
	if who != pid {
		t.Cleanup(func() { m.kill(kernel.PID(who)) })
	}
	// It was ready before it went to sleep.
	require.NoError(t, testvm.Wait(t.Context(), kind+" to sleep", func() (bool, error) {
		task, err := m.k.Task(kernel.PID(who))
		return err == nil && strings.ContainsRune("SZt", rune(task.StateChar())), err
	}))
	return kernel.PID(who)
}

// What cannot be carried is said by Check, and Save refuses it, before the process
// is touched or a file is made.
func TestRefused(t *testing.T) {
	for _, suite := range suites {
		for _, c := range []struct{ kind, want string }{
			{"unix", `fd \d+: refused: .*socket`},
			{"tcp", `fd \d+: refused: .*socket`},
			{"deleted", `fd \d+: refused: /root/odd/odd-file has been deleted`},
			{"deleted mapping", `refused: /root/odd/odd-file has been deleted`},
			{"deleted cwd", `cwd: refused: .*gone`},
			{"memfd", `fd \d+: refused: .*memfd`},
			{"child", `child process: refused: \d+ \(odd\)`},
			{"shared table", `descriptor table: refused: .*shared`},
			{"shared memory", `address space: refused: .*shared with process \d+`},
			{"io_uring", `fd \d+: refused: .*io_uring`},
			{"aio", `aio: refused`},
			{"uts", `uts namespace: refused`},
			{"net", `net namespace: refused`},
			{"mnt", `mnt namespace: refused`},
			{"pid", `pid namespace: refused`},
			{"user", `user namespace: refused`},
			{"traced", `thread \d+: refused: is being traced`},
			{"userfaultfd", `fd \d+: refused: .*userfaultfd`},
			{"sysv", `mapping .*: refused: .*SYSV|mapped file: refused: .*SYSV`},
			{"pkey", `mapping .*: refused: .*protection key`},
			{"inotify", `fd \d+: refused: .*inotify`},
			{"semaphore", `fd \d+: refused: .*semaphore`},
			{"packets", `fd \d+: refused: .*packet`},
			{"lease", `fd \d+: refused: .*lease`},
			{"epoll", `epoll target \d+: refused`},
			{"thread clock", `timer \d+: refused: .*CPU time of a thread`},
			{"supervised", `thread \d+: refused: .*supervisor`},
			{"leader gone", `thread \d+: refused: is exiting|has exited`},
			{"tty", `fd \d+: refused: .*terminal`},
			{"device", `fd \d+: refused: .*device /dev/kmsg`},
		} {
			t.Run(suite+"/"+c.kind, func(t *testing.T) {
				m := bootPair(t, suite).src
				pid := m.odd(t, c.kind)
				issues, err := checkpoint.Check(t.Context(), m.k, pid, nil)
				text := ""
				if err != nil { // it cannot be looked at any further
					text = err.Error()
				}
				for _, i := range issues {
					text += i.String() + "\n"
				}
				require.Regexp(t, c.want, text)

				before := m.switches(t, pid)
				parent := t.TempDir()
				_, err = checkpoint.Save(t.Context(), m.k, pid, filepath.Join(parent, "images"), &kill)
				require.Error(t, err)
				require.Regexp(t, c.want+`|and \d more|exited`, err.Error())
				requireNothingIn(t, parent)
				require.Equal(t, before, m.switches(t, pid), "was made to run")
			})
		}
	}
}

// switches returns how often a process has left the processor.
func (m *machine) switches(t *testing.T, pid kernel.PID) uint64 {
	t.Helper()
	task, err := m.k.Task(pid)
	require.NoError(t, err)
	return task.NVCSW + task.NIVCSW
}

// The program of TestRefused without any such state is carried.
func TestNotRefused(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			m := bootPair(t, suite).src
			issues, err := checkpoint.Check(t.Context(), m.k, m.odd(t, "nothing"), nil)
			require.NoError(t, err)
			require.Empty(t, issues)
		})
	}
}
