package kernel_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/kernel/paging"
)

// schedDump is what testdata/scheddump.py, run in a guest, says of it. Strings are
// Latin-1: one rune a byte.
type schedDump struct {
	Tasks   map[kernel.PID]*schedTask
	NS      map[string]nsFacts                      // by text of the link
	Sys     map[string]string                       // files of /proc
	Cgroups map[string]map[string]map[string]string // mount point, path, file
}

type schedTask struct {
	PID       kernel.PID
	NS        map[string]string
	Stack     string
	Sched     string
	Stat      string
	Schedstat string
	Status    string
	Comm      string
	Cgroup    string
	Mountinfo string
	UIDMap    string `json:"uid_map"`
	GIDMap    string `json:"gid_map"`
	TimeNS    string `json:"timens_offsets"`
}

type nsFacts struct {
	UserNS, Parent uint32
	Owner          *uint32
}

func parseSchedDump(b []byte) (*schedDump, error) {
	d := &schedDump{}
	return d, json.Unmarshal(b, d)
}

// statFields returns the fields of /proc/PID/stat, the first being the state (3).
func statFields(stat string) []string {
	return strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
}

// compareStack compares the kernel stack of a task, frame by frame.
func compareStack(d differences, t *kernel.Task, p *schedTask) (frames int) {
	at := fmt.Sprintf("thread %d (%s): stack", t.PID, t.Comm)
	s, err := t.KernelStack()
	if t.ExitState != 0 && errors.Is(err, kernel.ErrNoTask) {
		d.equal(at, "", p.Stack)
		return 0
	}
	if err != nil {
		d.add("%s: %v", at, err)
		return 0
	}
	if s.Err != nil {
		d.add("%s: ends early: %v", at, s.Err)
	}
	var got []string
	for _, f := range s.Blocked() {
		got = append(got, "[<0>] "+f.String()+"\n")
		if !f.Reliable {
			d.add("%s: %s is not reliable", at, f)
		}
	}
	d.equal(at, strings.Join(got, ""), p.Stack)
	return len(got)
}

// compareSched compares what the scheduler knows of a task.
func compareSched(d differences, t *kernel.Task, p *schedTask) {
	at := func(what string) string { return fmt.Sprintf("thread %d (%s): %s", t.PID, t.Comm, what) }
	s, err := t.Sched()
	if err != nil {
		d.add("%s: %v", at("sched"), err)
		return
	}
	f := statFields(p.Stat)
	d.equal(at("priority"), s.StatPriority(), f[18-3])
	d.equal(at("nice"), s.Nice(), f[19-3])
	d.equal(at("processor"), t.CPU, f[39-3])
	d.equal(at("rt_priority"), s.RTPriority, f[40-3])
	d.equal(at("policy"), s.Policy, f[41-3])
	if t.ExitState != 0 {
		return
	}
	split := func(ns uint64) string { // kernel/sched/debug.c:SPLIT_NS
		high, low := int64(ns)/1000000, int64(ns)%1000000
		return fmt.Sprintf("%d.%06d", high, max(low, -low))
	}
	for _, l := range []struct {
		name string
		got  string
	}{
		{"se.exec_start", split(s.ExecStart)},
		{"se.vruntime", split(s.VRuntime)},
		{"se.sum_exec_runtime", split(s.SumExecRuntime)},
		{"se.nr_migrations", fmt.Sprint(s.NrMigrations)},
		{"nr_switches", fmt.Sprint(t.NVCSW + t.NIVCSW)},
		{"nr_voluntary_switches", fmt.Sprint(t.NVCSW)},
		{"se.load.weight", fmt.Sprint(s.Weight)},
		{"se.slice", fmt.Sprint(s.Slice)},
		{"policy", fmt.Sprint(s.Policy)},
		{"prio", fmt.Sprint(s.Prio)},
	} {
		if want, ok := schedLine(p.Sched, l.name); ok {
			d.equal(at(l.name), l.got, want)
		}
	}
	if w := strings.Fields(p.Schedstat); len(w) == 3 {
		d.equal(at("schedstat"), fmt.Sprint(s.SumExecRuntime, s.RunDelay, s.PCount), strings.Join(w, " "))
	}
}

// schedLine returns a line of /proc/PID/sched.
func schedLine(text, name string) (string, bool) {
	for line := range strings.SplitSeq(text, "\n") {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v), true
		}
	}
	return "", false
}

// atRest says whether a task did nothing between two dumps: then every word of it
// can be compared.
func atRest(a, b *schedTask) bool {
	if a == nil || b == nil || a.Stat == "" || b.Stat == "" || a.Sched == "" {
		return false
	}
	f := statFields(a.Stat)[0]
	n1, _ := schedLine(a.Sched, "nr_switches")
	n2, _ := schedLine(b.Sched, "nr_switches")
	return f != "R" && n1 == n2 && a.Stack == b.Stack
}

