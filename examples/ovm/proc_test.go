package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

var (
	suites = []string{"bookworm", "trixie"}

	// procGuests are suites and kernels that TestProc looks at, the kernels only if all
	// are: package kernel's own tests compare the same with /proc.
	procGuests = append([]string{"bullseye-cloud", "sid-generic"}, suites...)
)

// ovm runs the program in this process and returns what it wrote to standard output.
func ovm(t *testing.T, args ...string) []byte {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(args, &stdout, &stderr)
	require.Zerof(t, code, "ovm %s: %s", strings.Join(args, " "), stderr.String())
	return stdout.Bytes()
}

// ovmJSON runs ovm with --json and decodes what it prints.
func ovmJSON[T any](t *testing.T, args ...string) (v T) {
	t.Helper()
	require.NoError(t, json.Unmarshal(ovm(t, append(args, "--json")...), &v))
	return v
}

// sharedGuest returns the guest of a suite that the tests here share, or a guest with
// a kernel of another, which only the test itself has.
func sharedGuest(t *testing.T, name string) *testvm.VM {
	t.Helper()
	if !slices.Contains(suites, name) {
		return testvm.Start(t, testvm.Config{Kernel: name, Memory: 1 << 30})
	}
	return testvm.StartShared(t, testvm.Config{Suite: name, Memory: 1 << 30})
}

var busy sync.Map // guests that are busy already

// busyGuest returns that guest with more than a hundred processes in it.
func busyGuest(t *testing.T, suite string) *testvm.VM {
	t.Helper()
	vm := sharedGuest(t, suite)
	if _, done := busy.LoadOrStore(vm, true); !done {
		out, err := vm.Exec(t.Context(), "/opt/ovm/busy.sh")
		require.NoError(t, err)
		t.Logf("busy.sh: %s", bytes.TrimSpace(out))
	}
	return vm
}

// procThread and procProcess are what testdata/procdump.py prints, one rune a byte.
// What could not be read is nil.
type procThread struct {
	Stat, Comm, Status, Cgroup *string
	NS                         map[string]*string
}

type procFD struct{ Link, Info *string }

type procProcess struct {
	Cmdline, Smaps *string
	FDs            map[string]procFD
	Threads        map[string]procThread
}

type procDump struct {
	// Agent is the process that ran the script: it has more files open meanwhile.
	Agent     int
	Processes map[string]procProcess
}

func dumpProc(t *testing.T, vm *testvm.VM) (d procDump) {
	t.Helper()
	out, err := vm.Exec(t.Context(), "python3", "/root/procdump.py")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(out, &d))
	return d
}

// facts are what somebody says about the guest: a value for each name.
type facts map[string]string

// threadKey begins the names of facts about a thread.
func threadKey(pid, tid any) string { return fmt.Sprintf("process %v thread %v ", pid, tid) }

// TestProc compares everything that ps, maps and fds print with what the guest's own
// /proc says, for every thread of a busy guest. The guest runs meanwhile: it is asked
// before and after, and ovm must say one of the two.
func TestProc(t *testing.T) {
	for _, name := range procGuests {
		if !slices.Contains(suites, name) && !testvm.AllKernels() {
			continue
		}
		t.Run(name, func(t *testing.T) {
			vm := busyGuest(t, name)
			put(t, vm, "testdata/procdump.py", "/root/procdump.py")

			// What differs must do so each time: threads of the kernel come and go.
			var differ map[string]string
			var processes []process
			before := dumpProc(t, vm)
			for range 3 {
				var ours facts
				ours, processes = ovmFacts(t, vm.RAMPath(), before)
				after := dumpProc(t, vm)
				differ = both(differ, compareFacts(t, ours, procFacts(before), procFacts(after)))
				if len(differ) == 0 {
					break
				}
				before = after
			}
			reportDifferences(t, differ)
			requireBusy(t, processes)
			vm.CheckKernel(t)
		})
	}
}

// ovmFacts is what ovm says of the processes that the guest has told of.
func ovmFacts(t *testing.T, guest string, told procDump) (facts, []process) {
	t.Helper()
	threads := ovmJSON[[]process](t, "-g", guest, "ps", "--threads")
	ours := facts{}
	psFacts(ours, threads)
	processes := ovmJSON[[]process](t, "-g", guest, "ps")
	require.Len(t, processes, leaders(threads), "ps lists the leaders of ps --threads")
	for _, p := range processes {
		if _, ok := told.Processes[fmt.Sprint(p.PID)]; ok {
			userFacts(t, ours, guest, p)
		}
	}
	// It has more files open while it runs the script, and runs now and then.
	for name := range ours {
		if aboutAgent(name, told.Agent) {
			delete(ours, name)
		}
	}
	return ours, processes
}

func aboutAgent(name string, agent int) bool {
	return strings.HasPrefix(name, fmt.Sprintf("process %d ", agent)) &&
		(strings.Contains(name, " fd ") || strings.HasSuffix(name, " state"))
}

