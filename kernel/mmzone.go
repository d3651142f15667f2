package kernel

import (
	"fmt"
	"iter"
	"strings"
)

// MemNode is a node of memory: all there is, or on NUMA machines what is near to some
// CPUs.
type MemNode struct {
	k    *Kernel
	Addr Addr // of the pglist_data
	memNodeFields
}

type memNodeFields struct {
	ID           int32  `k:"node_id"`
	StartPFN     uint64 `k:"node_start_pfn"`
	SpannedPages uint64 `k:"node_spanned_pages"`
	PresentPages uint64 `k:"node_present_pages"`
	Reserve      uint64 `k:"totalreserve_pages"` // pages that are not for programs

	ZonesAddr Addr `k:"&node_zones"`
	VMStat    Addr `k:"&vm_stat"`
}

// Zone is a part of a node's memory that can be used in the same way.
type Zone struct {
	k    *Kernel
	Addr Addr // of the struct zone
	Node int
	Name string // "DMA32", "Normal", …
	zoneFields
	// LowmemReserve are pages that are kept from allocations that could have been made
	// from a higher zone: by that zone.
	LowmemReserve []int64
}

type zoneFields struct {
	StartPFN     uint64    `k:"zone_start_pfn"`
	SpannedPages uint64    `k:"spanned_pages"` // holes included
	PresentPages uint64    `k:"present_pages"`
	ManagedPages uint64    `k:"managed_pages"` // by the page allocator
	Watermark    [4]uint64 `k:"_watermark"`    // WMARK_*; the last is 0 before 5.18
	Boost        uint64    `k:"watermark_boost"`

	NameAddr Addr `k:"name"`
	FreeArea Addr `k:"&free_area"`
	Lowmem   Addr `k:"&lowmem_reserve"`
	VMStat   Addr `k:"&vm_stat"`
	NumaStat Addr `k:"&vm_numa_event|&vm_numa_stat,opt"`
	PerCPU   Addr `k:"per_cpu_zonestats,opt"` // since 5.14
}

// Indices into Zone.Watermark, to which the kernel adds Boost (include/linux/mmzone.h).
const (
	WmarkMin = iota
	WmarkLow
	WmarkHigh
	WmarkPromo // since 5.18
)

type freeArea struct {
	Lists  Addr   `k:"&free_list"`
	NrFree uint64 `k:"nr_free"`
}

var (
	memNodeLayout  = LayoutOf[memNodeFields]("pglist_data")
	zoneLayout     = LayoutOf[zoneFields]("zone")
	freeAreaLayout = LayoutOf[freeArea]("free_area")
)

// onlineNodes returns the numbers of the memory nodes. Source: include/linux/nodemask.h:node_online_map.
func (k *Kernel) onlineNodes() ([]int, error) {
	if _, err := k.Symbol("contig_page_data"); err == nil {
		return []int{0}, nil // built without NUMA
	}
	mask, err := k.Symbol("node_states")
	if err != nil {
		return nil, err
	}
	e, err := k.types.Enum("node_states")
	if err != nil {
		return nil, err
	}
	online, err := e.EnumValue("N_ONLINE")
	if err != nil {
		return nil, err
	}
	t, err := k.types.Typedef("nodemask_t")
	if err != nil {
		return nil, err
	}
	size, err := t.SizeOf()
	if err != nil {
		return nil, err
	}
	return k.bitmap(mask.Add(int(online)*size), 8*min(size, maxNodes/8))
}

// MemNodes yields the nodes of memory. Source: include/linux/mmzone.h:for_each_online_pgdat.
func (k *Kernel) MemNodes() iter.Seq2[*MemNode, error] {
	return func(yield func(*MemNode, error) bool) {
		nodes, err := k.onlineNodes()
		if err != nil {
			yield(nil, err)
			return
		}
		for _, n := range nodes {
			if !yield(k.memNode(n)) {
				return
			}
		}
	}
}

func (k *Kernel) memNode(n int) (*MemNode, error) {
	a, err := k.Symbol("contig_page_data")
	if err != nil {
		if a, err = k.Symbol("node_data"); err != nil {
			return nil, err
		}
		if a, err = k.ReadAddr(a.Add(8 * n)); err != nil {
			return nil, err
		}
	}
	m := &MemNode{k: k, Addr: a}
	if err := memNodeLayout.LoadInto(k, a, &m.memNodeFields); err != nil {
		return nil, err
	}
	if int(m.ID) != n {
		return nil, corrupt(a, "pglist_data", "node %d says it is node %d", n, m.ID)
	}
	return m, nil
}

