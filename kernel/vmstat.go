package kernel

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// Stat is a counter with its name in /proc.
type Stat struct {
	Name  string
	Value uint64
}

type zoneCPUStat struct {
	NumaEvent Addr `k:"&vm_numa_event"`
}

type vmEventState struct {
	Event Addr `k:"&event"`
}

var (
	zoneCPUStatLayout  = LayoutOf[zoneCPUStat]("per_cpu_zonestat")
	vmEventStateLayout = LayoutOf[vmEventState]("vm_event_state")
)

// VMStat returns the counters of memory management, with the names, in the order and
// the units of /proc/vmstat: pages, or events since the guest booted. What the kernel
// computes when asked is not among them: nr_dirty_threshold, nr_dirty_background_threshold.
// Source: mm/vmstat.c:vmstat_start.
func (k *Kernel) VMStat() ([]Stat, error) {
	s, err := k.pageStates()
	if err != nil {
		return nil, err
	}
	events, err := k.vmEvents()
	if err != nil {
		return nil, err
	}
	names, err := k.vmstatNames(s)
	if err != nil {
		return nil, err
	}
	stats := make([]Stat, 0, len(names.zone)+len(names.numa)+len(names.node)+len(names.other)+len(names.event))
	stats = appendStats(stats, names.zone, s.zone)
	stats = appendStats(stats, names.numa, s.numa)
	stats = appendStats(stats, names.node, s.node)
	for _, name := range names.other {
		if a, err := k.Symbol(name); err == nil { // nr_memmap_pages, since 6.11
			v, err := k.ReadU64(a)
			if err != nil {
				return nil, err
			}
			stats = append(stats, Stat{name, v})
		}
	}
	return appendStats(stats, names.event, events), nil
}

func appendStats(stats []Stat, names []string, values []int64) []Stat {
	for i, v := range values[:min(len(values), len(names))] {
		stats = append(stats, Stat{names[i], uint64(max(v, 0))})
	}
	return stats
}

// Stats returns the zone's counters, with the names and in the order of /proc/zoneinfo.
// Source: mm/vmstat.c:zoneinfo_show_print.
func (z *Zone) Stats() ([]Stat, error) {
	s, err := z.k.newPageStates()
	if err != nil {
		return nil, err
	}
	if err := s.addZone(z); err != nil {
		return nil, err
	}
	names, err := z.k.vmstatNames(s)
	return appendStats(appendStats(nil, names.zone, s.zone), names.numa, s.numa), err
}

// Stats returns the node's counters, with the names and in the order of /proc/zoneinfo.
func (n *MemNode) Stats() ([]Stat, error) {
	s, err := n.k.newPageStates()
	if err != nil {
		return nil, err
	}
	if err := s.addNode(n); err != nil {
		return nil, err
	}
	s.scale()
	names, err := n.k.vmstatNames(s)
	return appendStats(nil, names.node, s.node), err
}

// pageStates are the counters of zones and nodes, summed up, by their enums.
type pageStates struct {
	k                               *Kernel
	zoneItems, numaItems, nodeItems []string
	zone, numa, node                []int64
}

func (k *Kernel) newPageStates() (s *pageStates, err error) {
	s = &pageStates{k: k}
	if s.zoneItems, err = k.enumItems("zone_stat_item", "NR_VM_ZONE_STAT_ITEMS"); err != nil {
		return nil, err
	}
	if s.nodeItems, err = k.enumItems("node_stat_item", "NR_VM_NODE_STAT_ITEMS"); err != nil {
		return nil, err
	}
	// Absent if built without NUMA.
	if s.numaItems, err = k.enumItems("numa_stat_item", "NR_VM_NUMA_EVENT_ITEMS|NR_VM_NUMA_STAT_ITEMS"); err != nil {
		s.numaItems = nil
	}
	s.zone, s.numa, s.node = make([]int64, len(s.zoneItems)), make([]int64, len(s.numaItems)), make([]int64, len(s.nodeItems))
	return s, nil
}

// pageStates returns the counters of all zones and nodes.
func (k *Kernel) pageStates() (*pageStates, error) {
	s, err := k.newPageStates()
	if err != nil {
		return nil, err
	}
	for n, err := range k.MemNodes() {
		if err != nil {
			return nil, err
		}
		if err := s.addNode(n); err != nil {
			return nil, err
		}
		for z, err := range n.Zones() {
			if err != nil {
				return nil, err
			}
			if err := s.addZone(z); err != nil {
				return nil, err
			}
		}
	}
	s.scale()
	return s, nil
}

