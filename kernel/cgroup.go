package kernel

import (
	"fmt"
	"slices"
	"strings"
)

// Cgroup is a control group.
type Cgroup struct {
	k    *Kernel
	Addr Addr // of the cgroup
	cgroupFields
}

type cgroupFields struct {
	KN             Addr   `k:"kn"`
	Flags          uint64 `k:"flags"`
	CSSFlags       uint32 `k:"self.flags"`
	Parent         Addr   `k:"self.parent"` // css of the parent, whose first member it is
	Level          int32  `k:"level"`
	MaxDepth       int32  `k:"max_depth"`
	MaxDescendants int32  `k:"max_descendants"`
	RootAddr       Addr   `k:"root"`
	DomCgrp        Addr   `k:"dom_cgrp"`
	SubtreeControl uint32 `k:"subtree_control"` // bit 1<<id for each controller
	Subsys         Addr   `k:"&subsys"`
	// cgroup.freeze of this group, and whether it or one above is to be frozen.
	Freeze  bool   `k:"freezer.freeze"`
	EFreeze uint32 `k:"freezer.e_freeze"`
}

type kernfsNode struct {
	Parent Addr `k:"__parent|parent"`
	Name   Addr `k:"name"`
}

type cgroupRoot struct {
	HierarchyID int32    `k:"hierarchy_id"`
	SubsysMask  uint32   `k:"subsys_mask"`
	Flags       uint32   `k:"flags"`
	Name        [64]byte `k:"name"`
}

type cssSet struct {
	DflCgrp Addr `k:"dfl_cgrp"`
	Links   Addr `k:"&cgrp_links"`
	Subsys  Addr `k:"&subsys"`
}

type cgrpCsetLink struct {
	Cgrp Addr `k:"cgrp"`
}

type cgroupSubsys struct {
	ID         int32 `k:"id"`
	Name       Addr  `k:"name"`
	LegacyName Addr  `k:"legacy_name"`
}

type css struct {
	Cgroup Addr `k:"cgroup"`
	SS     Addr `k:"ss"`
}

var (
	cgroupLayout       = LayoutOf[cgroupFields]("cgroup")
	kernfsNodeLayout   = LayoutOf[kernfsNode]("kernfs_node")
	cgroupRootLayout   = LayoutOf[cgroupRoot]("cgroup_root")
	cssSetLayout       = LayoutOf[cssSet]("css_set")
	cgrpLinkLayout     = LayoutOf[cgrpCsetLink]("cgrp_cset_link")
	cgroupSubsysLayout = LayoutOf[cgroupSubsys]("cgroup_subsys")
	cssLayout          = LayoutOf[css]("cgroup_subsys_state")
)

const (
	maxCgroupDepth   = 1 << 12
	maxCgroupSubsys  = 64
	maxHierarchies   = 1 << 12
	maxCgroups       = 1 << 20 // 16 times the ids that memory groups can have
	maxKernfsNameLen = 4096

	cssOnline    = 1 << 1 // CSS_ONLINE
	cgroupFrozen = 1 << 3 // CGRP_FROZEN
)

// CgroupMembership is the place of a task in one hierarchy of control groups: a
// line of /proc/PID/cgroup.
type CgroupMembership struct {
	HierarchyID int // 0 is cgroup v2
	// Controllers are the controllers of a v1 hierarchy, and "name=…" if it has a
	// name; none for v2.
	Controllers []string
	Path        string // from the root of the hierarchy
	Deleted     bool   // the group was removed
	Cgroup      *Cgroup
}

// String returns the line of /proc/PID/cgroup as a reader in the initial cgroup
// namespace sees it. Source: kernel/cgroup/cgroup.c:proc_cgroup_show.
func (c CgroupMembership) String() string {
	s := fmt.Sprintf("%d:%s:%s", c.HierarchyID, strings.Join(c.Controllers, ","), c.Path)
	if c.Deleted {
		s += " (deleted)"
	}
	return s
}

// Cgroup returns t's group in the unified hierarchy (cgroup v2).
func (t *Task) Cgroup() (*CgroupMembership, error) {
	s, err := cssSetLayout.Load(t.k, t.Cgroups)
	if err != nil {
		return nil, err
	}
	return t.k.membership(s.DflCgrp, &s)
}