// both returns what is in both maps; a nil map holds everything.
func both(a, b map[string]string) map[string]string {
	if a == nil {
		return b
	}
	c := map[string]string{}
	for k, v := range b {
		if _, ok := a[k]; ok {
			c[k] = v
		}
	}
	return c
}

func reportDifferences(t *testing.T, differ map[string]string) {
	t.Helper()
	names := slices.Sorted(maps.Keys(differ))
	for i, n := range names {
		if i == 60 {
			t.Errorf("… and %d more", len(names)-i)
			break
		}
		t.Errorf("%s: %s", n, differ[n])
	}
}

func leaders(threads []process) (n int) {
	for _, p := range threads {
		if p.PID == p.TID {
			n++
		}
	}
	return n
}

func requireBusy(t *testing.T, all []process) {
	t.Helper()
	user := 0
	names := map[string]bool{}
	for _, p := range all {
		names[p.Comm] = true
		if len(p.NS) > 0 && p.RSSPages > 0 {
			user++
		}
	}
	require.GreaterOrEqual(t, user, 100, "processes with memory")
	require.True(t, names["memcached"] && names["redis-server"], "memcached and redis run")
}

// compareFacts returns the facts that are neither what the guest said before nor
// after, nor a number in between. Facts about what came or went are left out.
func compareFacts(t *testing.T, ours, before, after facts) map[string]string {
	t.Helper()
	differ := map[string]string{}
	compared, moving := 0, 0
	for n, b := range before {
		a, ok := after[n]
		if !ok {
			continue
		}
		if a != b {
			moving++
		}
		switch got, ok := ours[n]; {
		case !ok:
			differ[n] = fmt.Sprintf("ovm does not say; the guest: %q", b)
		case got == b || got == a || between(b, got, a):
			compared++
		default:
			differ[n] = fmt.Sprintf("ovm %q, the guest %q", got, b)
		}
	}
	// The other way round.
	for n, got := range ours {
		_, b := before[n]
		_, a := after[n]
		if !a && !b {
			differ[n] = fmt.Sprintf("ovm %q, the guest nothing", got)
		}
	}
	t.Logf("%d facts equal, %d of them changed meanwhile", compared, moving)
	require.Greater(t, compared, 10000)
	require.Less(t, moving, compared/100, "the guest is not at rest: the comparison proves little")
	return differ
}

func between(low, v, high string) bool {
	l, err1 := strconv.ParseInt(low, 10, 64)
	n, err2 := strconv.ParseInt(v, 10, 64)
	h, err3 := strconv.ParseInt(high, 10, 64)
	return err1 == nil && err2 == nil && err3 == nil && l <= n && n <= h
}

// psFacts is what ps says.
func psFacts(f facts, all []process) {
	for _, p := range all {
		key := threadKey(p.PID, p.TID)
		f[key+"pid"] = fmt.Sprint(p.PID)
		f[key+"ppid"] = fmt.Sprint(p.PPID)
		f[key+"pgid"] = fmt.Sprint(p.PGID)
		f[key+"sid"] = fmt.Sprint(p.SID)
		f[key+"comm"] = p.Comm
		f[key+"state"] = p.State
		f[key+"uid"] = fmt.Sprint(p.UID)
		f[key+"gid"] = fmt.Sprint(p.GID)
		// The kernel counts in ticks of 10 ms there.
		f[key+"start"] = fmt.Sprint(p.StartNS / 10_000_000)
		f[key+"cgroup"] = p.Cgroup
		f[key+"rss"] = fmt.Sprint(p.RSSPages)
		for kind, inum := range p.NS {
			f[key+"ns "+kind] = fmt.Sprint(inum)
		}
		if p.PID == p.TID {
			f[key+"cmdline"] = strings.Join(p.Cmdline, "\x00")
		}
	}
}

// userFacts is what maps and fds say of a process.
func userFacts(t *testing.T, f facts, guest string, p process) {
	t.Helper()
	key := threadKey(p.PID, p.TID)
	var stdout, stderr bytes.Buffer
	if code := run([]string{"-g", guest, "maps", fmt.Sprint(p.PID), "--json"}, &stdout, &stderr); code == 0 {
		var all []mapping
		require.NoError(t, json.Unmarshal(stdout.Bytes(), &all))
		mapFacts(f, key, all)
	} else {
		require.Contains(t, stderr.String(), "has no user memory")
		require.Zero(t, p.RSSPages)
	}
	stdout.Reset()
	stderr.Reset()
	if code := run([]string{"-g", guest, "fds", fmt.Sprint(p.PID), "--json"}, &stdout, &stderr); code == 0 {
		var fds []descriptor
		require.NoError(t, json.Unmarshal(stdout.Bytes(), &fds))
		for _, d := range fds {
			k := fmt.Sprintf("%sfd %d ", key, d.FD)
			f[k+"link"] = d.Path
			f[k+"pos"] = fmt.Sprint(d.Pos)
			f[k+"flags"] = d.Flags
			f[k+"mnt_id"] = fmt.Sprint(d.MntID)
			f[k+"ino"] = fmt.Sprint(d.Inode)
		}
	} else {
		require.Contains(t, stderr.String(), "kernel thread")
	}
}

