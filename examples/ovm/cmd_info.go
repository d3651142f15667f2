package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/vmi"
)

func (a *app) infoCommand() *cobra.Command {
	return a.jsonFlag(a.command("info", "Show the guest's kernel and how it was found", "",
		func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), needRead, func(g *guest) error {
				i, err := newInfo(c.Context(), g)
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(i)
				}
				return i.print(a)
			})
		}))
}

type info struct {
	Release     string      `json:"release"`
	Banner      string      `json:"banner"`
	Found       []infoStep  `json:"found"`
	VirtBase    hex         `json:"virt_base"`
	KASLROffset hex         `json:"kaslr_offset"`
	Root        hex         `json:"page_table_root"`
	Levels      int         `json:"page_table_levels"`
	Symbols     int         `json:"symbols"`
	BTFSize     int         `json:"btf_size"`
	OnlineCPUs  []int       `json:"online_cpus"`
	VCPUs       []infoVCPU  `json:"vcpus"`
	Memory      []infoRange `json:"memory"`
}

type infoStep struct {
	What  string `json:"what"`
	How   string `json:"how"`
	Check string `json:"check"`
}

type infoVCPU struct {
	ID     int    `json:"id"`
	Mode   string `json:"mode"`
	RIP    hex    `json:"rip"`
	CR3    hex    `json:"cr3"`
	Halted bool   `json:"halted"`
}

type infoRange struct {
	Start hex `json:"start"`
	End   hex `json:"end"`
}

func newInfo(ctx context.Context, g *guest) (*info, error) {
	f := g.Guest()
	i := &info{
		Release: f.Release, Banner: f.Banner, VirtBase: hex(f.VirtBase), KASLROffset: hex(f.KASLROffset),
		Root: hex(f.Root), Levels: f.Levels, Symbols: f.Symbols.Len(), BTFSize: len(f.BTF),
		VCPUs: []infoVCPU{}, Memory: []infoRange{}, Found: []infoStep{},
	}
	for _, s := range f.Found {
		i.Found = append(i.Found, infoStep{s.What, s.How, s.Check})
	}
	for _, r := range g.Memory().Ranges() {
		i.Memory = append(i.Memory, infoRange{hex(r.Start), hex(r.End)})
	}
	var err error
	if i.OnlineCPUs, err = g.OnlineCPUs(); err != nil {
		return nil, err
	}
	cpus, ok := g.image.(vmi.CPUs)
	if !ok {
		return i, nil
	}
	all, err := cpus.CPUs(ctx)
	if err != nil && !errors.Is(err, vmi.ErrNoCPUs) {
		return nil, fmt.Errorf("vCPU registers: %w", err)
	}
	for _, c := range all {
		mode := "kernel"
		if c.CS&3 == 3 {
			mode = "user"
		}
		i.VCPUs = append(i.VCPUs, infoVCPU{c.ID, mode, hex(c.RIP), hex(c.CR3), c.Halted})
	}
	return i, nil
}

func (i *info) print(a *app) error {
	t := newTable(a.stdout)
	t.row("release", i.Release)
	t.row("banner", i.Banner)
	t.row("image", fmt.Sprintf("%v (KASLR slide %v)", i.VirtBase, i.KASLROffset))
	t.row("page tables", fmt.Sprintf("root %v, %d levels", i.Root, i.Levels))
	t.row("symbols", fmt.Sprintf("%d", i.Symbols))
	t.row("types", fmt.Sprintf("BTF, %s", formatSize(uint64(i.BTFSize))))
	t.row("CPUs", fmt.Sprintf("%d online", len(i.OnlineCPUs)))
	for _, c := range i.VCPUs {
		state := "in " + c.Mode + " mode"
		if c.Halted {
			state = "halted"
		}
		t.row("", fmt.Sprintf("%d: %s, rip %v", c.ID, state, c.RIP))
	}
	var total uint64
	for _, r := range i.Memory {
		total += uint64(r.End - r.Start)
	}
	t.row("memory", formatSize(total))
	for _, r := range i.Memory {
		t.row("", fmt.Sprintf("%v-%v", r.Start, r.End))
	}
	for n, s := range i.Found {
		head := ""
		if n == 0 {
			head = "found"
		}
		line := s.What + ": " + s.How
		if s.Check != "" {
			line += "; " + s.Check
		}
		t.row(head, line)
	}
	return t.flush()
}
