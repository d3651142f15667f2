package kernel_test

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/ovmigrate/ovmigrate/kernel"
)

func compareCgroup(d differences, at func(string) string, t *kernel.Task, p *procTask) {
	all, err := t.CgroupMemberships()
	if err != nil {
		d.add("%s: %v", at("cgroup"), err)
		return
	}
	var got string
	for _, m := range all {
		got += latin1(m.String()) + "\n"
	}
	d.equal(at("cgroup"), got, p.Cgroup)
	v2, err := t.Cgroup()
	if err != nil {
		d.add("%s: %v", at("cgroup v2"), err)
		return
	}
	d.equal(at("cgroup v2"), latin1(v2.String())+"\n", p.Cgroup)
}

func compareSeccomp(d differences, at func(string) string, t *kernel.Task, p *procTask) {
	s, err := t.Seccomp()
	if err != nil {
		d.add("%s: %v", at("seccomp"), err)
		return
	}
	d.equal(at("Seccomp"), s.Mode, field(p.Status, "Seccomp"))
	d.equal(at("Seccomp_filters"), len(s.Filters), field(p.Status, "Seccomp_filters"))
	for _, f := range s.Filters {
		if len(f.BPF) == 0 || len(f.BPF)%8 != 0 {
			d.add("%s: program of %d bytes", at("seccomp"), len(f.BPF))
		}
	}
}

// compareCgroupFiles compares the settings of a task's group and those above it.
func compareCgroupFiles(d differences, at func(string) string, t *kernel.Task, dump *procDump) {
	c, err := t.Cgroup()
	if err != nil {
		d.add("%s: %v", at("cgroup"), err)
		return
	}
	for g := c.Cgroup; g != nil; {
		path, err := g.Path()
		if err != nil {
			d.add("%s: %v", at("cgroup path"), err)
			return
		}
		files := dump.Cgroups[latin1(path)]
		if files == nil {
			d.add("%s: the guest has no %q", at("cgroup"), path)
		}
		compareLimits(d, path, g, files)
		if g, err = g.ParentGroup(); err != nil {
			d.add("%s: %v", at("parent of cgroup"), err)
			return
		}
	}
}

// compareLimits compares the limits of a cgroup with the guest's own files.
func compareLimits(d differences, path string, g *kernel.Cgroup, files map[string]string) {
	at := func(file string) string { return "cgroup " + path + ": " + file }
	limit := func(v uint64) string {
		if v == kernel.NoLimit {
			return "max"
		}
		return strconv.FormatUint(v, 10)
	}
	check := func(file string, got any) {
		if want, ok := files[file]; ok {
			d.equal(at(file), got, strings.TrimSpace(want))
		}
	}
	flag := map[bool]int{true: 1}
	check("cgroup.freeze", flag[g.Freeze])
	check("cgroup.max.depth", strings.Replace(fmt.Sprint(g.MaxDepth), "2147483647", "max", 1))
	check("cgroup.max.descendants", strings.Replace(fmt.Sprint(g.MaxDescendants), "2147483647", "max", 1))
	names, err := g.Controllers()
	if err != nil {
		d.add("%s: %v", at("cgroup.subtree_control"), err)
	}
	check("cgroup.subtree_control", strings.Join(names, " "))
	if m, err := g.Memory(); err != nil {
		d.add("%s: %v", at("memory"), err)
	} else if m == nil {
		d.equal(at("memory.max"), "absent", absent(files, "memory.max"))
	} else {
		check("memory.min", limit(m.Min))
		check("memory.low", limit(m.Low))
		check("memory.high", limit(m.High))
		check("memory.max", limit(m.Max))
		check("memory.swap.max", limit(m.SwapMax))
		check("memory.swap.high", limit(m.SwapHigh))
		check("memory.oom.group", flag[m.OOMGroup])
	}
	if p, err := g.CPU(); err != nil {
		d.add("%s: %v", at("cpu"), err)
	} else if p == nil {
		d.equal(at("cpu.max"), "absent", absent(files, "cpu.max"))
	} else {
		check("cpu.max", limit(p.Quota)+" "+limit(p.Period))
		check("cpu.max.burst", limit(p.Burst))
		check("cpu.idle", flag[p.Idle])
		if !p.Idle {
			check("cpu.weight", p.Weight)
		}
	}
	if p, err := g.PIDs(); err != nil {
		d.add("%s: %v", at("pids"), err)
	} else if p == nil {
		d.equal(at("pids.max"), "absent", absent(files, "pids.max"))
	} else {
		check("pids.max", limit(p.Max))
		check("pids.current", limit(p.Current))
	}
}

func absent(files map[string]string, name string) string {
	if v, ok := files[name]; ok {
		return v
	}
	return "absent"
}
