package kernel_test

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// compareHierarchies compares all groups of the hierarchies that the guest has
// mounted, and their settings, with the guest's own files. It returns the number of
// files compared.
func compareHierarchies(d differences, k *kernel.Kernel, dump, later *schedDump) (compared int) {
	mounted := map[string]string{} // options of the mounted file system -> mount point
	for line := range strings.Lines(dump.Tasks[1].Mountinfo) {
		f := strings.Fields(line)
		if i := slices.Index(f, "-"); f[i+1] == "cgroup2" || f[i+1] == "cgroup" {
			mounted[strings.TrimPrefix(f[i+3], "rw,")] = f[4]
		}
	}
	seen := map[string]bool{}
	for h, err := range k.CgroupHierarchies() {
		if err != nil {
			d.add("hierarchies: %v", err)
			return compared
		}
		var at string
		for options, point := range mounted {
			if names := strings.Join(h.Controllers, ","); h.IsV2() && strings.Contains(options, "nsdelegate") ||
				!h.IsV2() && (options == names || options == "xattr,name="+h.Name || options == "name="+h.Name) {
				at = point
			}
		}
		if at == "" {
			d.add("hierarchy %d (%v): the guest has it not: %v", h.ID, h.Controllers, mounted)
			continue
		}
		seen[at] = true
		groups := map[string]bool{}
		for g, err := range h.Root.Subtree() {
			if err != nil {
				d.add("%s: %v", at, err)
				continue
			}
			path, err := g.Path()
			if err != nil {
				d.add("%s: %v", at, err)
				continue
			}
			groups[latin1(path)] = true
			compared += compareGroup(d, at, path, g, dump.Cgroups[at][latin1(path)], later.Cgroups[at][latin1(path)], h.IsV2())
		}
		for path := range dump.Cgroups[at] {
			if !groups[path] {
				d.add("%s: %s not found", at, path)
			}
		}
	}
	for _, point := range mounted {
		if !seen[point] {
			d.add("the hierarchy at %s was not found", point)
		}
	}
	return compared
}

// compareGroup compares the files of one group that have not changed between two
// dumps.
func compareGroup(d differences, mount, path string, g *kernel.Cgroup, files, later map[string]string, v2 bool) (n int) {
	got, err := groupFiles(g, v2)
	if err != nil {
		d.add("%s%s: %v", mount, path, err)
	}
	for name, value := range got {
		if want, ok := files[name]; ok && later[name] == want {
			n++
			if name == "cgroup.procs" || name == "tasks" {
				want = sortedLines(want)
			}
			d.equal(mount+path+" "+name, value, strings.TrimSpace(want))
		}
	}
	return n
}

func sortedLines(s string) string {
	l := strings.Fields(s)
	slices.Sort(l)
	return strings.Join(l, " ")
}

// groupFiles is what files of a group should hold, by name.
func groupFiles(g *kernel.Cgroup, v2 bool) (map[string]string, error) {
	f := map[string]string{}
	limit := func(v uint64) string {
		if v == kernel.NoLimit {
			return "max"
		}
		return strconv.FormatUint(v, 10)
	}
	// v1 has numbers for "no limit".
	old := func(v, none uint64) string {
		if v == kernel.NoLimit {
			v = none
		}
		return strconv.FormatInt(int64(v), 10)
	}
	var errs []error
	var tasks, procs []string
	for t, err := range g.Tasks() {
		if err != nil {
			errs = append(errs, err)
			break
		}
		tasks = append(tasks, fmt.Sprint(t.PID))
		if t.PID == t.TGID {
			procs = append(procs, fmt.Sprint(t.PID))
		}
	}
	slices.Sort(tasks)
	slices.Sort(procs)
	f["cgroup.procs"] = strings.Join(procs, " ")
	if !v2 {
		f["tasks"] = strings.Join(tasks, " ")
	}
	flag := map[bool]string{true: "1", false: "0"}
	f["cgroup.freeze"] = flag[g.Freeze]
	m, err := g.Memory()
	if errs = append(errs, err); m != nil {
		f["memory.min"], f["memory.low"], f["memory.high"], f["memory.max"] = limit(m.Min), limit(m.Low), limit(m.High), limit(m.Max)
		f["memory.swap.max"], f["memory.swap.high"] = limit(m.SwapMax), limit(m.SwapHigh)
		f["memory.current"], f["memory.swap.current"] = fmt.Sprint(m.Current), fmt.Sprint(m.SwapCurrent)
		f["memory.limit_in_bytes"] = old(m.Max, 9223372036854771712)
		if path, err := g.Path(); err == nil && path != "/" { // of the root it is computed otherwise
			f["memory.usage_in_bytes"] = fmt.Sprint(m.Current)
		}
	}
	c, err := g.CPU()
	if errs = append(errs, err); c != nil {
		f["cpu.max"] = limit(c.Quota) + " " + limit(c.Period)
		f["cpu.idle"] = flag[c.Idle]
		if !c.Idle {
			f["cpu.weight"] = fmt.Sprint(c.Weight)
		}
		f["cpu.shares"], f["cpu.cfs_quota_us"], f["cpu.cfs_period_us"] = fmt.Sprint(c.Shares), old(c.Quota, kernel.NoLimit), fmt.Sprint(c.Period)
	}
	p, err := g.PIDs()
	if errs = append(errs, err); p != nil {
		f["pids.max"], f["pids.current"] = limit(p.Max), fmt.Sprint(p.Current)
	}
	s, err := g.Cpuset()
	if errs = append(errs, err); s != nil {
		f["cpuset.cpus"], f["cpuset.mems"] = s.CPUs.String(), s.Mems.String()
		f["cpuset.cpus.effective"], f["cpuset.mems.effective"] = s.EffectiveCPUs.String(), s.EffectiveMems.String()
		f["cpuset.effective_cpus"], f["cpuset.effective_mems"] = s.EffectiveCPUs.String(), s.EffectiveMems.String()
	}
	h, err := g.Hugetlb()
	errs = append(errs, err)
	for _, l := range h {
		f[l.FileName()+".max"], f[l.FileName()+".current"] = limit(l.Max), fmt.Sprint(l.Current)
		f[l.FileName()+".rsvd.max"], f[l.FileName()+".rsvd.current"] = limit(l.RsvdMax), fmt.Sprint(l.RsvdCur)
	}
	w, err := g.IOWeight()
	if errors.Is(err, kernel.ErrNoSymbol) { // of a variable, of which arm64 keeps no names before 6.2
		err = nil
	}
	if errs = append(errs, err); w != 0 {
		f["io.weight"] = fmt.Sprintf("default %d", w)
	}
	state, err := g.FreezerState()
	if errs = append(errs, err); state != "" {
		f["freezer.state"] = state
	}
	_, err = g.DevicePrograms()
	return f, errors.Join(append(errs, err)...)
}