// Zones yields the node's zones, those without memory too: their PresentPages are 0.
func (n *MemNode) Zones() iter.Seq2[*Zone, error] {
	return func(yield func(*Zone, error) bool) {
		size, err := zoneLayout.Size(n.k)
		if err != nil {
			yield(nil, err)
			return
		}
		count, err := n.k.arrayLen("pglist_data", "node_zones")
		if err != nil {
			yield(nil, err)
			return
		}
		count = min(count, maxZones)
		for i := range count {
			if !yield(n.k.zone(n.ZonesAddr.Add(i*size), int(n.ID), count)) {
				return
			}
		}
	}
}

// Zones yields the zones of all nodes. Source: include/linux/mmzone.h:for_each_zone.
func (k *Kernel) Zones() iter.Seq2[*Zone, error] {
	return func(yield func(*Zone, error) bool) {
		for n, err := range k.MemNodes() {
			if err != nil {
				if !yield(nil, err) {
					return
				}
				continue
			}
			for z, err := range n.Zones() {
				if !yield(z, err) {
					return
				}
			}
		}
	}
}

func (k *Kernel) zone(a Addr, node, zones int) (*Zone, error) {
	z := &Zone{k: k, Addr: a, Node: node}
	err := zoneLayout.LoadInto(k, a, &z.zoneFields)
	if err != nil {
		return nil, err
	}
	if z.LowmemReserve, err = k.longs(z.Lowmem, zones); err != nil {
		return nil, err
	}
	z.Name, err = k.CString(z.NameAddr, 64)
	return z, err
}

// Free returns the numbers of free blocks of 1, 2, 4, … pages: a line of /proc/buddyinfo.
// Pages that lie ready for one CPU are not among them. Source: mm/vmstat.c:frag_show_print.
func (z *Zone) Free() ([]uint64, error) {
	var free []uint64
	err := z.freeAreas(func(f freeArea) error {
		free = append(free, f.NrFree)
		return nil
	})
	return free, err
}

func (z *Zone) freeAreas(visit func(freeArea) error) error {
	orders, err := z.k.arrayLen("zone", "free_area")
	if err != nil {
		return err
	}
	size, err := freeAreaLayout.Size(z.k)
	if err != nil {
		return err
	}
	for i := range min(orders, maxOrders) {
		f, err := freeAreaLayout.Load(z.k, z.FreeArea.Add(i*size))
		if err == nil {
			err = visit(f)
		}
		if err != nil {
			return fmt.Errorf("zone %s: %w", z.Name, err)
		}
	}
	return nil
}

// FreeByType returns what Free does for each type of MigrateTypes: a line of
// /proc/pagetypeinfo each. It walks the lists of free blocks, which in a guest that
// runs may change meanwhile. Source: mm/vmstat.c:pagetypeinfo_showfree_print.
func (z *Zone) FreeByType() ([][]uint64, error) {
	types, err := z.k.arrayLen("free_area", "free_list")
	if err != nil {
		return nil, err
	}
	free := make([][]uint64, min(types, maxMigrateTypes))
	blocks := 0
	err = z.freeAreas(func(f freeArea) error {
		for i := range free {
			var n uint64
			for _, err := range z.k.List(f.Lists.Add(16 * i)) {
				if blocks++; err == nil && blocks > maxWalk {
					err = ErrLimit
				}
				if err != nil {
					return err
				}
				n++
			}
			free[i] = append(free[i], n)
		}
		return nil
	})
	return free, err
}

// MigrateTypes returns the names of the kinds of page blocks, as /proc/pagetypeinfo has
// them. Source: mm/page_alloc.c:migratetype_names.
func (k *Kernel) MigrateTypes() ([]string, error) {
	items, err := k.enumItems("migratetype", "MIGRATE_TYPES")
	if err != nil {
		return nil, err
	}
	for i, name := range items {
		name = strings.TrimPrefix(name, "MIGRATE_")
		switch name {
		case "HIGHATOMIC":
			name = "HighAtomic"
		case "CMA":
		default:
			name = name[:min(1, len(name))] + strings.ToLower(name[min(1, len(name)):])
		}
		items[i] = name
	}
	return items, nil
}

// Bounds of arrays whose lengths the types say, above what any kernel has.
const (
	maxNodes        = 1 << 10 // 1 << CONFIG_NODES_SHIFT
	maxZones        = 16
	maxOrders       = 64
	maxMigrateTypes = 32
	maxCounters     = 1024 // kinds of them
)
