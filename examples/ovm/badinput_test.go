package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

// requireFails runs ovm in this process, which must exit with 1 and one line that holds
// want.
func requireFails(t *testing.T, want string, args ...string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(args, &stdout, &stderr)
	requireOneLine(t, want, code, stderr.String(), args...)
}

func requireOneLine(t *testing.T, want string, code int, stderr string, args ...string) {
	t.Helper()
	require.Equalf(t, exitFailure, code, "ovm %v: %s", args, stderr)
	require.Regexpf(t, `^ovm: [^\n]+\n$`, stderr, "ovm %v", args)
	require.Containsf(t, stderr, want, "ovm %v", args)
}

// command returns ovm as a process of its own.
func command(ctx context.Context, args ...string) *exec.Cmd {
	// The link is one that any user may follow.
	c := exec.CommandContext(ctx, "/proc/self/exe", args...)
	c.Args[0] = "ovm"
	return c
}

// victim is a process of a guest that counts in a file.
type victim struct {
	vm  *testvm.VM
	pid string
	out string
}

// startVictim starts a process of about mib MiB that writes a number every 50 ms.
func startVictim(t *testing.T, vm *testvm.VM, mib int) *victim {
	t.Helper()
	v := &victim{vm: vm, out: fmt.Sprintf("/root/victim-%d", time.Now().UnixNano())}
	pid, err := vm.StartProcess(t.Context(), testvm.Process{Stdout: v.out, Argv: []string{"python3", "-u", "-c", fmt.Sprintf(`
import os, time
x = bytearray(os.urandom(1 << 20)) * %d
n = 0
while True:
    n += 1
    print(n)
    time.sleep(0.05)
`, mib)}})
	require.NoError(t, err)
	v.pid = strconv.Itoa(pid)
	t.Cleanup(func() {
		_, _ = vm.Exec(context.WithoutCancel(t.Context()), "kill", "-9", v.pid)
	})
	v.requireRuns(t)
	return v
}

func (v *victim) count(t *testing.T) int {
	t.Helper()
	out, err := v.vm.Exec(t.Context(), "sh", "-c", "wc -l < "+v.out)
	require.NoError(t, err)
	n, err := strconv.Atoi(strings.TrimSpace(string(out)))
	require.NoError(t, err)
	return n
}

// requireRuns fails unless the process counts on.
func (v *victim) requireRuns(t *testing.T) {
	t.Helper()
	before := v.count(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, testvm.Wait(ctx, "process "+v.pid+" to count", func() (bool, error) {
		return v.count(t) > before+1, nil
	}))
}

// TestBadInput makes every mistake that has to do with a guest.
func TestBadInput(t *testing.T) {
	vm := sharedGuest(t, "trixie")
	qmp := "qmp:" + vm.QMPSocket()
	v := startVictim(t, vm, 4)
	images := filepath.Join(t.TempDir(), "images")

	t.Run("process", func(t *testing.T) {
		out, err := vm.Exec(t.Context(), "sh", "-c", `(sh -c 'exit 3 & exec sleep 1000' >/dev/null 2>&1 & echo $!)`)
		require.NoError(t, err)
		parent := strings.TrimSpace(string(out))
		zombie := ""
		require.NoError(t, testvm.Wait(t.Context(), "a zombie", func() (bool, error) {
			for _, p := range ovmJSON[[]process](t, "-g", qmp, "ps") {
				if p.State == "Z" && fmt.Sprint(p.PPID) == parent {
					zombie = fmt.Sprint(p.PID)
				}
			}
			return zombie != "", nil
		}))
		for pid, want := range map[string]map[string]string{
			"99999": {"": "pid 99999: no such process"},
			"2":     {"": "pid 2 (kthreadd) is a kernel thread", "maps": "has no user memory", "mem": "has no user memory", "fds": "a kernel thread has no files"},
			"1":     {"": "pid 1 (init) is the guest's init", "maps": "-", "mem": "-", "fds": "-", "cont": "-"},
			zombie:  {"": "has exited", "maps": "has no user memory", "mem": "has no user memory", "fds": "-"},
		} {
			for _, c := range []string{"maps", "fds", "mem", "stop", "cont", "kill", "check", "checkpoint", "migrate"} {
				line, ok := want[c]
				if !ok {
					line = want[""]
				}
				args := []string{"-g", qmp, c, pid}
				switch c {
				case "mem":
					args = append(args, "400000", "4096")
				case "checkpoint":
					args = append(args, "-D", images)
				case "migrate":
					args = append(args, "--to", "false")
				}
				if line != "-" {
					requireFails(t, line, args...)
				}
			}
		}
		require.NoDirExists(t, images)
	})

	t.Run("memory", func(t *testing.T) {
		requireFails(t, "nothing is mapped there", "-g", qmp, "mem", v.pid, "1000", "4096")
	})

	t.Run("object", func(t *testing.T) {
		requireFails(t, "no such symbol", "-g", qmp, "sym", "no_such_symbol")
		requireFails(t, "no such type", "-g", qmp, "type", "no_such_type")
		requireFails(t, "no such type", "-g", qmp, "obj", "init_task.no_such_member")
		requireFails(t, "null pointer", "-g", qmp, "obj", "init_task.mm.pgd")
		requireFails(t, "not mapped", "-g", qmp, "obj", "((struct list_head *)0x10)->next")
	})

	t.Run("folder exists", func(t *testing.T) {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600))
		requireFails(t, "exists", "-g", qmp, "checkpoint", v.pid, "-D", dir)
		require.FileExists(t, filepath.Join(dir, "mine"))
		requireFails(t, "no such file", "-g", qmp, "checkpoint", v.pid, "-D", filepath.Join(dir, "missing", "images"))
		v.requireRuns(t)
	})

	t.Run("disk full", func(t *testing.T) {
		dir := t.TempDir()
		mounts := "-m"
		if os.Getuid() != 0 {
			mounts = "-Urm"
		}
		c := exec.CommandContext(t.Context(), "unshare", mounts, "bash", "-c",
			`mount -t tmpfs -o size=1m none "$1" || exit 9
			(exec -a ovm "$2" -g "$3" checkpoint "$4" -D "$1/images"); code=$?
			ls -A "$1"; exit $code`, "bash", dir, self(t), qmp, v.pid)
		var stdout, stderr bytes.Buffer
		c.Stdout, c.Stderr = &stdout, &stderr
		_ = c.Run()
		requireOneLine(t, "no space left on device", c.ProcessState.ExitCode(), stderr.String())
		require.Empty(t, stdout.String(), "nothing is left on the full disk")
		v.requireRuns(t)
	})

	t.Run("read-only", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Fatal("this test becomes somebody else: it needs root")
		}
		for _, c := range [][]string{{"-g", vm.RAMPath(), "ps"}, {"-g", qmp, "stop", v.pid}} {
			cmd := command(t.Context(), c...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			cmd.Dir = "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			_ = cmd.Run()
			requireOneLine(t, "permission denied", cmd.ProcessState.ExitCode(), stderr.String(), c...)
		}
		v.requireRuns(t)
	})

	t.Run("command fails", func(t *testing.T) {
		requireFails(t, "the command that receives the images failed: exit status 3", "-g", qmp, "migrate", v.pid, "--to", "cat >/dev/null; exit 3")
		requireFails(t, "did not read them all", "-g", qmp, "migrate", v.pid, "--to", "true")
		v.requireRuns(t)
	})

	t.Run("command interrupted", func(t *testing.T) {
		interrupt(t, "interrupted", "-g", qmp, "migrate", v.pid, "--to", "echo started >&2; exec sleep 1000")
		v.requireRuns(t)
	})

	t.Run("dump", func(t *testing.T) {
		dump := filepath.Join(t.TempDir(), "dump")
		_, err := vm.QMP(t.Context(), "dump-guest-memory", map[string]any{"paging": false, "protocol": "file:" + dump})
		require.NoError(t, err)
		require.NotEmpty(t, ovmJSON[[]process](t, "-g", dump, "ps"))
		requireFails(t, "a dump cannot be written to", "-g", dump, "stop", v.pid)
		st, err := os.Stat(dump)
		require.NoError(t, err)
		require.NoError(t, os.Truncate(dump, st.Size()/2))
		requireFails(t, "truncated", "-g", dump, "ps")
		v.requireRuns(t)
	})

	t.Run("socket", func(t *testing.T) {
		sock := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", sock)
		require.NoError(t, err)
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, "220 mail.example ESMTP\r\n")
				c.Close()
			}
		}()
		requireFails(t, "not a QMP socket", "-g", "qmp:"+sock, "ps")
		requireFails(t, "write qmp:", "-g", sock, "ps")
	})
	vm.CheckKernel(t)
}

