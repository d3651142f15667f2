package kernel

import (
	"fmt"
	"math/bits"
	"strings"

	"github.com/ovmigrate/ovmigrate/kernel/types"
)

// NumberSet is a set of CPUs or memory nodes, ascending.
type NumberSet []int

// String returns the set as the kernel writes it: "0-3,8". Source: lib/vsprintf.c:bitmap_list_string.
func (s NumberSet) String() string {
	var b strings.Builder
	for i := 0; i < len(s); {
		j := i
		for j+1 < len(s) && s[j+1] == s[j]+1 {
			j++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		fmt.Fprint(&b, s[i])
		if j > i {
			fmt.Fprintf(&b, "-%d", s[j])
		}
		i = j + 1
	}
	return b.String()
}

// CpusetLimits are the settings of the cpuset controller.
type CpusetLimits struct {
	CPUs, Mems                   NumberSet // cpuset.cpus, cpuset.mems; empty: those of the group above
	EffectiveCPUs, EffectiveMems NumberSet
}

type cpuset struct {
	CPUs          Addr `k:"&cpus_allowed"`
	Mems          Addr `k:"&mems_allowed"`
	EffectiveCPUs Addr `k:"&effective_cpus"`
	EffectiveMems Addr `k:"&effective_mems"`
}

var cpusetLayout = LayoutOf[cpuset]("cpuset")

// Cpuset returns the settings of the cpuset controller, nil if it does not handle the
// group. Source: kernel/cgroup/cpuset.c:cpuset_common_seq_show.
func (c *Cgroup) Cpuset() (*CpusetLimits, error) {
	a, err := c.controller("cpuset_cgrp_id", "cpuset")
	if a == 0 || err != nil {
		return nil, err
	}
	raw, err := cpusetLayout.Load(c.k, a)
	if err != nil {
		return nil, err
	}
	l := &CpusetLimits{}
	if l.CPUs, err = c.k.cpumaskVar(raw.CPUs); err != nil {
		return nil, err
	}
	if l.EffectiveCPUs, err = c.k.cpumaskVar(raw.EffectiveCPUs); err != nil {
		return nil, err
	}
	nodes := 64
	if t, err := c.k.types.Typedef("nodemask_t"); err == nil {
		if size, err := t.SizeOf(); err == nil {
			nodes = 8 * size
		}
	}
	if l.Mems, err = c.k.bitmap(raw.Mems, nodes); err != nil {
		return nil, err
	}
	l.EffectiveMems, err = c.k.bitmap(raw.EffectiveMems, nodes)
	return l, err
}

// cpumaskVar reads a cpumask_var_t: the mask itself, or in kernels for many CPUs a
// pointer to one, as long as the CPUs of this machine need.
func (k *Kernel) cpumaskVar(a Addr) (NumberSet, error) {
	if t, err := k.types.Typedef("cpumask_var_t"); err == nil {
		if u, err := t.Underlying(); err == nil && u.Kind == types.Pointer {
			if a, err = k.ReadAddr(a); err != nil {
				return nil, err
			}
		}
	}
	n := 64
	if ids, err := k.symbolU32("nr_cpu_ids"); err == nil {
		n = int(min(ids, maxCPUs))
	}
	return k.bitmap(a, n)
}

// bitmap returns the bits that are set among the first n of a bitmap.
func (k *Kernel) bitmap(a Addr, n int) (NumberSet, error) {
	s := NumberSet{}
	for i := 0; i < min(n, maxCPUs); i += 64 {
		w, err := k.ReadU64(a.Add(i / 8))
		if err != nil {
			return nil, err
		}
		for ; w != 0; w &= w - 1 {
			s = append(s, i+bits.TrailingZeros64(w))
		}
	}
	return s, nil
}
