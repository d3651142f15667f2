package kernel

import (
	"fmt"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// FreezerState is freezer.state of cgroup v1: "THAWED", "FREEZING" or "FROZEN"; ""
// if that controller does not handle the group. Of cgroup v2 see Freeze and Frozen.
// Source: kernel/cgroup/legacy_freezer.c:freezer_state_strs.
func (c *Cgroup) FreezerState() (string, error) {
	a, err := c.controller("freezer_cgrp_id", "freezer")
	if a == 0 || err != nil {
		return "", err
	}
	off, err := c.k.offsetOf("freezer", "state")
	if err != nil {
		return "", err
	}
	s, err := c.k.ReadU32(a.Add(off))
	if err != nil {
		return "", err
	}
	const freezing, frozen = 1<<1 | 1<<2, 1 << 3 // CGROUP_FREEZING, CGROUP_FROZEN
	switch {
	case s&frozen != 0:
		return "FROZEN", nil
	case s&freezing != 0:
		return "FREEZING", nil
	}
	return "THAWED", nil
}

// DevicePrograms returns how many BPF programs decide on the devices that the group
// may use, those of the groups above included: what cgroup v2 has in place of the
// devices controller. Source: kernel/bpf/cgroup.c:__cgroup_bpf_check_dev_permission.
func (c *Cgroup) DevicePrograms() (int, error) {
	k := c.k
	index, err := k.deviceAttachType()
	if err != nil {
		return 0, nil //nolint:nilerr // built without BPF for groups
	}
	off, err := k.offsetOf("cgroup", "bpf.effective")
	if err != nil {
		return 0, nil //nolint:nilerr // likewise
	}
	array, err := k.ReadAddr(c.Addr.Add(off + 8*index))
	if err != nil || array == 0 {
		return 0, err
	}
	items, err := k.offsetOf("bpf_prog_array", "items")
	if err != nil {
		return 0, err
	}
	item, err := k.types.Struct("bpf_prog_array_item")
	if err != nil {
		return 0, err
	}
	prog, err := k.offsetOf("bpf_prog_array_item", "prog")
	if err != nil {
		return 0, err
	}
	const maxPrograms = 64 // BPF_CGROUP_MAX_PROGS
	for n := range maxPrograms + 1 {
		p, err := k.ReadAddr(array.Add(items + n*item.Size + prog))
		if err != nil || p == 0 {
			return n, err
		}
	}
	return 0, &PathError{Path: "cgroup.bpf.effective", Addr: c.Addr, Err: ErrLimit}
}

// deviceAttachType returns the index of the device programs.
func (k *Kernel) deviceAttachType() (int, error) {
	e, err := k.types.Enum("cgroup_bpf_attach_type") // since 5.15
	if err == nil {
		v, err := e.EnumValue("CGROUP_DEVICE")
		return int(v), err
	}
	if e, err = k.types.Enum("bpf_attach_type"); err != nil {
		return 0, err
	}
	v, err := e.EnumValue("BPF_CGROUP_DEVICE")
	return int(v), err
}

// HugetlbLimits are the settings of the hugetlb controller for one size of page, in
// bytes.
type HugetlbLimits struct {
	PageSize         uint64
	Max, Current     uint64 // NoLimit for "max"
	RsvdMax, RsvdCur uint64 // of reserved pages
}

type hugetlbCgroup struct {
	Hugepage Addr `k:"&hugepage"`
	Rsvd     Addr `k:"&rsvd_hugepage"` // since 5.7
}

var hugetlbCgroupLayout = LayoutOf[hugetlbCgroup]("hugetlb_cgroup")

// Hugetlb returns the settings of the hugetlb controller by size of page, nil if it
// does not handle the group. Source: mm/hugetlb_cgroup.c:hugetlb_cgroup_read_u64_max.
func (c *Cgroup) Hugetlb() ([]HugetlbLimits, error) {
	k := c.k
	a, err := c.controller("hugetlb_cgrp_id", "hugetlb_cgroup")
	if a == 0 || err != nil {
		return nil, err
	}
	h, err := hugetlbCgroupLayout.Load(k, a)
	if err != nil {
		return nil, err
	}
	sizes, err := k.hugePageSizes()
	if err != nil {
		return nil, err
	}
	size, err := hstateLayout.Size(k)
	if err != nil {
		return nil, err
	}
	counter, err := pageCounterLayout.Size(k)
	if err != nil {
		return nil, err
	}
	var all []HugetlbLimits
	for i := range sizes.n {
		s, err := hstateLayout.Load(k, sizes.base.Add(i*size))
		if err != nil {
			return nil, err
		}
		if s.Order > 40 {
			return nil, corrupt(sizes.base, "hstates", "order %d", s.Order)
		}
		used, err := pageCounterLayout.Load(k, h.Hugepage.Add(i*counter))
		if err != nil {
			return nil, err
		}
		rsvd, err := pageCounterLayout.Load(k, h.Rsvd.Add(i*counter))
		if err != nil {
			return nil, err
		}
		// "max" is the largest multiple of the page's size.
		limit := func(pages uint64) uint64 {
			if pages >= pageCounterMax>>s.Order<<s.Order {
				return NoLimit
			}
			return pages * vmi.PageSize
		}
		all = append(all, HugetlbLimits{
			PageSize: vmi.PageSize << s.Order,
			Max:      limit(used.Max), Current: used.Usage * vmi.PageSize,
			RsvdMax: limit(rsvd.Max), RsvdCur: rsvd.Usage * vmi.PageSize,
		})
	}
	return all, nil
}

// FileName returns the prefix of the files of h: "hugetlb.2MB".
func (h HugetlbLimits) FileName() string {
	n, unit := h.PageSize>>10, "KB"
	if n >= 1<<20 {
		n, unit = n>>20, "GB"
	} else if n >= 1<<10 {
		n, unit = n>>10, "MB"
	}
	return fmt.Sprintf("hugetlb.%d%s", n, unit)
}

// IOWeight returns the default of io.weight, 0 if the kernel has no such setting for
// the group: a kernel without the cost model, or a group that the io controller does
// not handle. ErrNoSymbol says that it cannot be told, as of arm64 kernels that keep no
// names of variables. Source: block/blk-iocost.c:ioc_weight_show.
func (c *Cgroup) IOWeight() (uint64, error) {
	k := c.k
	a, err := c.controller("io_cgrp_id", "blkcg")
	if a == 0 || err != nil {
		return 0, err
	}
	policy, err := k.Symbol("blkcg_policy_iocost")
	if err != nil {
		if _, without := k.types.Struct("ioc_cgrp"); without != nil {
			return 0, nil //nolint:nilerr // built without
		}
		return 0, err
	}
	plid, err := k.offsetOf("blkcg_policy", "plid")
	if err != nil {
		return 0, err
	}
	id, err := k.ReadU32(policy.Add(plid))
	if err != nil || id >= 16 { // BLKCG_MAX_POLS is 6
		return 0, err
	}
	cpd, err := k.offsetOf("blkcg", "cpd")
	if err != nil {
		return 0, err
	}
	p, err := k.ReadAddr(a.Add(cpd + 8*int(id)))
	if err != nil || p == 0 {
		return 0, err
	}
	off, err := k.offsetOf("ioc_cgrp", "dfl_weight")
	if err != nil {
		return 0, err
	}
	w, err := k.ReadU32(p.Add(off))
	const weightOne = 1 << 16 // WEIGHT_ONE
	return uint64(w) / weightOne, err
}
