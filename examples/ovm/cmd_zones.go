package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/kernel"
)

func (a *app) zonesCommand() *cobra.Command {
	stats := false
	c := a.jsonFlag(a.command("zones", "Show the guest's memory: zones, free pages, counters",
		"zones shows how memory is used, as /proc/meminfo does, and the zones of memory with their\n"+
			"free blocks of 1, 2, 4, … pages, as /proc/zoneinfo and /proc/buddyinfo do.",
		func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), needRead, func(g *guest) error {
				m, err := readMemory(g.Kernel)
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(m)
				}
				return printMemory(a, m, stats)
			})
		}))
	c.Flags().BoolVar(&stats, "stats", false, "show the counters of /proc/vmstat too")
	return c
}

// memory is what zones --json prints.
type memory struct {
	MemInfo kernel.MemInfo    `json:"meminfo"` // bytes, by the names in /proc/meminfo
	Zones   []memZone         `json:"zones"`
	VMStat  map[string]uint64 `json:"vmstat"`

	stats []kernel.Stat // VMStat, in order
}

type memZone struct {
	Node       int                 `json:"node"`
	Name       string              `json:"name"`
	StartPFN   uint64              `json:"start_pfn"`
	Spanned    uint64              `json:"spanned"` // pages, as all below
	Present    uint64              `json:"present"`
	Managed    uint64              `json:"managed"`
	Free       uint64              `json:"free"`
	Min        uint64              `json:"min"` // watermarks
	Low        uint64              `json:"low"`
	High       uint64              `json:"high"`
	Protection []int64             `json:"protection"`
	FreeBlocks []uint64            `json:"free_blocks"` // of 1, 2, 4, … pages
	FreeByType map[string][]uint64 `json:"free_by_type"`
	Stats      map[string]uint64   `json:"stats"`
}

func readMemory(k *kernel.Kernel) (m memory, err error) {
	if m.MemInfo, err = k.MemInfo(); err != nil {
		return m, err
	}
	if m.stats, err = k.VMStat(); err != nil {
		return m, err
	}
	m.VMStat = byName(m.stats)
	types, err := k.MigrateTypes()
	if err != nil {
		return m, err
	}
	for z, err := range k.Zones() {
		if err != nil {
			return m, err
		}
		if z.PresentPages == 0 {
			continue
		}
		out, err := newMemZone(z, types)
		if err != nil {
			return m, err
		}
		m.Zones = append(m.Zones, out)
	}
	return m, nil
}

func byName(stats []kernel.Stat) map[string]uint64 {
	m := map[string]uint64{}
	for _, s := range stats {
		m[s.Name] = s.Value
	}
	return m
}

func newMemZone(z *kernel.Zone, types []string) (out memZone, err error) {
	out = memZone{
		Node: z.Node, Name: z.Name, StartPFN: z.StartPFN, Spanned: z.SpannedPages, Present: z.PresentPages,
		Managed: z.ManagedPages, Min: z.Watermark[kernel.WmarkMin] + z.Boost, Low: z.Watermark[kernel.WmarkLow] + z.Boost,
		High: z.Watermark[kernel.WmarkHigh] + z.Boost, Protection: z.LowmemReserve, FreeByType: map[string][]uint64{},
	}
	stats, err := z.Stats()
	if err != nil {
		return out, err
	}
	out.Stats = byName(stats)
	out.Free = out.Stats["nr_free_pages"]
	if out.FreeBlocks, err = z.Free(); err != nil {
		return out, err
	}
	free, err := z.FreeByType()
	for i, blocks := range free {
		if i < len(types) {
			out.FreeByType[types[i]] = blocks
		}
	}
	return out, err
}

func printMemory(a *app, m memory, stats bool) error {
	i := m.MemInfo
	swapFree := formatSize(i.SwapFree)
	if slices.Contains(i.Unknown, "SwapFree") {
		swapFree = "unknown"
	}
	t := newTable(a.stdout)
	t.row("total", formatSize(i.MemTotal), "free", formatSize(i.MemFree), "available", formatSize(i.MemAvailable))
	t.row("cached", formatSize(i.Cached), "buffers", formatSize(i.Buffers), "shmem", formatSize(i.Shmem))
	t.row("anonymous", formatSize(i.AnonPages), "slab", formatSize(i.Slab), "swap free", swapFree)
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(a.stdout)
	t = newTable(a.stdout, "NODE", "ZONE", "MANAGED", "FREE", "MIN", "LOW", "HIGH", "FREE BLOCKS")
	for _, z := range m.Zones {
		t.row(z.Node, z.Name, z.Managed, z.Free, z.Min, z.Low, z.High, strings.Trim(fmt.Sprint(z.FreeBlocks), "[]"))
	}
	if err := t.flush(); err != nil || !stats {
		return err
	}
	fmt.Fprintln(a.stdout)
	t = newTable(a.stdout)
	for _, s := range m.stats {
		t.row(s.Name, s.Value)
	}
	return t.flush()
}
