package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

// timersProgram makes timers of all kinds, for tens of thousands of seconds.
const timersProgram = `
import ctypes, signal, struct
libc = ctypes.CDLL(None, use_errno=True)
def check(r):
    if r < 0: raise OSError(ctypes.get_errno())
    return r
signal.setitimer(signal.ITIMER_REAL, 40000, 5.5)
signal.setitimer(signal.ITIMER_PROF, 30000)
# struct sigevent: value, signo, notify, thread
for clock, notify, signo in ((1, 0, signal.SIGUSR1), (7, 1, 0), (0, 4, 40), (2, 0, signal.SIGUSR2)):
    t = ctypes.c_int(-1)
    check(libc.syscall(TIMER_CREATE, clock, struct.pack("Qiii44x", 77, signo, notify, libc.gettid()), ctypes.byref(t)))
    check(libc.syscall(TIMER_SETTIME, t, 0, struct.pack("qqqq", 7, 500, 50000, 0), None))
check(libc.syscall(TIMER_CREATE, 1, None, ctypes.byref(t)))
fd = check(libc.timerfd_create(7, 0))
check(libc.timerfd_settime(fd, 0, struct.pack("qqqq", 5, 0, 60000, 5000), None))
check(libc.timerfd_create(1, 0))
print("set", flush=True)
while True: signal.pause()
`

// TestTimers compares what timers prints with what the guest tells, and with what was
// asked for.
func TestTimers(t *testing.T) {
	vm := sharedGuest(t, "trixie")
	program := strings.NewReplacer("TIMER_CREATE", "222", "TIMER_SETTIME", "223").Replace(timersProgram)
	pid, err := vm.StartProcess(t.Context(), testvm.Process{Argv: []string{"python3", "-c", program}, Stdout: "/root/timers.log"})
	require.NoError(t, err)
	var out []byte
	err = testvm.Wait(t.Context(), "timers to be set", func() (bool, error) {
		out, err = vm.Exec(t.Context(), "cat", "/root/timers.log")
		return len(out) > 0, err
	})
	require.NoError(t, err)
	require.Equal(t, "set\n", string(out))

	guest, number := vm.RAMPath(), strconv.Itoa(pid)
	byKind := map[string][]timer{}
	for _, v := range ovmJSON[[]timer](t, "-g", guest, "timers", number) {
		require.EqualValues(t, pid, v.PID)
		require.Equal(t, "python3", v.Comm)
		byKind[v.Kind] = append(byKind[v.Kind], v)
	}
	left := func(v timer, seconds int64) {
		t.Helper()
		require.NotNil(t, v.LeftNS, "%+v", v)
		require.LessOrEqual(t, *v.LeftNS, (seconds+1)*1e9, "%+v", v)
		require.Greater(t, *v.LeftNS, (seconds-5000)*1e9, "%+v", v)
	}

	require.Len(t, byKind["itimer"], 2)
	real, prof := byKind["itimer"][0], byKind["itimer"][1]
	left(real, 40000)
	left(prof, 30000)
	require.Equal(t, []any{"ITIMER_REAL", "SIGALRM", int64(5_500_000_000)}, []any{real.Clock, real.Signal, real.IntervalNS})
	require.Equal(t, []any{"ITIMER_PROF", "SIGPROF", int64(0)}, []any{prof.Clock, prof.Signal, prof.IntervalNS})

	// /proc/PID/timers has the numbers, signals and clocks.
	require.Len(t, byKind["posix"], 5)
	proc, err := vm.Exec(t.Context(), "cat", "/proc/"+number+"/timers")
	require.NoError(t, err)
	told := regexp.MustCompile(`ID: (\d+)\nsignal: (\d+)/.*\nnotify: (\w+)/(?:pid|tid)\.(\d+)\nClockID: (-?\d+)\n`).FindAllStringSubmatch(string(proc), -1)
	require.Len(t, told, 5)
	var want, got []string
	for _, m := range told {
		clock, err := strconv.ParseInt(m[5], 10, 32)
		require.NoError(t, err)
		want = append(want, fmt.Sprintf("%s %s %s", m[1], m[3], clockName(int32(clock))))
	}
	for _, v := range byKind["posix"] {
		got = append(got, fmt.Sprintf("%d %s %s", v.ID, v.Notify, v.Clock))
		if v.ID < 4 {
			left(v, 50000)
			require.EqualValues(t, 7_000_000_500, v.IntervalNS)
		} else {
			require.Zero(t, *v.LeftNS)
			require.Equal(t, "SIGALRM", v.Signal, "the default")
		}
	}
	require.ElementsMatch(t, want, got)
	signals := map[int]string{}
	for _, v := range byKind["posix"] {
		signals[v.ID] = v.Signal
		require.Equal(t, v.ID == 2, v.NotifyTID != 0)
		if v.ID == 3 {
			require.Equal(t, "CLOCK_PROCESS_CPUTIME_ID", v.Clock)
		}
	}
	require.Equal(t, map[int]string{0: "SIGUSR1", 1: "", 2: "SIGRTMIN+6", 3: "SIGUSR2", 4: "SIGALRM"}, signals)

	require.Len(t, byKind["timerfd"], 2)
	set, never := byKind["timerfd"][0], byKind["timerfd"][1]
	left(set, 60000)
	require.Equal(t, []any{"CLOCK_BOOTTIME", int64(5e9)}, []any{set.Clock, set.IntervalNS})
	require.Equal(t, []any{"CLOCK_MONOTONIC", int64(0)}, []any{never.Clock, *never.LeftNS})
	info, err := vm.Exec(t.Context(), "cat", fmt.Sprintf("/proc/%d/fdinfo/%d", pid, set.ID))
	require.NoError(t, err)
	require.Contains(t, string(info), "clockid: 7\nticks: 0\n")

	all := ovmJSON[[]timer](t, "-g", guest, "timers")
	mine := 0
	for _, v := range all {
		if v.PID == set.PID {
			mine++
		}
	}
	require.Equal(t, 9, mine)
	text := string(ovm(t, "-g", guest, "timers"))
	require.Regexp(t, fmt.Sprintf(`(?m)^%d +python3 +posix +2 +CLOCK_REALTIME +\d+h.* +7\.0000005s +SIGRTMIN\+6 to thread %d$`, pid, pid), text)
}