func mapFacts(f facts, key string, all []mapping) {
	for _, m := range all {
		k := fmt.Sprintf("%smap %s ", key, m.Start)
		f[k+"end"] = m.End.String()
		f[k+"perms"] = m.Perms
		f[k+"offset"] = m.Offset.String()
		f[k+"dev"] = m.Dev
		f[k+"inode"] = fmt.Sprint(m.Inode)
		f[k+"path"] = m.Path
		f[k+"flags"] = strings.Join(m.Flags, " ")
	}
}

// procFacts is what the guest says.
func procFacts(d procDump) facts {
	f := facts{}
	for pid, p := range d.Processes {
		for tid, th := range p.Threads {
			threadFacts(f, pid, tid, th)
		}
		key := threadKey(pid, pid)
		if p.Cmdline != nil {
			f[key+"cmdline"] = bytesOf(strings.TrimSuffix(*p.Cmdline, "\x00"))
		}
		if p.Smaps != nil {
			procMaps(f, key, *p.Smaps)
		}
		for n, fd := range p.FDs {
			if fd.Link == nil || fd.Info == nil {
				continue
			}
			k := key + "fd " + n + " "
			f[k+"link"] = bytesOf(*fd.Link)
			for _, name := range []string{"pos", "flags", "mnt_id", "ino"} {
				if v, ok := lineOf(*fd.Info, name); ok {
					f[k+name] = v
				}
			}
		}
	}
	for name := range f {
		if aboutAgent(name, d.Agent) {
			delete(f, name)
		}
	}
	return f
}

func threadFacts(f facts, pid, tid string, th procThread) {
	if th.Stat == nil || th.Comm == nil || th.Status == nil || th.Cgroup == nil {
		return // gone
	}
	key := threadKey(pid, tid)
	// The name in parentheses may hold anything.
	stat := strings.Fields((*th.Stat)[strings.LastIndexByte(*th.Stat, ')')+1:])
	f[key+"pid"] = pid
	f[key+"state"] = stat[0]
	f[key+"ppid"] = stat[1]
	f[key+"pgid"] = stat[2]
	f[key+"sid"] = stat[3]
	f[key+"start"] = stat[22-3]
	f[key+"rss"] = stat[24-3]
	f[key+"comm"] = bytesOf(strings.TrimSuffix(*th.Comm, "\n"))
	if v, ok := lineOf(*th.Status, "Uid"); ok {
		f[key+"uid"] = strings.Fields(v)[1]
	}
	if v, ok := lineOf(*th.Status, "Gid"); ok {
		f[key+"gid"] = strings.Fields(v)[1]
	}
	for _, line := range strings.Split(*th.Cgroup, "\n") {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			f[key+"cgroup"] = bytesOf(path)
		}
	}
	for kind, link := range th.NS {
		if link == nil {
			continue
		}
		_, inum, _ := strings.Cut(*link, ":[")
		f[key+"ns "+kind] = strings.TrimSuffix(inum, "]")
	}
}

// procMaps reads the first and the last line of each mapping in smaps.
func procMaps(f facts, key, smaps string) {
	k := ""
	for _, line := range strings.Split(strings.TrimSuffix(smaps, "\n"), "\n") {
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok {
			f[k+"flags"] = strings.Join(strings.Fields(flags), " ")
			continue
		}
		// start-end perms offset dev inode path; the path may hold spaces.
		head := strings.Fields(line)
		if len(head) < 5 {
			continue
		}
		start, end, _ := strings.Cut(head[0], "-")
		path := ""
		if at := strings.IndexAny(line, "/["); at >= 0 {
			path = line[at:]
		}
		k = fmt.Sprintf("%smap %s ", key, hexOf(start))
		f[k+"end"] = hexOf(end)
		f[k+"perms"] = head[1]
		f[k+"offset"] = hexOf(head[2])
		f[k+"dev"] = head[3]
		f[k+"inode"] = head[4]
		f[k+"path"] = bytesOf(path)
	}
}

// lineOf returns what stands behind "name:" in text.
func lineOf(text, name string) (string, bool) {
	for _, line := range strings.Split(text, "\n") {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v), true
		}
	}
	return "", false
}

func hexOf(s string) string {
	v, _ := strconv.ParseUint(s, 16, 64)
	return hex(v).String()
}

// bytesOf turns Latin-1 back into bytes, and those into what JSON makes of them.
func bytesOf(s string) string {
	b := make([]byte, 0, len(s))
	for _, r := range s {
		b = append(b, byte(r))
	}
	return strings.ToValidUTF8(string(b), "\ufffd")
}
