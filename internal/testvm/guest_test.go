package testvm

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// forEachSuite runs f once a suite, on a guest that the tests share.
func forEachSuite(t *testing.T, f func(t *testing.T, vm *VM)) {
	for _, suite := range Suites() {
		t.Run(suite, func(t *testing.T) { f(t, StartShared(t, Config{Suite: suite})) })
	}
}

func TestGuestIsWhatWeNeed(t *testing.T) {
	want := map[string]struct{ kernel, criu string }{
		"bookworm": {"6.1.", "3.17"}, "trixie": {"6.12.", "4.1"},
	}
	forEachSuite(t, func(t *testing.T, vm *VM) {
		t.Logf("booted in %v", vm.BootTime())
		suite := vm.Config().Suite
		sh := func(script string) string {
			out, err := vm.Exec(t.Context(), "sh", "-c", script)
			require.NoError(t, err)
			return strings.TrimSpace(string(out))
		}
		require.True(t, strings.HasPrefix(sh("uname -r"), want[suite].kernel))
		require.Contains(t, sh("criu --version"), want[suite].criu)
		require.Equal(t, "Looks good.", sh("criu check 2>&1"))
		require.Contains(t, sh("crit --help"), "decode")
		for _, flag := range []string{"avx2", "pti"} {
			require.Contains(t, strings.Fields(sh("grep -m1 ^flags /proc/cpuinfo")), flag)
		}
		require.NotContains(t, sh("cat /proc/cmdline"), "nokaslr")
		require.Equal(t, "cpu memory pids", sh("cat /sys/fs/cgroup/cgroup.subtree_control"))
		require.Equal(t, "1", sh("nproc"))
		require.Contains(t, sh("ip -o link show lo"), "LOWER_UP")
		vm.CheckKernel(t)
	})
}

func TestRun(t *testing.T) {
	forEachSuite(t, func(t *testing.T, vm *VM) {
		var out, errout bytes.Buffer
		r, err := vm.Run(t.Context(), Cmd{
			Argv: []string{"sh", "-c", `cat; echo "$X" >&2; pwd; exit 7`}, Env: []string{"X=a b"}, Dir: "/etc",
			Stdin: strings.NewReader("in\n"), Stdout: &out, Stderr: &errout,
		})
		require.NoError(t, err)
		require.Equal(t, 7, r.Code)
		require.Equal(t, "in\n/etc\n", out.String())
		require.Equal(t, "a b\n", errout.String())

		r, err = vm.Run(t.Context(), Cmd{Argv: []string{"sh", "-c", "kill -9 $$"}})
		require.NoError(t, err)
		require.Equal(t, 9, r.Signal)

		_, err = vm.Run(t.Context(), Cmd{Argv: []string{"/no/such/program"}})
		require.ErrorContains(t, err, "no such file")

		// A daemon that keeps the output open does not hold up the command.
		_, err = vm.Exec(t.Context(), "sh", "-c", "sleep 1000 & echo $!")
		require.NoError(t, err)

		// A context that ends kills the process.
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err = vm.Run(ctx, Cmd{Argv: []string{"sleep", "987"}})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NoError(t, Wait(t.Context(), "sleep to be killed", func() (bool, error) {
			_, err := vm.Exec(t.Context(), "sh", "-c", "! pgrep -f 'sleep 987' | grep -v $$")
			return err == nil, nil
		}))
	})
}

func TestFiles(t *testing.T) {
	forEachSuite(t, func(t *testing.T, vm *VM) {
		data := make([]byte, 20<<20)
		_, _ = rand.Read(data)
		begin := time.Now()
		require.NoError(t, vm.Put(t.Context(), "/root/big", bytes.NewReader(data), 0o750))
		put := time.Since(begin)
		var back bytes.Buffer
		require.NoError(t, vm.Get(t.Context(), "/root/big", &back))
		t.Logf("20 MiB: put %v, get %v", put, time.Since(begin)-put)
		require.True(t, bytes.Equal(data, back.Bytes()), "what came back differs")
		out, err := vm.Exec(t.Context(), "stat", "-c", "%a", "/root/big")
		require.NoError(t, err)
		require.Equal(t, "750\n", string(out))

		var tar bytes.Buffer
		_, err = vm.Exec(t.Context(), "sh", "-c", "mkdir -p /root/t; echo hello >/root/t/f; rm /root/big")
		require.NoError(t, err)
		require.NoError(t, vm.GetTar(t.Context(), "/root/t", &tar))
		require.NoError(t, vm.PutTar(t.Context(), "/root/u", &tar))
		out, err = vm.Exec(t.Context(), "cat", "/root/u/f")
		require.NoError(t, err)
		require.Equal(t, "hello\n", string(out))

		require.ErrorContains(t, vm.Get(t.Context(), "/root/none", &back), "no such file")
		require.ErrorContains(t, vm.Put(t.Context(), "/none/f", &back, 0), "no such file")
	})
}

// numbers checks that the counter's output is 1, 2, 3 ... and returns the last.
func numbers(t *testing.T, vm *VM, file string) int {
	out, err := vm.Exec(t.Context(), "cat", file)
	require.NoError(t, err)
	lines := strings.Fields(string(out))
	for i, l := range lines {
		require.Equal(t, strconv.Itoa(i+1), l, "line of %s", file)
	}
	return len(lines)
}