func number(s string) int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// compareKernelStat compares the counters of the machine with what the guest said
// before and after.
func compareKernelStat(d differences, k *kernel.Kernel, before, after *schedDump) {
	line := func(dump *schedDump, name string) []string {
		for l := range strings.SplitSeq(dump.Sys["stat.before"], "\n") {
			if f := strings.Fields(l); len(f) > 1 && f[0] == name {
				return f[1:]
			}
		}
		return nil
	}
	between := func(what string, got int64, low, high string) {
		if number(low) > got || got > number(high) {
			d.add("%s: got %d, the guest says %s and later %s", what, got, low, high)
		}
	}
	s, err := k.KernelStat()
	noForks := k.Arch() == paging.ARM64 && errors.Is(err, kernel.ErrNoSymbol) // it has those of functions only
	if err != nil && !noForks {
		d.add("stat: %v", err)
	}
	between("ctxt", int64(s.ContextSwitches), line(before, "ctxt")[0], line(after, "ctxt")[0])
	if noForks {
		d.equal("processes", s.Forks, 0)
	} else {
		between("processes", int64(s.Forks), line(before, "processes")[0], line(after, "processes")[0])
	}
	d.equal("btime", s.BootTime.Unix(), line(before, "btime")[0])
	seconds := func(dump *schedDump) string { return strings.Split(dump.Sys["uptime"], ".")[0] }
	between("uptime", int64(s.Uptime.Seconds()), seconds(before), seconds(after))
	for r, err := range k.RunQueues() {
		if err != nil {
			d.add("run queue: %v", err)
			continue
		}
		c, err := k.CPUTimes(r.CPU)
		if err != nil {
			d.add("CPU times: %v", err)
		}
		name := fmt.Sprintf("cpu%d", r.CPU)
		for i, got := range []time.Duration{
			c.User, c.Nice, c.System, c.Idle, c.IOWait, c.IRQ, c.SoftIRQ, c.Steal, c.Guest, c.GuestNice,
		} {
			between(fmt.Sprintf("%s field %d", name, i+1), int64(got/(10*time.Millisecond)), line(before, name)[i], line(after, name)[i])
		}
	}
	l, err := k.LoadAvg()
	if err != nil {
		d.add("loadavg: %v", err)
	}
	b, a := strings.Fields(before.Sys["loadavg"]), strings.Fields(after.Sys["loadavg.before"])
	for i, got := range l.Load {
		if s := fmt.Sprintf("%.2f", got); s != b[i] && s != a[i] && !betweenFloats(b[i], got, a[i]) {
			d.add("load average %d: got %s, the guest says %s and later %s", i, s, b[i], a[i])
		}
	}
	between("last pid", int64(l.LastPID), b[4], a[4])
	_, threads, _ := strings.Cut(b[3], "/")
	if n := number(threads); int64(l.Threads) < n-8 || int64(l.Threads) > n+8 {
		d.add("threads: got %d, the guest says %s", l.Threads, threads)
	}
}

// betweenFloats says whether a load average lies between those that the guest said
// before and after, or little beside: on a slow machine it is computed several times
// meanwhile, and may have been higher or lower in between.
func betweenFloats(low string, v float64, high string) bool {
	const slack = 0.5
	l, _ := strconv.ParseFloat(low, 64)
	h, _ := strconv.ParseFloat(high, 64)
	return min(l, h)-slack <= v && v <= max(l, h)+slack
}

// compareMountinfo compares whole lines of mountinfo. File systems whose own options
// are not known are compared without them.
func compareMountinfo(d differences, t *kernel.Task, p *schedTask) (complete int) {
	at := fmt.Sprintf("pid %d (%s): mountinfo", t.PID, t.Comm)
	var got, want []string
	partial := map[string]bool{}
	for m, err := range t.MountInfos() {
		if err != nil {
			d.add("%s: %v", at, err)
			return 0
		}
		line := latin1(m.String())
		if m.SuperComplete {
			complete++
		} else {
			partial[strings.Fields(line)[0]] = true
			line = line[:strings.LastIndexByte(line, ' ')]
		}
		got = append(got, line)
	}
	for line := range strings.Lines(p.Mountinfo) {
		line = strings.TrimSuffix(line, "\n")
		if partial[strings.Fields(line)[0]] {
			line = line[:strings.LastIndexByte(line, ' ')]
		}
		want = append(want, line)
	}
	d.equal(at, strings.Join(got, "\n"), strings.Join(want, "\n"))
	return complete
}

// compareNamespaces compares owners, parents and inhabitants of all namespaces that
// the guest knows of.
func compareNamespaces(d differences, k *kernel.Kernel, dump *schedDump) (found int) {
	all, err := k.NamespaceList()
	if err != nil {
		d.add("namespaces: %v", err)
	}
	byName := map[string]*kernel.NamespaceInfo{}
	for _, n := range all {
		byName[n.String()] = n
	}
	for name, want := range dump.NS {
		n := byName[name]
		if n == nil {
			d.add("%s was not found", name)
			continue
		}
		found++
		d.equal(name+" owner", n.Owner, want.UserNS)
		d.equal(name+" parent", n.Parent, want.Parent)
		if want.Owner != nil && n.Kind == "user" {
			u, err := k.UserNSAt(n.Addr)
			if err != nil {
				d.add("%s: %v", name, err)
				continue
			}
			d.equal(name+" owner uid", u.Owner, *want.Owner)
		}
	}
	for tid, p := range dump.Tasks {
		for kind, link := range p.NS {
			if link == "" || strings.HasSuffix(kind, "_for_children") || byName[link] == nil {
				continue
			}
			if !slices.Contains(byName[link].Tasks, tid) && p.Comm != "agent\n" && !strings.HasPrefix(p.Comm, "kworker") {
				d.add("%s: thread %d is missing", link, tid)
			}
		}
	}
	return found
}