func (s *pageStates) addNode(n *MemNode) error { return s.k.addLongs(s.node, n.VMStat) }

func (s *pageStates) addZone(z *Zone) error {
	if err := s.k.addLongs(s.zone, z.VMStat); err != nil || z.NumaStat == 0 {
		return err
	}
	if err := s.k.addLongs(s.numa, z.NumaStat); err != nil {
		return err
	}
	if z.PerCPU == 0 {
		return nil // before 5.14, and of a zone without memory
	}
	// What CPUs counted themselves is added before it is shown.
	cpus, err := s.k.OnlineCPUs()
	if err != nil {
		return err
	}
	for _, cpu := range cpus {
		a, err := s.k.perCPUPtr(z.PerCPU, cpu)
		if err != nil {
			return err
		}
		own, err := zoneCPUStatLayout.Load(s.k, a)
		if err != nil {
			return err
		}
		if err := s.k.addLongs(s.numa, own.NumaEvent); err != nil {
			return err
		}
	}
	return nil
}

// hugePage is the number of pages in a transparent huge page, HPAGE_PMD_NR.
const hugePage = 512

// scale makes numbers of huge pages of what is counted in small ones since 5.12, as is
// NR_SWAPCACHE. Source: mm/vmstat.c:vmstat_item_print_in_thp.
func (s *pageStates) scale() {
	if _, ok := s.get("NR_SWAPCACHE"); !ok || !s.k.hasEnumValue("vm_event_item", "THP_FAULT_ALLOC") {
		return
	}
	for i, name := range s.nodeItems {
		switch name {
		case "NR_ANON_THPS", "NR_FILE_THPS", "NR_SHMEM_THPS", "NR_SHMEM_PMDMAPPED", "NR_FILE_PMDMAPPED":
			s.node[i] /= hugePage
		}
	}
}

// get returns the counter of a name of an enum; which of the two enums it is in differs
// between kernels.
func (s *pageStates) get(name string) (v uint64, ok bool) {
	for i, n := range s.nodeItems {
		if n == name {
			return uint64(max(s.node[i], 0)), true
		}
	}
	for i, n := range s.zoneItems {
		if n == name {
			return uint64(max(s.zone[i], 0)), true
		}
	}
	return 0, false
}

// vmEvents returns the sums of all CPUs' counters of events. Source: mm/vmstat.c:all_vm_events.
func (k *Kernel) vmEvents() ([]int64, error) {
	items, err := k.enumItems("vm_event_item", "NR_VM_EVENT_ITEMS")
	if err != nil {
		return nil, err
	}
	cpus, err := k.OnlineCPUs()
	if err != nil {
		return nil, err
	}
	sums := make([]int64, len(items))
	for _, cpu := range cpus {
		a, err := k.PerCPU("vm_event_states", cpu)
		if err != nil {
			return nil, err
		}
		e, err := vmEventStateLayout.Load(k, a)
		if err != nil {
			return nil, err
		}
		if err := k.addLongs(sums, e.Event); err != nil {
			return nil, err
		}
	}
	for i, name := range items {
		if name == "PGPGIN" || name == "PGPGOUT" {
			sums[i] /= 2 // sectors, shown as kilobytes
		}
	}
	return sums, nil
}

// longs returns n words of 64 bits at a.
func (k *Kernel) longs(a Addr, n int) ([]int64, error) {
	v := make([]int64, n)
	return v, k.addLongs(v, a)
}

// addLongs adds the words at a to those in sums.
func (k *Kernel) addLongs(sums []int64, a Addr) error {
	b, err := k.bytesAt(a, 8*len(sums), nil)
	if err != nil {
		return err
	}
	for i := range sums {
		sums[i] += int64(binary.LittleEndian.Uint64(b[8*i:]))
	}
	return nil
}

