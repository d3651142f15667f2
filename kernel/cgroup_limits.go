package kernel

import "github.com/ovmigrate/ovmigrate/vmi"

// NoLimit is the value of a limit that says "max".
const NoLimit = ^uint64(0)

// MemoryLimits are the settings of the memory controller, in bytes; NoLimit for
// "max". The names are those of the files of cgroup v2.
type MemoryLimits struct {
	Min, Low, High, Max  uint64
	SwapHigh, SwapMax    uint64
	Current, SwapCurrent uint64
	OOMGroup             bool
}

type memCgroup struct {
	Memory   Addr `k:"&memory"`
	Swap     Addr `k:"&swap"`
	OOMGroup bool `k:"oom_group"`
}

type pageCounter struct {
	Usage uint64 `k:"usage"`
	Min   uint64 `k:"min"`
	Low   uint64 `k:"low"`
	High  uint64 `k:"high"`
	Max   uint64 `k:"max"`
}

var (
	memCgroupLayout   = LayoutOf[memCgroup]("mem_cgroup")
	pageCounterLayout = LayoutOf[pageCounter]("page_counter")
)

// pageCounterMax is PAGE_COUNTER_MAX, in pages.
const pageCounterMax = (1<<63 - 1) / vmi.PageSize

func pagesLimit(pages uint64) uint64 {
	if pages >= pageCounterMax {
		return NoLimit
	}
	return pages * vmi.PageSize
}

// Memory returns the settings of the memory controller, nil if it does not handle
// the group. Source: mm/memcontrol.c:memory_files.
func (c *Cgroup) Memory() (*MemoryLimits, error) {
	a, err := c.controller("memory_cgrp_id", "mem_cgroup")
	if a == 0 || err != nil {
		return nil, err
	}
	m, err := memCgroupLayout.Load(c.k, a)
	if err != nil {
		return nil, err
	}
	mem, err := pageCounterLayout.Load(c.k, m.Memory)
	if err != nil {
		return nil, err
	}
	swap, err := pageCounterLayout.Load(c.k, m.Swap)
	if err != nil {
		return nil, err
	}
	return &MemoryLimits{
		Min: pagesLimit(mem.Min), Low: pagesLimit(mem.Low), High: pagesLimit(mem.High), Max: pagesLimit(mem.Max),
		SwapHigh: pagesLimit(swap.High), SwapMax: pagesLimit(swap.Max),
		Current: mem.Usage * vmi.PageSize, SwapCurrent: swap.Usage * vmi.PageSize,
		OOMGroup: m.OOMGroup,
	}, nil
}

// controller returns the structure of type cname around the css of a controller.
func (c *Cgroup) controller(id, cname string) (Addr, error) {
	a, err := c.css(id)
	if a == 0 || err != nil {
		return 0, err
	}
	off, err := c.k.offsetOf(cname, "css")
	return a - Addr(off), err
}

// CPULimits are the settings of the cpu controller.
type CPULimits struct {
	Weight uint64 // cpu.weight, 1 to 10000
	Shares uint64 // cpu.shares of cgroup v1, 2 to 262144
	Idle   bool   // cpu.idle
	// Quota and Period are cpu.max, in microseconds; Quota may be NoLimit. Burst
	// is cpu.max.burst.
	Quota, Period, Burst uint64
}

type taskGroup struct {
	Shares uint64 `k:"shares,opt"`
	Idle   bool   `k:"idle,opt"` // since 5.15
	Quota  uint64 `k:"cfs_bandwidth.quota,opt"`
	Period uint64 `k:"cfs_bandwidth.period,opt"` // ns
	Burst  uint64 `k:"cfs_bandwidth.burst,opt"`  // since 5.14
}

var taskGroupLayout = LayoutOf[taskGroup]("task_group")

const (
	cgroupWeightDefault = 100 // CGROUP_WEIGHT_DFL
	weightIdle          = 3   // WEIGHT_IDLEPRIO
)

// CPU returns the settings of the cpu controller, nil if it does not handle the
// group. Source: kernel/sched/core.c:cpu_weight_read_u64, cpu_max_show.
func (c *Cgroup) CPU() (*CPULimits, error) {
	a, err := c.controller("cpu_cgrp_id", "task_group")
	if a == 0 || err != nil {
		return nil, err
	}
	g, err := taskGroupLayout.Load(c.k, a)
	if err != nil {
		return nil, err
	}
	shares := g.Shares >> 10 // scale_load_down
	if g.Idle {
		shares = weightIdle
	}
	l := &CPULimits{Weight: (shares*cgroupWeightDefault + 512) / 1024, Shares: g.Shares >> 10, Idle: g.Idle, Quota: NoLimit}
	if g.Quota != NoLimit && taskGroupLayout.Has(c.k, "Quota") {
		l.Quota = g.Quota / 1000
	}
	l.Period, l.Burst = g.Period/1000, g.Burst/1000
	return l, nil
}

// PIDsLimits are the settings of the pids controller.
type PIDsLimits struct {
	Max     uint64 // NoLimit for "max"
	Current uint64
}

type pidsCgroup struct {
	Counter int64 `k:"counter"`
	Limit   int64 `k:"limit"`
}

var pidsCgroupLayout = LayoutOf[pidsCgroup]("pids_cgroup")

// pidsMax is PIDS_MAX, PID_MAX_LIMIT+1.
const pidsMax = 4<<20 + 1

// PIDs returns the settings of the pids controller, nil if it does not handle the
// group. Source: kernel/cgroup/pids.c:pids_max_show.
func (c *Cgroup) PIDs() (*PIDsLimits, error) {
	a, err := c.controller("pids_cgrp_id", "pids_cgroup")
	if a == 0 || err != nil {
		return nil, err
	}
	p, err := pidsCgroupLayout.Load(c.k, a)
	if err != nil {
		return nil, err
	}
	l := &PIDsLimits{Max: uint64(p.Limit), Current: uint64(max(p.Counter, 0))}
	if p.Limit >= pidsMax {
		l.Max = NoLimit
	}
	return l, nil
}
