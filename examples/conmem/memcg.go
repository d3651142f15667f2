package main

import (
	"fmt"
	"slices"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/kernel/types"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// memory is what the memory controller says of a group and those below it.
type memory struct {
	Current uint64  `json:"current"`
	Max     *uint64 `json:"max"` // null: no limit
	Anon    uint64  `json:"anon"`
	File    uint64  `json:"file"`
	Shmem   uint64  `json:"shmem"` // part of File
}

// readMemory returns nil if the controller does not handle the group.
func readMemory(k *kernel.Kernel, g *kernel.Cgroup) (*memory, error) {
	limits, err := g.Memory()
	if err != nil || limits == nil {
		return nil, err
	}
	m := &memory{Current: limits.Current}
	if limits.Max != kernel.NoLimit {
		m.Max = &limits.Max
	}
	stats, err := statsOf(k, g)
	if err != nil {
		return nil, err
	}
	for _, s := range []struct {
		name string
		to   *uint64
	}{{"NR_ANON_MAPPED", &m.Anon}, {"NR_FILE_PAGES", &m.File}, {"NR_SHMEM", &m.Shmem}} {
		if *s.to, err = stats.bytes(s.name); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// memStats are the counters behind memory.stat. The library has no helper for them:
// what follows names members of the kernel's structures, and what differs between kernels
// is told by their types.
type memStats struct {
	k     *kernel.Kernel
	state kernel.Object // long[], or atomic_long_t[] before 5.13
	index []byte        // where a counter is in state; nil: at its own number
}

// statsOf returns the counters of a group and those below it. Source:
// mm/memcontrol.c:memcg_page_state.
func statsOf(k *kernel.Kernel, g *kernel.Cgroup) (*memStats, error) {
	memcg, err := memCgroup(k, g)
	if err != nil {
		return nil, err
	}
	s := &memStats{k: k}
	if s.state, err = memcg.Field("vmstats"); err != nil {
		return nil, err
	}
	u, err := s.state.Type().Underlying()
	if err != nil {
		return nil, err
	}
	if u.Kind != types.Array { // a structure of its own, later behind a pointer
		if s.state, err = s.state.Field("state"); err != nil {
			return nil, err
		}
		if u, err = s.state.Type().Underlying(); err != nil {
			return nil, err
		}
	}
	// Since 6.10 the array has no room for counters that groups do not have.
	all, err := enumValue(k, "memcg_stat_item", "MEMCG_NR_STAT")
	if err == nil && u.Len < all {
		s.index, err = statsIndex(k, all)
	}
	return s, err
}

// memCgroup returns the memory controller's structure of a group, which has one.
func memCgroup(k *kernel.Kernel, g *kernel.Cgroup) (o kernel.Object, err error) {
	id, err := enumValue(k, "cgroup_subsys_id", "memory_cgrp_id")
	if err != nil {
		return o, err
	}
	cgroup, err := k.Object("cgroup", g.Addr)
	if err != nil {
		return o, err
	}
	css, err := cgroup.Field(fmt.Sprintf("subsys[%d]", id))
	if err != nil {
		return o, err
	}
	if css, err = css.Deref(); err != nil {
		return o, err
	}
	a, err := k.ContainerOf(css.Addr(), "mem_cgroup", "css")
	if err != nil {
		return o, err
	}
	return k.Object("mem_cgroup", a)
}

func enumValue(k *kernel.Kernel, enum, name string) (int, error) {
	e, err := k.Types().Enum(enum)
	if err != nil {
		return 0, err
	}
	v, err := e.EnumValue(name)
	if err == nil && (v < 0 || v > maxStats) {
		err = fmt.Errorf("%w: %s is %d", kernel.ErrCorrupt, name, v)
	}
	return int(v), err
}

const (
	maxStats = 1 << 10
	badIndex = 0xff // BAD_STAT_IDX
)

// statsIndex returns where each counter is. Up to 6.11 places are counted from 1, and 0
// is none.
func statsIndex(k *kernel.Kernel, n int) ([]byte, error) {
	a, err := k.Symbol("mem_cgroup_stats_index")
	if err != nil {
		return nil, err
	}
	index := make([]byte, n)
	if _, err := k.ReadAt(index, a); err != nil {
		return nil, err
	}
	if !slices.Contains(index, badIndex) {
		for i := range index {
			index[i]--
		}
	}
	return index, nil
}

// bytes returns a counter of pages, by its name in enum node_stat_item, in bytes.
func (s *memStats) bytes(name string) (uint64, error) {
	i, err := enumValue(s.k, "node_stat_item", name)
	if err != nil {
		return 0, err
	}
	if s.index != nil {
		if i >= len(s.index) || s.index[i] == badIndex {
			return 0, fmt.Errorf("%w: no counter %s", kernel.ErrCorrupt, name)
		}
		i = int(s.index[i])
	}
	counter, err := s.state.Field(fmt.Sprintf("[%d]", i))
	if err != nil {
		return 0, err
	}
	v, err := s.k.ReadU64(counter.Addr())
	// What is not added up yet can make it negative.
	return uint64(max(int64(v), 0)) * vmi.PageSize, err
}