// What the library must be able to do from outside, stock CRIU does from inside.
func TestNativeDumpAndRestore(t *testing.T) {
	forEachSuite(t, func(t *testing.T, vm *VM) {
		const log = "/root/counter.log"
		pid, err := vm.StartProcess(t.Context(), Process{Argv: []string{"/opt/ovm/counter", "50"}, Stdout: log})
		require.NoError(t, err)
		grows := func(than int) {
			require.NoError(t, Wait(t.Context(), "the counter", func() (bool, error) {
				return numbers(t, vm, log) > than, nil
			}))
		}
		grows(3)
		_, err = vm.Exec(t.Context(), "sh", "-c",
			fmt.Sprintf("mkdir -p /root/img; criu dump -t %d -D /root/img -v2 -o log || { tail -n 5 /root/img/log >&2; exit 1; }", pid))
		require.NoError(t, err)
		stopped := numbers(t, vm, log)
		_, err = vm.Exec(t.Context(), "kill", "-0", strconv.Itoa(pid))
		require.Error(t, err, "the process is gone")
		_, err = vm.Exec(t.Context(), "sh", "-c",
			"criu restore -d -D /root/img -v2 -o rlog || { tail -n 5 /root/img/rlog >&2; exit 1; }")
		require.NoError(t, err)
		grows(stopped + 3)
		_, err = vm.Exec(t.Context(), "kill", strconv.Itoa(pid))
		require.NoError(t, err)
		vm.CheckKernel(t)
	})
}

func TestSleeper(t *testing.T) {
	forEachSuite(t, func(t *testing.T, vm *VM) {
		start := func(args ...string) (pid int, log string) {
			log = "/root/" + strings.Join(args, "") + ".log"
			pid, err := vm.StartProcess(t.Context(), Process{
				Argv: append([]string{"/opt/ovm/sleeper", "-o", log}, args...), Stderr: "/root/sleeper.err",
			})
			require.NoError(t, err)
			return pid, log
		}
		checked := func(pid int, log string, n int) {
			_, err := vm.Exec(t.Context(), "kill", "-USR1", strconv.Itoa(pid))
			require.NoError(t, err)
			require.NoError(t, Wait(t.Context(), log, func() (bool, error) {
				out, err := vm.Exec(t.Context(), "cat", log)
				require.NotContains(t, string(out), "FAIL")
				return strings.Count(string(out), " OK ") >= n, err
			}))
		}
		// Every mode in a thread of its own, through a native dump and restore.
		pid, log := start("-t", "20", "mixed")
		require.NoError(t, Wait(t.Context(), "threads", func() (bool, error) {
			out, err := vm.Exec(t.Context(), "sh", "-c", fmt.Sprintf("ls /proc/%d/task | wc -l", pid))
			return strings.TrimSpace(string(out)) == "21", err
		}))
		checked(pid, log, 1)
		_, err := vm.Exec(t.Context(), "sh", "-c", fmt.Sprintf(
			`mkdir -p /root/sl; cd /root/sl; criu dump -t %d -D . -v2 -o log && criu restore -d -D . -v2 -o rlog || { tail -n 5 log rlog >&2; exit 1; }`, pid))
		require.NoError(t, err)
		checked(pid, log, 2)
		checked(pid, log, 3)
		_, err = vm.Exec(t.Context(), "kill", "-9", strconv.Itoa(pid))
		require.NoError(t, err)
		for _, mode := range []string{"pause", "nanosleep", "read", "fifo", "pty", "recv", "futex", "epoll", "poll", "spin"} {
			pid, log := start("-t", "0", "-k", "64", mode)
			require.NoError(t, Wait(t.Context(), "handler", func() (bool, error) {
				out, err := vm.Exec(t.Context(), "sh", "-c", fmt.Sprintf("grep SigCgt /proc/%d/status", pid))
				caught, _ := strconv.ParseUint(strings.TrimSpace(strings.TrimPrefix(string(out), "SigCgt:")), 16, 64)
				return caught&(1<<9|1<<13) == 1<<9|1<<13, err
			}))
			checked(pid, log, 1)
			_, err = vm.Exec(t.Context(), "kill", "-9", strconv.Itoa(pid))
			require.NoError(t, err)
		}
		vm.CheckKernel(t)
	})
}

func TestBusyGuest(t *testing.T) {
	for _, suite := range Suites() {
		t.Run(suite, func(t *testing.T) {
			vm := Start(t, Config{Suite: suite, Memory: 1 << 30})
			out, err := vm.Exec(t.Context(), "/opt/ovm/busy.sh")
			require.NoError(t, err)
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			var n int
			_, err = fmt.Sscanf(lines[len(lines)-1], "ready %d", &n)
			require.NoError(t, err)
			require.GreaterOrEqual(t, n, 105, "%s", out)
			require.Len(t, lines, 1, "complaints of busy.sh: %s", out)
			for _, name := range []string{"memcached", "redis-server", "python3", "manyfds"} {
				_, err = vm.Exec(t.Context(), "pgrep", name)
				require.NoError(t, err, name)
			}
			vm.CheckKernel(t)
		})
	}
}

func TestMonitors(t *testing.T) {
	vm := StartShared(t, Config{Suite: Suites()[0]})
	regs, err := vm.Monitor(t.Context(), "info registers")
	require.NoError(t, err)
	require.Contains(t, regs, "CR3=")
	_, err = os.Stat(vm.QMPSocket())
	require.NoError(t, err)
	st, err := os.Stat(vm.RAMPath())
	require.NoError(t, err)
	require.Equal(t, vm.Config().Memory, st.Size())
	_, err = vm.QMP(t.Context(), "no-such-command", nil)
	require.ErrorContains(t, err, "no-such-command")
}