// CgroupMemberships returns t's groups in all hierarchies, the newest hierarchy
// first, as /proc/PID/cgroup has them. Of the unified hierarchy it has the group
// even if nobody mounted it. Source: css_set.cgrp_links.
func (t *Task) CgroupMemberships() ([]*CgroupMembership, error) {
	k := t.k
	s, err := cssSetLayout.Load(k, t.Cgroups)
	if err != nil {
		return nil, err
	}
	off, err := k.offsetOf("cgrp_cset_link", "cgrp_link")
	if err != nil {
		return nil, err
	}
	var all []*CgroupMembership
	for node, err := range k.List(s.Links) {
		if err != nil {
			return nil, err
		}
		if len(all) >= maxHierarchies {
			return nil, &PathError{Path: "css_set", Addr: t.Cgroups, Err: ErrLimit}
		}
		l, err := cgrpLinkLayout.Load(k, node-Addr(off))
		if err != nil {
			return nil, err
		}
		m, err := k.membership(l.Cgrp, &s)
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	slices.SortStableFunc(all, func(a, b *CgroupMembership) int { return b.HierarchyID - a.HierarchyID })
	return all, nil
}

func (k *Kernel) membership(cgrp Addr, s *cssSet) (*CgroupMembership, error) {
	c, err := k.CgroupAt(cgrp)
	if err != nil {
		return nil, err
	}
	root, err := cgroupRootLayout.Load(k, c.RootAddr)
	if err != nil {
		return nil, err
	}
	m := &CgroupMembership{HierarchyID: int(root.HierarchyID), Cgroup: c}
	if m.Path, err = c.Path(); err != nil {
		return nil, err
	}
	dfl, err := cssSetDefaultRoot(k, s)
	if err != nil {
		return nil, err
	}
	if c.RootAddr == dfl {
		m.Deleted = c.CSSFlags&cssOnline == 0
		return m, nil
	}
	if m.Controllers, err = k.controllerNames(s.Subsys, root.SubsysMask, true); err != nil {
		return nil, err
	}
	if name := cstring(root.Name[:]); name != "" {
		m.Controllers = append(m.Controllers, "name="+name)
	}
	return m, nil
}

func cssSetDefaultRoot(k *Kernel, s *cssSet) (Addr, error) {
	c, err := cgroupLayout.Load(k, s.DflCgrp)
	return c.RootAddr, err
}

// controllerNames names the controllers of a mask by way of an array of
// cgroup_subsys_state pointers, one a controller.
func (k *Kernel) controllerNames(subsys Addr, mask uint32, legacy bool) ([]string, error) {
	var names []string
	for id := range 32 {
		if mask>>id&1 == 0 {
			continue
		}
		a, err := k.ReadAddr(subsys.Add(8 * id))
		if err != nil {
			return nil, err
		}
		st, err := cssLayout.Load(k, a)
		if err != nil {
			return nil, err
		}
		ss, err := cgroupSubsysLayout.Load(k, st.SS)
		if err != nil {
			return nil, err
		}
		p := ss.Name
		if legacy && ss.LegacyName != 0 {
			p = ss.LegacyName
		}
		name, err := k.CString(p, 32)
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}

// CgroupAt reads the cgroup at a.
func (k *Kernel) CgroupAt(a Addr) (*Cgroup, error) {
	c := &Cgroup{k: k, Addr: a}
	if err := cgroupLayout.LoadInto(k, a, &c.cgroupFields); err != nil {
		return nil, err
	}
	return c, nil
}

// Path returns the path of the group from the root of its hierarchy, "/" for the
// root itself. Source: fs/kernfs/dir.c:kernfs_path_from_node.
func (c *Cgroup) Path() (string, error) {
	var parts []string
	size := 0
	for a, depth := c.KN, 0; ; depth++ {
		n, err := kernfsNodeLayout.Load(c.k, a)
		if err != nil {
			return "", err
		}
		if n.Parent == 0 {
			return joinReversed(parts, size), nil
		}
		if depth >= maxCgroupDepth {
			return "", &PathError{Path: "kernfs_node", Addr: c.KN, Err: ErrLimit}
		}
		name, err := c.k.CString(n.Name, maxKernfsNameLen)
		if err != nil {
			return "", &PathError{Path: "kernfs_node->name", Addr: a, Err: err}
		}
		parts = append(parts, name)
		size += 1 + len(name)
		a = n.Parent
	}
}

// ParentGroup returns the group above, nil for the root of the hierarchy.
func (c *Cgroup) ParentGroup() (*Cgroup, error) {
	if c.Parent == 0 {
		return nil, nil
	}
	st, err := cssLayout.Load(c.k, c.Parent)
	if err != nil {
		return nil, err
	}
	return c.k.CgroupAt(st.Cgroup)
}

// Controllers returns the names of the controllers that the group gives to the
// groups below it: cgroup.subtree_control, in the kernel's order.
func (c *Cgroup) Controllers() ([]string, error) {
	return c.k.controllerNames(c.Subsys, c.SubtreeControl, false)
}

// Frozen says whether all tasks of the group are stopped by the freezer, as the
// frozen line of cgroup.events.
func (c *Cgroup) Frozen() bool { return c.Flags&cgroupFrozen != 0 }

// Threaded says whether cgroup.type is "threaded".
func (c *Cgroup) Threaded() bool { return c.DomCgrp != c.Addr }

// css returns the state that a controller keeps for the group, 0 if the controller
// does not handle the group.
func (c *Cgroup) css(id string) (Addr, error) {
	e, err := c.k.types.Enum("cgroup_subsys_id")
	if err != nil {
		return 0, err
	}
	v, err := e.EnumValue(id)
	if err != nil || v < 0 || v >= maxCgroupSubsys {
		return 0, nil // not built in
	}
	a, err := c.k.ReadAddr(c.Subsys.Add(8 * int(v)))
	if err != nil || a == 0 {
		return 0, err
	}
	st, err := cssLayout.Load(c.k, a)
	if err == nil && st.Cgroup != c.Addr {
		err = corrupt(a, "cgroup_subsys_state", "belongs to cgroup %s, not %s", st.Cgroup, c.Addr)
	}
	return a, err
}
