package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/kernel"
)

func (a *app) slabCommand() *cobra.Command {
	of := ""
	c := a.jsonFlag(a.command("slab", "List the kernel's slab caches",
		"slab lists the caches of kernel objects, as /proc/slabinfo and slabtop do. With --of it\n"+
			"says which object of which cache an address is in.",
		func(c *cobra.Command, _ []string) error {
			at, err := uint64(0), error(nil)
			if of != "" {
				if at, err = parseAddr(of); err != nil {
					return err
				}
			}
			return a.with(c.Context(), needRead, func(g *guest) error {
				if of != "" {
					return a.showSlabObject(g.Kernel, kernel.Addr(at))
				}
				all, err := readSlabs(g.Kernel)
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(all)
				}
				return printSlabs(a, all)
			})
		}))
	c.Flags().StringVar(&of, "of", "", "show the object that kernel address `ADDR` is in")
	return c
}

// slabCache is an element of what slab --json prints.
type slabCache struct {
	Name           string   `json:"name"`
	Address        hex      `json:"address"`
	ActiveObjects  uint64   `json:"active_objects"`
	Objects        uint64   `json:"objects"`
	ObjectSize     uint32   `json:"object_size"` // bytes
	Size           uint32   `json:"size"`        // from one object to the next
	Align          uint32   `json:"align"`
	ObjectsPerSlab int      `json:"objects_per_slab"`
	Order          uint     `json:"order"`
	Slabs          uint64   `json:"slabs"`
	PartialSlabs   uint64   `json:"partial_slabs"`
	Flags          []string `json:"flags"`
}

func readSlabs(k *kernel.Kernel) ([]slabCache, error) {
	all := []slabCache{}
	for c, err := range k.SlabCaches() {
		if err != nil {
			return nil, err
		}
		i, err := c.Info()
		if err != nil {
			return nil, err
		}
		out := slabCache{
			Name: c.Name, Address: hex(c.Addr), ActiveObjects: i.Active, Objects: i.Objects,
			ObjectSize: c.ObjectSize, Size: c.Size, Align: c.Align, ObjectsPerSlab: c.ObjectsPerSlab(), Order: c.Order(),
			Slabs: i.Slabs, PartialSlabs: i.Partial, Flags: []string{},
		}
		for _, f := range c.FlagNames() {
			out.Flags = append(out.Flags, strings.ToLower(strings.TrimPrefix(f, "SLAB_")))
		}
		all = append(all, out)
	}
	return all, nil
}

func printSlabs(a *app, all []slabCache) error {
	t := newTable(a.stdout, "CACHE", "ACTIVE", "OBJECTS", "SIZE", "PER SLAB", "PAGES", "SLABS", "FLAGS")
	for _, c := range all {
		t.row(c.Name, c.ActiveObjects, c.Objects, c.Size, c.ObjectsPerSlab, 1<<c.Order, c.Slabs, strings.Join(c.Flags, ","))
	}
	return t.flush()
}

// slabObject is what slab --of --json prints.
type slabObject struct {
	Cache   string `json:"cache"`
	Address hex    `json:"address"` // of the object
	Offset  int    `json:"offset"`  // of the address that was asked for
	Size    uint32 `json:"size"`
	Slab    hex    `json:"slab"`
	Index   int    `json:"index"`
}

func (a *app) showSlabObject(k *kernel.Kernel, at kernel.Addr) error {
	o, err := k.SlabOf(at)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(slabObject{o.Cache.Name, hex(o.Addr), o.Offset, o.Cache.ObjectSize, hex(o.Slab), o.Index})
	}
	_, err = fmt.Fprintf(a.stdout, "%s+%#x: object %d of slab %s, %s (%d bytes)\n",
		o.Addr, o.Offset, o.Index, o.Slab, printable(o.Cache.Name), o.Cache.ObjectSize)
	return err
}
