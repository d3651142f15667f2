package checkpoint

import (
	"strconv"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/cgroup"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// Sets of the cgroup image: the restorer's place, and the process's.
const (
	rootCgSet    = 1
	processCgSet = 2
)

// cgroups encodes the process's control group and its settings. A process in the
// root group has none, and is restored into the group of the restorer.
func (c *collector) cgroups() error {
	all, err := c.leader.CgroupMemberships()
	if err != nil {
		return err
	}
	var v2 *kernel.CgroupMembership
	for _, m := range all {
		switch {
		case m.HierarchyID == 0:
			v2 = m
		case m.Path != "/":
			c.issues.approximate("cgroup "+m.Path, "in the v1 hierarchy %s is not carried", strings.Join(m.Controllers, ","))
		}
	}
	if v2 == nil || v2.Path == "/" {
		return nil
	}
	if v2.Deleted {
		c.issues.approximate("cgroup "+v2.Path, "has been removed; restored into the restorer's")
		return nil
	}
	dir, err := cgroupDir(v2.Cgroup, nil)
	if err != nil {
		return err
	}
	member := func(path string) []*cgroup.CgMemberEntry {
		return []*cgroup.CgMemberEntry{{Name: new(""), Path: &path}}
	}
	c.out.cgroup = &cgroup.CgroupEntry{
		Sets: []*cgroup.CgSetEntry{
			{Id: new(uint32(rootCgSet)), Ctls: member("/")},
			{Id: new(uint32(processCgSet)), Ctls: member(v2.Path)},
		},
		Controllers: []*cgroup.CgControllerEntry{{
			Cnames: []string{""}, Dirs: []*cgroup.CgroupDirEntry{dir}, IsThreaded: new(false),
		}},
	}
	c.cgSet = processCgSet
	return nil
}

// cgroupDir encodes a group with its settings, inside the groups above it up to
// the root, which needs no entry.
func cgroupDir(g *kernel.Cgroup, child *cgroup.CgroupDirEntry) (*cgroup.CgroupDirEntry, error) {
	path, err := g.Path()
	if err != nil {
		return nil, err
	}
	if path == "/" {
		return child, nil
	}
	props, err := cgroupProps(g)
	if err != nil {
		return nil, err
	}
	const dirMode = 0o755
	name := path[strings.LastIndexByte(path, '/')+1:]
	e := &cgroup.CgroupDirEntry{DirName: &name, Properties: props, DirPerms: cgroupPerms(dirMode)}
	if child != nil {
		e.Children = []*cgroup.CgroupDirEntry{child}
	}
	parent, err := g.ParentGroup()
	if err != nil || parent == nil {
		return e, err
	}
	return cgroupDir(parent, e)
}

func cgroupPerms(mode uint32) *cgroup.CgroupPerms {
	return &cgroup.CgroupPerms{Mode: &mode, Uid: new(uint32(0)), Gid: new(uint32(0))}
}

// cgroupProps are the settings that CRIU restores. What is at its default is left
// out, as the group that is made has it so already.
func cgroupProps(g *kernel.Cgroup) ([]*cgroup.CgroupPropEntry, error) {
	var props []*cgroup.CgroupPropEntry
	set := func(name, value string) {
		const fileMode = 0o644
		props = append(props, &cgroup.CgroupPropEntry{Name: &name, Value: &value, Perms: cgroupPerms(fileMode)})
	}
	below, err := g.Controllers()
	if err != nil {
		return nil, err
	}
	if len(below) > 0 {
		// CRIU 3.17.1 writes the value as it is, later ones put a sign before each
		// word if they know the file by its name, and stumble over what is there
		// already. By this name all of them write it as it is.
		set("./cgroup.subtree_control", "+"+strings.Join(below, " +"))
	}
	mem, err := g.Memory()
	if err != nil {
		return nil, err
	}
	if mem != nil {
		for _, m := range []struct {
			name  string
			value uint64
			def   uint64
		}{
			{"memory.max", mem.Max, kernel.NoLimit},
			{"memory.high", mem.High, kernel.NoLimit},
			{"memory.low", mem.Low, 0},
			{"memory.min", mem.Min, 0},
			{"memory.swap.max", mem.SwapMax, kernel.NoLimit},
		} {
			if m.value != m.def {
				set(m.name, limit(m.value))
			}
		}
	}
	cpu, err := g.CPU()
	if err != nil {
		return nil, err
	}
	if cpu != nil {
		const defaultWeight = 100
		if cpu.Weight != defaultWeight && !cpu.Idle {
			set("cpu.weight", strconv.FormatUint(cpu.Weight, 10))
		}
		if cpu.Quota != kernel.NoLimit {
			set("cpu.max", limit(cpu.Quota)+" "+strconv.FormatUint(cpu.Period, 10))
		}
	}
	pids, err := g.PIDs()
	if err != nil {
		return nil, err
	}
	if pids != nil && pids.Max != kernel.NoLimit {
		set("pids.max", limit(pids.Max))
	}
	return props, nil
}

func limit(v uint64) string {
	if v == kernel.NoLimit {
		return "max"
	}
	return strconv.FormatUint(v, 10)
}
