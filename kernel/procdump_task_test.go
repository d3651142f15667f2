package kernel_test

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/kernel/paging"
)

// procThread is what the guest says of one thread.
type procThread struct {
	Stat     string `json:"stat"`
	Status   string `json:"status"`
	Comm     string `json:"comm"`
	Children string `json:"children"`
}

// afterComm returns the fields of /proc/PID/stat from the state on, the third.
func afterComm(stat string) []string {
	return strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
}

// compareThreads compares the threads of a process, one by one.
func compareThreads(d differences, at func(string) string, t *kernel.Task, p *procTask) {
	if len(p.Threads) == 0 {
		return
	}
	got := map[kernel.PID]bool{}
	for u, err := range t.Threads() {
		if err != nil {
			d.add("%s: %v", at("threads"), err)
			return
		}
		got[u.PID] = true
		want := p.Threads[u.PID]
		if want == nil || want.Stat == "" {
			d.add("%s: the guest has it not", at(fmt.Sprintf("thread %d", u.PID)))
			continue
		}
		at := func(what string) string { return at(fmt.Sprintf("thread %d %s", u.PID, what)) }
		if name := strings.TrimSuffix(want.Comm, "\n"); !u.IsKernelThread() || !strings.HasPrefix(name, latin1(u.Comm)) {
			d.equal(at("comm"), latin1(u.Comm), name) // the guest knows more of kernel threads
		}
		d.equal(at("state"), string(u.StateChar()), afterComm(want.Stat)[0])
		d.equal(at("Tgid"), u.TGID, field(want.Status, "Tgid"))
		var nspid []string
		all, err := u.NSPIDs()
		if err != nil {
			d.add("%s: %v", at("NSpid"), err)
		}
		for _, n := range all {
			nspid = append(nspid, fmt.Sprint(n.PID))
		}
		d.equal(at("NSpid"), strings.Join(nspid, " "), field(want.Status, "NSpid"))
	}
	for tid := range p.Threads {
		if !got[tid] {
			d.add("%s: not found", at(fmt.Sprintf("thread %d", tid)))
		}
	}
}

// compareTree compares a process's place among the others.
func compareTree(d differences, at func(string) string, t *kernel.Task, p *procTask) {
	f := afterComm(p.Stat)
	for i, get := range []func() (kernel.PID, error){t.PPID, t.PGID, t.SID} {
		what := at([]string{"ppid", "pgrp", "session"}[i])
		if v, err := get(); err != nil {
			d.add("%s: %v", what, err)
		} else {
			d.equal(what, v, f[1+i])
		}
	}
	if t.ExitState != 0 || p.Threads == nil {
		return
	}
	var got, want []int
	for c, err := range t.Children() {
		if err != nil {
			d.add("%s: %v", at("children"), err)
			return
		}
		got = append(got, int(c.PID))
	}
	for _, th := range p.Threads {
		for _, s := range strings.Fields(th.Children) {
			n, _ := strconv.Atoi(s)
			want = append(want, n)
		}
	}
	sort.Ints(got)
	sort.Ints(want)
	d.equal(at("children"), got, want)
}

// compareSignals compares what each thread blocks, ignores, catches, has pending.
func compareSignals(d differences, at func(string) string, t *kernel.Task, p *procTask) {
	if len(p.Threads) == 0 {
		return
	}
	for u, err := range t.Threads() {
		if err != nil {
			d.add("%s: %v", at("threads"), err)
			return
		}
		want := p.Threads[u.PID]
		if want == nil {
			continue // told elsewhere
		}
		at := func(what string) string { return at(fmt.Sprintf("thread %d %s", u.PID, what)) }
		set := func(name string, v uint64) { d.equal(at(name), fmt.Sprintf("%016x", v), field(want.Status, name)) }
		masks, err := u.SigMasks()
		if err != nil {
			d.add("%s: %v", at("masks"), err)
			continue
		}
		set("SigBlk", masks.Blocked)
		for name, pending := range map[string]func() ([]kernel.PendingSignal, error){"SigPnd": u.PendingThread, "ShdPnd": u.PendingProcess} {
			all, err := pending()
			if err != nil {
				d.add("%s: %v", at(name), err)
			}
			var v uint64
			for _, s := range all {
				v |= 1 << (s.Signo - 1)
			}
			set(name, v)
		}
		actions, err := u.SigActions()
		if err != nil {
			d.add("%s: %v", at("actions"), err)
			continue
		}
		var ignored, caught uint64
		for i, a := range actions {
			switch a.Handler {
			case 0:
			case 1:
				ignored |= 1 << i
			default:
				caught |= 1 << i
			}
		}
		set("SigIgn", ignored)
		set("SigCgt", caught)
	}
}

