package kernel

import (
	"errors"
	"fmt"
	"iter"
	"slices"
)

// CgroupHierarchy is one tree of control groups: the unified one of cgroup v2, or one
// of cgroup v1.
type CgroupHierarchy struct {
	Root        *Cgroup
	ID          int      // the number in /proc/PID/cgroup; 0 is the unified hierarchy
	Controllers []string // names as of v1: of the controllers that are attached here
	Name        string   // of a v1 hierarchy, often "" or "systemd"

	kernfsRoot Addr
	flags      uint32
	release    string
}

// IsV2 says whether h is the unified hierarchy.
func (h *CgroupHierarchy) IsV2() bool { return h.ID == 0 }

type cgroupRootFields struct {
	KernfsRoot   Addr     `k:"kf_root"`
	HierarchyID  int32    `k:"hierarchy_id"`
	SubsysMask   uint32   `k:"subsys_mask"`
	Flags        uint32   `k:"flags"`
	Name         [64]byte `k:"name"`
	Cgrp         Addr     `k:"&cgrp"`
	ReleaseAgent Addr     `k:"&release_agent_path"`
}

var cgroupRootFieldsLayout = LayoutOf[cgroupRootFields]("cgroup_root")

// CgroupHierarchies yields the guest's trees of control groups, the unified one last.
// It is there even if nobody mounted it. Source: kernel/cgroup/cgroup.c:cgroup_roots.
func (k *Kernel) CgroupHierarchies() iter.Seq2[*CgroupHierarchy, error] {
	return func(yield func(*CgroupHierarchy, error) bool) {
		off, err := k.offsetOf("cgroup_root", "root_list")
		if err != nil {
			yield(nil, err)
			return
		}
		head, err := k.cgroupRoots(off)
		if err != nil {
			yield(nil, err)
			return
		}
		count := 0
		for node, err := range k.List(head) {
			if count++; err == nil && count > maxHierarchies {
				err = &PathError{Path: "cgroup_roots", Addr: head, Err: ErrLimit}
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(k.cgroupHierarchy(node - Addr(off))) {
				return
			}
		}
	}
}

// cgroupRoots returns the head of the list of hierarchies, which are linked off bytes
// behind their begin. arm64 kernels that keep no names of variables have it behind the
// unified one, which was the first and is the last.
func (k *Kernel) cgroupRoots(off int) (Addr, error) {
	head, err := k.Symbol("cgroup_roots")
	if !errors.Is(err, ErrNoSymbol) {
		return head, err
	}
	init, err := k.Symbol("init_task")
	if err != nil {
		return 0, err
	}
	t, err := k.TaskAt(init)
	if err != nil {
		return 0, err
	}
	m, err := t.Cgroup()
	if err != nil {
		return 0, err
	}
	return k.ReadAddr(m.Cgroup.RootAddr.Add(off))
}

func (k *Kernel) cgroupHierarchy(a Addr) (*CgroupHierarchy, error) {
	r, err := cgroupRootFieldsLayout.Load(k, a)
	if err != nil {
		return nil, err
	}
	h := &CgroupHierarchy{ID: int(r.HierarchyID), Name: cstring(r.Name[:]), kernfsRoot: r.KernfsRoot, flags: r.Flags}
	// The first hierarchy that there ever is is the unified one; its number is 0.
	if h.Root, err = k.CgroupAt(r.Cgrp); err != nil {
		return nil, err
	}
	if h.Controllers, err = k.controllerNames(h.Root.Subsys, r.SubsysMask, true); err != nil {
		return nil, err
	}
	h.release, err = k.CString(r.ReleaseAgent, 4096)
	return h, err
}

// Flags of hierarchies (CGRP_ROOT_*). Those of the second group moved in 6.0.
const (
	cgrpRootNoPrefix     = 1 << 1
	cgrpRootXattr        = 1 << 2
	cgrpRootNSDelegate   = 1 << 3
	cgrpRootFavorDynmods = 1 << 4 // before 6.0 cpuset_v2_mode

	cgrpRootCpusetV2Mode       = 1 << 16
	cgrpRootMemoryLocalEvents  = 1<<17 | 1<<5
	cgrpRootMemoryRecursive    = 1<<18 | 1<<6
	cgrpRootMemoryHugetlb      = 1 << 19
	cgrpRootPIDsLocalEvents    = 1 << 20
	cgrpCpusetCloneChildren    = 1 << 1 // CGRP_CPUSET_CLONE_CHILDREN of the root group
	cgroupRootFlagsMovedMarker = "cgroup_favor_dynmods"
)

// options is kernel/cgroup/cgroup.c:cgroup_show_options and
// kernel/cgroup/cgroup-v1.c:cgroup1_show_options.
func (h *CgroupHierarchy) options() (o []string, err error) {
	add := func(set bool, name string) {
		if set {
			o = append(o, name)
		}
	}
	moved := h.Root.k.types.HasFunc(cgroupRootFlagsMovedMarker)
	dynmods := moved && h.flags&cgrpRootFavorDynmods != 0
	if h.IsV2() {
		add(h.flags&cgrpRootNSDelegate != 0, "nsdelegate")
		add(dynmods, "favordynmods")
		add(h.flags&cgrpRootMemoryLocalEvents != 0, "memory_localevents")
		add(h.flags&cgrpRootMemoryRecursive != 0, "memory_recursiveprot")
		add(h.flags&cgrpRootMemoryHugetlb != 0, "memory_hugetlb_accounting")
		add(h.flags&cgrpRootPIDsLocalEvents != 0, "pids_localevents")
		return o, nil
	}
	o = append(o, h.Controllers...)
	add(h.flags&cgrpRootNoPrefix != 0, "noprefix")
	add(h.flags&cgrpRootXattr != 0, "xattr")
	add(h.flags&cgrpRootCpusetV2Mode != 0 || !moved && h.flags&cgrpRootFavorDynmods != 0, "cpuset_v2_mode")
	add(dynmods, "favordynmods")
	add(h.release != "", "release_agent="+escapeOctal(h.release, " \t\n\\,"))
	add(h.Root.Flags&cgrpCpusetCloneChildren != 0, "clone_children")
	add(h.Name != "", fmt.Sprintf("name=%s", escapeOctal(h.Name, " \t\n\\,")))
	return o, nil
}

type cgroupTree struct {
	Children  Addr `k:"&self.children"`
	CsetLinks Addr `k:"&cset_links"`
}

type cssSetTasks struct {
	Tasks   Addr `k:"&tasks"`
	MGTasks Addr `k:"&mg_tasks"` // being moved
}

type cgrpCsetLinkCset struct {
	Cset Addr `k:"cset"`
}

var (
	cgroupTreeLayout   = LayoutOf[cgroupTree]("cgroup")
	cssSetTasksLayout  = LayoutOf[cssSetTasks]("css_set")
	cgrpLinkCsetLayout = LayoutOf[cgrpCsetLinkCset]("cgrp_cset_link")
)

// Children yields the groups below c that exist, not those below them. Source:
// kernel/cgroup/cgroup.c:cgroup_for_each_live_child.
func (c *Cgroup) Children() iter.Seq2[*Cgroup, error] { return c.children(new(int)) }

// children is Children, which also counts what it looks at and gives up at maxWalk: groups
// that are removed are not yielded, however many of them the guest says there are.
func (c *Cgroup) children(steps *int) iter.Seq2[*Cgroup, error] {
	return func(yield func(*Cgroup, error) bool) {
		tree, err := cgroupTreeLayout.Load(c.k, c.Addr)
		if err != nil {
			yield(nil, err)
			return
		}
		off, err := c.k.offsetOf("cgroup", "self.sibling")
		if err != nil {
			yield(nil, err)
			return
		}
		for node, err := range c.k.List(tree.Children) {
			if *steps++; err == nil && *steps > maxWalk {
				err = &PathError{Path: "cgroup.self.children", Addr: c.Addr, Err: ErrLimit}
			}
			if err != nil {
				yield(nil, err)
				return
			}
			g, err := c.k.CgroupAt(node - Addr(off))
			switch {
			case err == nil && g.CSSFlags&cssOnline == 0:
				continue // removed, and kept by something that refers to it
			case err == nil && g.Level != c.Level+1:
				err = corrupt(g.Addr, "cgroup", "level %d below level %d", g.Level, c.Level)
			}
			if !yield(g, err) {
				return
			}
		}
	}
}

// Subtree yields c and all groups below it that exist, each before those below it. What
// cannot be read is yielded as its error, and the walk goes on beside it. In a guest
// that is not paused, groups that are made or removed meanwhile may be missed. Source:
// kernel/cgroup/cgroup.c:css_next_descendant_pre.
func (c *Cgroup) Subtree() iter.Seq2[*Cgroup, error] {
	return func(yield func(*Cgroup, error) bool) {
		seen, steps := map[Addr]bool{c.Addr: true}, 0
		for todo := []*Cgroup{c}; len(todo) > 0; {
			g := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			if !yield(g, nil) {
				return
			}
			first := len(todo)
			for child, err := range g.children(&steps) {
				switch {
				case err == nil && seen[child.Addr]:
					err = corrupt(child.Addr, "cgroup", "is below more than one group")
				case err == nil && len(seen) >= maxCgroups:
					yield(nil, &PathError{Path: "cgroup", Addr: c.Addr, Err: ErrLimit})
					return
				}
				if err != nil {
					if !yield(nil, err) {
						return
					}
					continue
				}
				seen[child.Addr] = true
				todo = append(todo, child)
			}
			slices.Reverse(todo[first:])
		}
	}
}

// Tasks yields the threads that are in the group itself. Those that have exited are
// not. Source: kernel/cgroup/cgroup.c:css_task_iter_next.
func (c *Cgroup) Tasks() iter.Seq2[*Task, error] {
	return func(yield func(*Task, error) bool) {
		if err := c.tasks(yield); err != nil {
			yield(nil, err)
		}
	}
}

func (c *Cgroup) tasks(yield func(*Task, error) bool) error {
	k := c.k
	tree, err := cgroupTreeLayout.Load(k, c.Addr)
	if err != nil {
		return err
	}
	link, err := k.offsetOf("cgrp_cset_link", "cset_link")
	if err != nil {
		return err
	}
	task, err := k.offsetOf("task_struct", "cg_list")
	if err != nil {
		return err
	}
	steps := 0
	for node, err := range k.List(tree.CsetLinks) {
		if err != nil {
			return err
		}
		l, err := cgrpLinkCsetLayout.Load(k, node-Addr(link))
		if err != nil {
			return err
		}
		s, err := cssSetTasksLayout.Load(k, l.Cset)
		if err != nil {
			return err
		}
		for _, head := range []Addr{s.Tasks, s.MGTasks} {
			for node, err := range k.List(head) {
				if steps++; err == nil && steps > maxWalk {
					err = &PathError{Path: "cgroup.cset_links", Addr: c.Addr, Err: ErrLimit}
				}
				if err != nil {
					return err
				}
				if !yield(k.TaskAt(node - Addr(task))) {
					return nil
				}
			}
		}
	}
	return nil
}