// enumItems returns the names of an enum that counts from 0 up to one of the names in
// end, by value. Names of ranges (…_BASE) are not names of items.
func (k *Kernel) enumItems(enum, end string) ([]string, error) {
	e, err := k.types.Enum(enum)
	if err != nil {
		return nil, err
	}
	var n int64
	for name := range strings.SplitSeq(end, "|") {
		if n, err = e.EnumValue(name); err == nil {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	if n < 0 || n > maxCounters {
		return nil, fmt.Errorf("%w: enum %s has %d items", ErrCorrupt, enum, n)
	}
	items := make([]string, n)
	for _, v := range e.Values {
		if v.Value >= 0 && v.Value < n && !strings.HasSuffix(v.Name, "_BASE") && v.Name != "MIGRATE_PCPTYPES" && v.Name != "__MIGRATE_TYPE_END" {
			items[v.Value] = v.Name
		}
	}
	return items, nil
}

func (k *Kernel) hasEnumValue(enum, name string) bool {
	e, err := k.types.Enum(enum)
	if err != nil {
		return false
	}
	_, err = e.EnumValue(name)
	return err == nil
}

// statNames are the names in /proc/vmstat.
type statNames struct {
	zone, numa, node, other, event []string
}

// vmstatNames returns the names from the kernel's table, or what they are known to be
// for the names in its enums where it has no symbol. Source: mm/vmstat.c:vmstat_text.
func (k *Kernel) vmstatNames(s *pageStates) (n statNames, err error) {
	events, err := k.enumItems("vm_event_item", "NR_VM_EVENT_ITEMS")
	if err != nil {
		return n, err
	}
	others, err := k.enumItems("vm_stat_item", "NR_VM_STAT_ITEMS") // since 6.11
	if err != nil {
		if others, err = k.enumItems("writeback_stat_item", "NR_VM_WRITEBACK_STAT_ITEMS"); err != nil {
			return n, err
		}
	}
	table, err := k.Symbol("vmstat_text")
	read := func(items []string) (names []string) {
		for _, item := range items {
			name := statName(item)
			if table != 0 && err == nil {
				var a Addr
				if a, err = k.ReadAddr(table); err == nil {
					name, err = k.CString(a, 64)
				}
				table += 8
			}
			names = append(names, name)
		}
		return names
	}
	if err != nil {
		table, err = 0, nil
	}
	n.zone, n.numa, n.node, n.other, n.event = read(s.zoneItems), read(s.numaItems), read(s.nodeItems), read(others), read(events)
	return n, err
}

// statName returns the name of a counter in /proc/vmstat by its name in an enum.
func statName(item string) string {
	if n := oddStatNames[item]; n != "" {
		return n
	}
	for _, p := range oddStatPrefixes {
		if rest, ok := strings.CutPrefix(item, p[0]); ok {
			return p[1] + strings.ToLower(rest)
		}
	}
	return strings.ToLower(item)
}

// oddStatNames are the names that are not those in the enum, oddStatPrefixes begins of such.
var (
	oddStatNames = map[string]string{
		"NR_ANON_MAPPED": "nr_anon_pages", "NR_ANON_THPS": "nr_anon_transparent_hugepages",
		"NR_FILE_DIRTY": "nr_dirty", "NR_FILE_MAPPED": "nr_mapped", "NR_FILE_THPS": "nr_file_hugepages",
		"NR_FREE_CMA_PAGES": "nr_free_cma", "NR_KERNEL_STACK_KB": "nr_kernel_stack",
		"NR_PAGETABLE": "nr_page_table_pages", "NR_SECONDARY_PAGETABLE": "nr_sec_page_table_pages",
		"NR_SHMEM_THPS": "nr_shmem_hugepages", "NR_SLAB_RECLAIMABLE_B": "nr_slab_reclaimable",
		"NR_SLAB_UNRECLAIMABLE_B": "nr_slab_unreclaimable", "NR_VMSCAN_IMMEDIATE": "nr_vmscan_immediate_reclaim",
		"NR_SWAPCACHE": "nr_swapcached", "THP_SCAN_EXCEED_SHARED_PTE": "thp_scan_exceed_share_pte",
		"NUMA_INTERLEAVE_HIT": "numa_interleave", "NUMA_PAGE_MIGRATE": "numa_pages_migrated",
		"HTLB_BUDDY_PGALLOC": "htlb_buddy_alloc_success", "HTLB_BUDDY_PGALLOC_FAIL": "htlb_buddy_alloc_fail",
	}
	oddStatPrefixes = [][2]string{
		{"COMPACT", "compact_"},
		{"KCOMPACTD_", "compact_daemon_"},
		{"PGSCAN_SKIP_", "pgskip_"},
		{"PGSCAN_ZONE_", "zone_"},
		{"UNEVICTABLE_PG", "unevictable_pgs_"},
	}
)