// compareTimers compares the POSIX timers of a process.
func compareTimers(d differences, at func(string) string, t *kernel.Task, p *procTask) {
	now, err := t.Kernel().Clocks()
	if err != nil {
		d.add("%s: %v", at("clocks"), err)
		return
	}
	all, err := t.PosixTimers(now)
	if err != nil {
		d.add("%s: %v", at("timers"), err)
		return
	}
	slices.SortFunc(all, func(a, b kernel.PosixTimer) int { return int(a.ID - b.ID) })
	var got string
	for _, tm := range all {
		if tm.Notify > 1 { // not SIGEV_SIGNAL or SIGEV_NONE: none in this guest
			d.add("%s: timer %d notifies by %d", at("timers"), tm.ID, tm.Notify)
			continue
		}
		got += fmt.Sprintf("ID: %d\nsignal: %d/%016x\nnotify: %s/pid.%d\nClockID: %d\n",
			tm.ID, tm.Signo, tm.SigValue, []string{"signal", "none"}[tm.Notify], t.TGID, tm.Clock)
	}
	d.equal(at("timers"), strings.TrimSpace(got), sortTimers(p.Timers))
}

// sortTimers orders the timers of /proc/PID/timers, four lines each.
func sortTimers(text string) string {
	blocks := slices.Collect(slices.Chunk(slices.Collect(strings.Lines(text)), 4))
	sort.Slice(blocks, func(i, j int) bool { return blocks[i][0] < blocks[j][0] })
	return strings.TrimSpace(strings.Join(slices.Concat(blocks...), ""))
}

// checkTimers looks at what /proc does not tell of the zoo's timers.
func checkTimers(t *testing.T, z *zoo) {
	environ("timers")(t, z)
	task, err := z.k.Task(z.pids["timers"])
	require.NoError(t, err)
	now, err := z.k.Clocks()
	require.NoError(t, err)
	real, virt, prof, err := task.ITimers(now)
	require.NoError(t, err)
	require.Equal(t, 5500*time.Millisecond, real.Interval)
	require.Greater(t, real.Value, 10*time.Hour)
	require.LessOrEqual(t, real.Value, 40000*time.Second)
	require.Zero(t, virt)
	require.Equal(t, 2*time.Second, prof.Interval)
	require.Greater(t, prof.Value, 49*time.Minute)
	all, err := task.PosixTimers(now)
	require.NoError(t, err)
	require.Len(t, all, 4)
	for _, tm := range all {
		require.Empty(t, tm.Unsupported)
		require.Equal(t, 7*time.Second+500, tm.Interval)
		require.Greater(t, tm.Value, 13*time.Hour)
		require.LessOrEqual(t, tm.Value, 50000*time.Second)
	}
}

// checkOpen compares what was found of the kernel with what the guest says of it.
func checkOpen(t *testing.T, z *zoo) {
	sh := func(command string) string {
		out, err := z.vm.Exec(t.Context(), "sh", "-c", command)
		require.NoError(t, err)
		return strings.TrimSuffix(string(out), "\n")
	}
	g := z.k.Guest()
	require.Equal(t, sh("uname -r"), z.k.Release())
	require.Equal(t, sh("cat /proc/version"), g.Banner)
	fiveLevels := sh("grep -c -w la57 /proc/cpuinfo || :") != "0" // or an arm64 with 52 bits
	if g.Arch != paging.X86_64 {
		fiveLevels = strings.HasPrefix(z.vm.Config().CPU, "max")
	}
	require.Equal(t, fiveLevels, g.Levels == 5)
	require.Len(t, g.BTF, func() int { n, _ := strconv.Atoi(sh("wc -c < /sys/kernel/btf/vmlinux")); return n }())

	// The kernel's own list: modules and BPF programs have a fourth field.
	var want []string
	for line := range strings.Lines(sh("cat /proc/kallsyms")) {
		if line = strings.TrimSuffix(line, "\n"); !strings.HasSuffix(line, "]") {
			want = append(want, line)
		}
	}
	var got []string
	for s := range g.Symbols.All() {
		got = append(got, fmt.Sprintf("%016x %c %s", s.Addr, s.Type, s.Name))
	}
	require.Greater(t, len(want), 30_000)
	if !slices.ContainsFunc(want, func(line string) bool { return strings.HasSuffix(line, " init_task") }) {
		// The guest lists functions only; variables that it exports were found elsewhere.
		known := map[string]bool{}
		for _, line := range want {
			known[line] = true
		}
		got = slices.DeleteFunc(got, func(line string) bool { return !known[line] })
	}
	require.True(t, slices.Equal(want, got), "symbols differ from /proc/kallsyms")
}
