package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/kernel"
)

const longCgroups = `cgroups lists the control groups of all hierarchies, cgroup v2 and v1, with the number of
processes in each and its limits.`

func (a *app) cgroupsCommand() *cobra.Command {
	return a.jsonFlag(a.command("cgroups", "List control groups and their limits", longCgroups,
		func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), needRead, func(g *guest) error {
				all := []group{}
				for h, err := range g.CgroupHierarchies() {
					if err != nil {
						return err
					}
					if err := addGroups(&all, h); err != nil {
						return err
					}
				}
				if a.json {
					return a.printJSON(all)
				}
				return printGroups(a, all)
			})
		}))
}

// group is an element of what cgroups --json prints. Limits are bytes, microseconds
// and numbers; null is "max", absent is a controller that does not handle the group.
type group struct {
	Hierarchy   int      `json:"hierarchy"` // 0 is cgroup v2
	Controllers []string `json:"controllers"`
	Name        string   `json:"name,omitempty"` // of a v1 hierarchy
	Path        string   `json:"path"`
	Processes   int      `json:"processes"`
	Threads     int      `json:"threads"`
	Frozen      bool     `json:"frozen"`

	Memory         *groupMemory   `json:"memory,omitempty"`
	CPU            *groupCPU      `json:"cpu,omitempty"`
	PIDs           *groupPIDs     `json:"pids,omitempty"`
	Cpuset         *groupCpuset   `json:"cpuset,omitempty"`
	Hugetlb        []groupHugetlb `json:"hugetlb,omitempty"`
	IOWeight       uint64         `json:"io_weight,omitempty"`
	DevicePrograms int            `json:"device_programs"`
}

type groupMemory struct {
	Current     uint64  `json:"current"`
	Min         *uint64 `json:"min"`
	Low         *uint64 `json:"low"`
	High        *uint64 `json:"high"`
	Max         *uint64 `json:"max"`
	SwapCurrent uint64  `json:"swap_current"`
	SwapMax     *uint64 `json:"swap_max"`
}

type groupCPU struct {
	Weight uint64  `json:"weight"`
	Shares uint64  `json:"shares"`
	Quota  *uint64 `json:"quota"`
	Period uint64  `json:"period"`
	Idle   bool    `json:"idle"`
}

type groupPIDs struct {
	Current uint64  `json:"current"`
	Max     *uint64 `json:"max"`
}

type groupCpuset struct {
	CPUs          string `json:"cpus"`
	Mems          string `json:"mems"`
	EffectiveCPUs string `json:"effective_cpus"`
	EffectiveMems string `json:"effective_mems"`
}

type groupHugetlb struct {
	PageSize uint64  `json:"page_size"`
	Current  uint64  `json:"current"`
	Max      *uint64 `json:"max"`
}

// limitOf is nil for no limit.
func limitOf(v uint64) *uint64 {
	if v == kernel.NoLimit {
		return nil
	}
	return &v
}

func addGroups(all *[]group, h *kernel.CgroupHierarchy) error {
	for c, err := range h.Root.Subtree() {
		if err != nil {
			return err
		}
		g, err := readGroup(h, c)
		if err != nil {
			return err
		}
		*all = append(*all, g)
	}
	return nil
}

func readGroup(h *kernel.CgroupHierarchy, c *kernel.Cgroup) (g group, err error) {
	g = group{Hierarchy: h.ID, Controllers: h.Controllers, Name: h.Name, Frozen: c.Frozen()}
	if g.Controllers == nil {
		g.Controllers = []string{}
	}
	if g.Path, err = c.Path(); err != nil {
		return g, err
	}
	for t, err := range c.Tasks() {
		if err != nil {
			return g, fmt.Errorf("tasks of %s: %w", g.Path, err)
		}
		g.Threads++
		if t.PID == t.TGID {
			g.Processes++
		}
	}
	if err := g.addLimits(c); err != nil {
		return g, fmt.Errorf("limits of %s: %w", g.Path, err)
	}
	return g, nil
}

func (g *group) addLimits(c *kernel.Cgroup) error {
	m, err := c.Memory()
	if err != nil {
		return err
	}
	if m != nil {
		g.Memory = &groupMemory{
			m.Current, limitOf(m.Min), limitOf(m.Low), limitOf(m.High), limitOf(m.Max), m.SwapCurrent, limitOf(m.SwapMax),
		}
	}
	p, err := c.CPU()
	if err != nil {
		return err
	}
	if p != nil {
		g.CPU = &groupCPU{p.Weight, p.Shares, limitOf(p.Quota), p.Period, p.Idle}
	}
	n, err := c.PIDs()
	if err != nil {
		return err
	}
	if n != nil {
		g.PIDs = &groupPIDs{n.Current, limitOf(n.Max)}
	}
	return g.addOther(c)
}

func (g *group) addOther(c *kernel.Cgroup) error {
	s, err := c.Cpuset()
	if err != nil {
		return err
	}
	if s != nil {
		g.Cpuset = &groupCpuset{s.CPUs.String(), s.Mems.String(), s.EffectiveCPUs.String(), s.EffectiveMems.String()}
	}
	h, err := c.Hugetlb()
	if err != nil {
		return err
	}
	for _, l := range h {
		g.Hugetlb = append(g.Hugetlb, groupHugetlb{l.PageSize, l.Current, limitOf(l.Max)})
	}
	if g.IOWeight, err = c.IOWeight(); err != nil && !errors.Is(err, kernel.ErrNoSymbol) {
		return err
	}
	state, err := c.FreezerState()
	if err != nil {
		return err
	}
	g.Frozen = g.Frozen || state == "FROZEN"
	g.DevicePrograms, err = c.DevicePrograms()
	return err
}

func printGroups(a *app, all []group) error {
	t := newTable(a.stdout, "HIERARCHY", "PROCS", "MEMORY", "MAX", "CPU", "PIDS", "PATH")
	for _, g := range all {
		name := "v2"
		if g.Hierarchy != 0 {
			name = strings.Join(g.Controllers, ",")
			if g.Name != "" {
				name = "name=" + g.Name
			}
		}
		memory, limit, cpu, pids := "-", "-", "-", "-"
		if m := g.Memory; m != nil {
			memory, limit = formatSize(m.Current), maxOr(m.Max, formatSize)
		}
		if c := g.CPU; c != nil {
			cpu = fmt.Sprintf("weight %d", c.Weight)
			if c.Quota != nil && c.Period > 0 {
				cpu += fmt.Sprintf(", %d%%", 100**c.Quota/c.Period)
			}
		}
		if p := g.PIDs; p != nil {
			pids = fmt.Sprintf("%d of %s", p.Current, maxOr(p.Max, func(n uint64) string { return fmt.Sprint(n) }))
		}
		path := g.Path
		if g.Frozen {
			path += " (frozen)"
		}
		t.row(name, g.Processes, memory, limit, cpu, pids, path)
	}
	return t.flush()
}

func maxOr(v *uint64, format func(uint64) string) string {
	if v == nil {
		return "max"
	}
	return format(*v)
}
