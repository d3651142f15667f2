package kernel_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/ovmigrate/ovmigrate/kernel"
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
		return fmt.Sprintf("%d.%06d", int64(ns)/1000000, int64(ns)%1000000)
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
