package kernel

import (
	"errors"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// MemInfo is how memory is used, in bytes: what /proc/meminfo shows under the same
// names, as far as it can be told from a few counters.
type MemInfo struct {
	MemTotal, MemFree, MemAvailable uint64
	// Buffers are cached pages of block devices, Cached those of files.
	Buffers, Cached, SwapCached    uint64
	ActiveAnon, InactiveAnon       uint64
	ActiveFile, InactiveFile       uint64
	Unevictable, Mlocked           uint64
	SwapTotal, SwapFree            uint64
	Dirty, Writeback               uint64
	AnonPages, Mapped, Shmem       uint64
	KReclaimable                   uint64 // SReclaimable included
	SReclaimable, SUnreclaim, Slab uint64
	KernelStack, PageTables        uint64

	// Unknown names the fields that are 0 because nothing in this guest's memory leads
	// to them: SwapTotal and SwapCached of arm64 kernels without symbols of variables.
	// Cached counts the swap cache if SwapCached is one of them.
	Unknown []string `json:",omitempty"`
}

// MemInfo returns how the guest's memory is used. Source:
// fs/proc/meminfo.c:meminfo_proc_show.
func (k *Kernel) MemInfo() (m MemInfo, err error) {
	s, err := k.pageStates()
	if err != nil {
		return m, err
	}
	for name, v := range map[string]*uint64{
		"NR_FREE_PAGES": &m.MemFree, "NR_ACTIVE_ANON": &m.ActiveAnon, "NR_INACTIVE_ANON": &m.InactiveAnon,
		"NR_ACTIVE_FILE": &m.ActiveFile, "NR_INACTIVE_FILE": &m.InactiveFile, "NR_UNEVICTABLE": &m.Unevictable,
		"NR_MLOCK": &m.Mlocked, "NR_FILE_DIRTY": &m.Dirty, "NR_WRITEBACK": &m.Writeback, "NR_FILE_PAGES": &m.Cached,
		"NR_ANON_MAPPED": &m.AnonPages, "NR_FILE_MAPPED": &m.Mapped, "NR_SHMEM": &m.Shmem,
		"NR_SLAB_RECLAIMABLE_B": &m.SReclaimable, "NR_SLAB_UNRECLAIMABLE_B": &m.SUnreclaim,
		"NR_KERNEL_MISC_RECLAIMABLE": &m.KReclaimable, "NR_PAGETABLE": &m.PageTables, "NR_SWAPCACHE": &m.SwapCached,
	} {
		pages, _ := s.get(name)
		*v = pages * vmi.PageSize
	}
	m.KReclaimable += m.SReclaimable
	m.Slab = m.SReclaimable + m.SUnreclaim
	kb, _ := s.get("NR_KERNEL_STACK_KB")
	m.KernelStack = kb << 10
	if m.MemTotal, err = k.pageCounter("_totalram_pages"); err != nil {
		return m, err
	}
	for _, f := range []struct {
		symbol, name string
		v            *uint64
	}{{"total_swap_pages", "SwapTotal", &m.SwapTotal}, {"nr_swap_pages", "SwapFree", &m.SwapFree}} {
		*f.v, err = k.pageCounter(f.symbol)
		switch {
		case errors.Is(err, ErrNoSymbol):
			m.Unknown = append(m.Unknown, f.name)
		case err != nil:
			return m, err
		}
	}
	if m.Buffers, err = k.blockdevPages(); err != nil {
		return m, err
	}
	if _, counted := s.get("NR_SWAPCACHE"); !counted {
		m.SwapCached, err = k.swapCachePages()
		switch {
		case errors.Is(err, ErrNoSymbol):
			m.Unknown = append(m.Unknown, "SwapCached")
		case err != nil:
			return m, err
		}
	}
	m.Cached -= min(m.Cached, m.Buffers+m.SwapCached)
	m.MemAvailable, err = k.availablePages(&m)
	return m, err
}

// pageCounter returns a variable that counts pages, in bytes.
func (k *Kernel) pageCounter(symbol string) (uint64, error) {
	a, err := k.Symbol(symbol)
	if err != nil {
		return 0, err
	}
	v, err := k.ReadU64(a)
	return v * vmi.PageSize, err
}

// blockdevPages returns the size of the page caches of block devices. Source:
// block/bdev.c:nr_blockdev_pages.
func (k *Kernel) blockdevPages() (bytes uint64, err error) {
	a, err := k.Symbol("blockdev_superblock")
	if err != nil {
		return 0, err
	}
	sb, err := k.ReadAddr(a)
	if err != nil {
		return 0, err
	}
	inodes, err := k.offsetOf("super_block", "s_inodes")
	if err != nil {
		return 0, err
	}
	for i, err := range inodeLayout.List(k, sb.Add(inodes), "i_sb_list") {
		if err != nil {
			return bytes, err
		}
		c, err := addressSpaceLayout.Load(k, i.Mapping)
		if err != nil {
			return bytes, err
		}
		bytes += c.NrPages * vmi.PageSize
	}
	return bytes, nil
}

// swapCachePages returns the size of the swap cache of a kernel that has no counter of
// it. Source: mm/swap_state.c:total_swapcache_pages, up to 5.11.
func (k *Kernel) swapCachePages() (bytes uint64, err error) {
	spaces, err := k.Symbol("swapper_spaces")
	if err != nil {
		return 0, err
	}
	counts, err := k.Symbol("nr_swapper_spaces")
	if err != nil {
		return 0, err
	}
	size, err := addressSpaceLayout.Size(k)
	if err != nil {
		return 0, err
	}
	const (
		maxSwapFiles = 23      // the fewest that a kernel has: MAX_SWAPFILES
		maxSpaces    = 1 << 16 // of 64 MiB each
	)
	for i := range maxSwapFiles {
		n, err := k.ReadU32(counts.Add(4 * i))
		if err != nil {
			return bytes, err
		}
		first, err := k.ReadAddr(spaces.Add(8 * i))
		if err != nil {
			return bytes, err
		}
		for j := range min(int(n), maxSpaces) {
			c, err := addressSpaceLayout.Load(k, first.Add(j*size))
			if err != nil {
				return bytes, err
			}
			bytes += c.NrPages * vmi.PageSize
		}
	}
	return bytes, nil
}

// availablePages estimates how much memory programs can get without swapping. Source:
// mm/page_alloc.c:si_mem_available.
func (k *Kernel) availablePages(m *MemInfo) (uint64, error) {
	var low, reserve uint64
	for n, err := range k.MemNodes() {
		if err != nil {
			return 0, err
		}
		reserve += n.Reserve * vmi.PageSize
		for z, err := range n.Zones() {
			if err != nil {
				return 0, err
			}
			low += (z.Watermark[WmarkLow] + z.Boost) * vmi.PageSize
		}
	}
	cache := m.ActiveFile + m.InactiveFile
	available := int64(m.MemFree) - int64(reserve) +
		int64(cache-min(cache/2, low)) + int64(m.KReclaimable-min(m.KReclaimable/2, low))
	return uint64(max(available, 0)), nil
}