// self returns the path of this program.
func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	require.NoError(t, err)
	return path
}

// interrupt starts ovm, sends it SIGINT as soon as it has something to say, and
// checks that it ends with one line that holds want.
func interrupt(t *testing.T, want string, args ...string) {
	t.Helper()
	onFirstOutput(t, want, func(c *exec.Cmd) {
		require.NoError(t, c.Process.Signal(os.Interrupt))
	}, args...)
}

func onFirstOutput(t *testing.T, want string, do func(c *exec.Cmd), args ...string) {
	t.Helper()
	c := command(t.Context(), args...)
	r, err := c.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, c.Start())
	first := make([]byte, 4096)
	n, err := r.Read(first)
	require.NoError(t, err)
	do(c)
	rest, err := io.ReadAll(r)
	require.NoError(t, err)
	_ = c.Wait()
	all := string(first[:n]) + string(rest)
	at := strings.LastIndex(all, "ovm: ")
	require.GreaterOrEqual(t, at, 0, all)
	t.Log(all[at:])
	requireOneLine(t, want, c.ProcessState.ExitCode(), all[at:], args...)
}

// TestEndInMidSave ends the saving of a large process in its middle.
func TestEndInMidSave(t *testing.T) {
	vm := testvm.Start(t, testvm.Config{Suite: "trixie", Memory: 1 << 30})
	qmp := "qmp:" + vm.QMPSocket()
	v := startVictim(t, vm, 500)
	dir := t.TempDir()
	images := filepath.Join(dir, "images")
	args := []string{"-g", qmp, "--progress", "checkpoint", v.pid, "-D", images}
	empty := func(t *testing.T) {
		t.Helper()
		left, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Empty(t, left, "nothing is left of the images")
	}

	t.Run("interrupted", func(t *testing.T) {
		for _, hold := range []string{"--freeze", "--sigstop"} {
			interrupt(t, "interrupted", append(args, hold)...)
			empty(t)
			v.requireRuns(t)
		}
		vm.CheckKernel(t)
	})
	t.Run("powered off", func(t *testing.T) {
		onFirstOutput(t, "", func(*exec.Cmd) {
			_, _ = vm.QMP(t.Context(), "quit", nil)
		}, args...)
		empty(t)
	})
}

// requireUsage runs ovm in this process, which must exit with 2 and one line that
// holds want.
func requireUsage(t *testing.T, want string, args ...string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(args, &stdout, &stderr)
	require.Equalf(t, exitUsage, code, "ovm %v: %s", args, stderr.String())
	require.Regexpf(t, `^ovm: [^\n]+\n$`, stderr.String(), "ovm %v", args)
	require.Containsf(t, stderr.String(), want, "ovm %v", args)
}
