package kernel

import (
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"strings"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// ErrNotSlab is wrapped by errors about memory that is in no slab.
var ErrNotSlab = errors.New("is not part of a slab")

// SlabCache is a cache of objects of one size, of the allocator SLUB. Caches of like
// objects share one structure, whose name is that of the first.
type SlabCache struct {
	k    *Kernel
	Addr Addr // of the kmem_cache
	Name string
	slabCacheFields
}

type slabCacheFields struct {
	Flags      uint64 `k:"flags"`       // SLAB_*: see FlagNames
	Size       uint32 `k:"size"`        // bytes from one object to the next
	ObjectSize uint32 `k:"object_size"` // bytes of it that whoever allocates may use
	Align      uint32 `k:"align"`
	RedLeftPad uint32 `k:"red_left_pad,opt"` // bytes before an object, if it is debugged
	RefCount   int32  `k:"refcount"`         // caches that share the structure

	NameAddr     Addr   `k:"name"`
	OrderObjects uint32 `k:"oo"`
}

type kmemCacheNode struct {
	NrPartial    uint64 `k:"nr_partial"`
	Partial      Addr   `k:"&partial"`
	NrSlabs      int64  `k:"nr_slabs"`
	TotalObjects int64  `k:"total_objects"`
}

type slabFields struct {
	Flags    uint64 `k:"__page_flags|flags"`
	PageType uint32 `k:"__page_type|page_type,opt"`
	Cache    Addr   `k:"slab_cache"`
	Inuse    uint16 `k:"inuse"`
	Objects  uint16 `k:"objects"`
	Frozen   bool   `k:"frozen"`
}

var (
	slabCacheLayout     = LayoutOf[slabCacheFields]("kmem_cache")
	kmemCacheNodeLayout = LayoutOf[kmemCacheNode]("kmem_cache_node")
	slabLayout          = LayoutOf[slabFields]("slab|page") // part of struct page before 5.17
)

// Order returns the binary logarithm of the number of pages in a slab. Slabs that were
// made when memory was scarce may be smaller.
func (c *SlabCache) Order() uint { return uint(c.OrderObjects >> 16) } // OO_SHIFT

// ObjectsPerSlab returns the number of objects in a slab of that order.
func (c *SlabCache) ObjectsPerSlab() int { return int(c.OrderObjects & 0xffff) }

// SlabCacheAt reads the kmem_cache at a. The error wraps ErrNoType if the kernel's
// allocator is another one than SLUB.
func (k *Kernel) SlabCacheAt(a Addr) (*SlabCache, error) {
	c := &SlabCache{k: k, Addr: a}
	err := slabCacheLayout.LoadInto(k, a, &c.slabCacheFields)
	if err != nil {
		return nil, err
	}
	if c.Order() > 63 || c.Size == 0 {
		return nil, corrupt(a, "kmem_cache", "objects of %d bytes, slabs of order %d", c.Size, c.Order())
	}
	c.Name, err = k.CString(c.NameAddr, 256)
	return c, err
}

// SlabCaches yields all caches, in the order of /proc/slabinfo. One that cannot be read
// is yielded as its error, and the walk goes on; a broken link ends it. Source:
// mm/slab_common.c:slab_start.
func (k *Kernel) SlabCaches() iter.Seq2[*SlabCache, error] {
	return func(yield func(*SlabCache, error) bool) {
		off, err := k.offsetOf("kmem_cache", "list")
		if err != nil {
			yield(nil, err)
			return
		}
		head, err := k.slabCachesHead(off)
		if err != nil {
			yield(nil, err)
			return
		}
		for node, err := range k.List(head) {
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(k.SlabCacheAt(node - Addr(off))) {
				return
			}
		}
	}
}

// slabCachesHead returns the list of caches: slab_caches, or in a kernel without symbols
// of variables the only node in the kernel image of the list that the cache of task_structs is in.
func (k *Kernel) slabCachesHead(off int) (Addr, error) {
	head, missing := k.Symbol("slab_caches")
	if missing == nil {
		return head, nil
	}
	t, err := k.Task(1)
	if err != nil {
		return 0, err
	}
	o, err := k.SlabOf(t.Addr)
	if err != nil {
		return 0, err
	}
	return k.headOf(o.Cache.Addr.Add(off), missing)
}

// FlagNames returns the names of the flags that are set, as the kernel's source has them:
// "SLAB_RECLAIM_ACCOUNT". Those that have none in the types are left out. Source:
// include/linux/slab.h.
func (c *SlabCache) FlagNames() []string {
	var names []string
	if e, err := c.k.types.Enum("_slab_flag_bits"); err == nil { // since 6.10
		for _, v := range e.Values {
			if v.Value < 64 && c.Flags>>v.Value&1 != 0 {
				names = append(names, strings.TrimPrefix(v.Name, "_"))
			}
		}
		return names
	}
	for f := c.Flags; f != 0; f &= f - 1 {
		if n := slabFlagNames[f&-f]; n != "" {
			names = append(names, n)
		}
	}
	return names
}

// slabFlagNames are the flags that had the same values in all kernels before 6.10.
var slabFlagNames = map[uint64]string{
	0x100: "SLAB_CONSISTENCY_CHECKS", 0x400: "SLAB_RED_ZONE", 0x800: "SLAB_POISON", 0x1000: "SLAB_KMALLOC",
	0x2000: "SLAB_HWCACHE_ALIGN", 0x4000: "SLAB_CACHE_DMA", 0x8000: "SLAB_CACHE_DMA32", 0x10000: "SLAB_STORE_USER",
	0x20000: "SLAB_RECLAIM_ACCOUNT", 0x40000: "SLAB_PANIC", 0x80000: "SLAB_TYPESAFE_BY_RCU", 0x100000: "SLAB_MEM_SPREAD",
	0x200000: "SLAB_TRACE", 0x800000: "SLAB_NOLEAKTRACE", 0x4000000: "SLAB_ACCOUNT",
}

// SlabInfo is how many objects and slabs a cache has.
type SlabInfo struct {
	// Active are objects that are allocated, and those free ones that lie ready for one
	// CPU (its current slab, or since 6.18 its sheaves).
	Active  uint64
	Objects uint64 // there is room for
	Slabs   uint64
	Partial uint64 // slabs in lists of those that have free objects
}

// Info counts the cache's objects, as /proc/slabinfo does. The guest may run: the sum is
// as racy as the kernel's own. Source: mm/slub.c:get_slabinfo.
func (c *SlabCache) Info() (s SlabInfo, err error) {
	for range 3 { // a slab may be taken from a list that is walked
		if s, err = c.info(); err == nil {
			break
		}
	}
	return s, err
}

func (c *SlabCache) info() (s SlabInfo, err error) {
	nodes, err := c.k.onlineNodes()
	if err != nil {
		return s, err
	}
	var free uint64
	slabs := 0
	for _, n := range nodes {
		a, err := c.node(n)
		if err != nil {
			return s, err
		}
		if a == 0 {
			continue
		}
		node, err := kmemCacheNodeLayout.Load(c.k, a)
		if err != nil {
			return s, err
		}
		s.Slabs += uint64(node.NrSlabs)
		s.Objects += uint64(node.TotalObjects)
		s.Partial += node.NrPartial
		for slab, err := range slabLayout.List(c.k, node.Partial, "slab_list") {
			if slabs++; err == nil && slabs > maxWalk {
				err = ErrLimit
			}
			if err != nil {
				return s, fmt.Errorf("%s: %w", c.Name, err)
			}
			if slab.Cache != c.Addr || slab.Inuse > slab.Objects {
				return s, corrupt(a, "kmem_cache_node", "a slab of %s has %d of %d objects", slab.Cache, slab.Inuse, slab.Objects)
			}
			free += uint64(slab.Objects - slab.Inuse)
		}
	}
	s.Active = s.Objects - min(free, s.Objects)
	return s, nil
}

// node returns the kmem_cache_node of a NUMA node, 0 if there is none. Source:
// mm/slab.h:get_node.
func (c *SlabCache) node(n int) (Addr, error) {
	first, err := c.k.offsetOf("kmem_cache", "node[0]|per_node[0].node")
	if err != nil || n == 0 {
		return c.k.readAddrAt(c.Addr, first, err)
	}
	second, err := c.k.offsetOf("kmem_cache", "node[1]|per_node[1].node")
	return c.k.readAddrAt(c.Addr, first+n*(second-first), err)
}

// readAddrAt is ReadAddr of a+off, unless there is an error already.
func (k *Kernel) readAddrAt(a Addr, off int, err error) (Addr, error) {
	if err != nil {
		return 0, err
	}
	return k.ReadAddr(a.Add(off))
}

// SlabObject is a place in a slab: an object, or what lies between objects.
type SlabObject struct {
	Cache  *SlabCache
	Slab   Addr // of the slab's first byte
	Order  uint // binary logarithm of the number of pages of this slab
	Inuse  int  // objects of the slab that are allocated or lie ready for a CPU
	Frozen bool // the slab belongs to a CPU

	Index  int  // of the object in the slab
	Addr   Addr // of the object
	Offset int  // of the place in the object; the object's size or more is behind it
}

// SlabOf returns the object of a slab cache that a lies in. Whether it is allocated is not
// looked at. The error wraps ErrNotSlab if a is in no slab. Source: mm/slab.h:virt_to_slab,
// include/linux/slub_def.h:obj_to_index.
func (k *Kernel) SlabOf(a Addr) (*SlabObject, error) {
	phys, err := k.Phys(a)
	if err != nil {
		return nil, err
	}
	p, err := k.Page(uint64(phys) / vmi.PageSize)
	if err != nil {
		return nil, err
	}
	head := k.vmemmap.Add(int(p.Head) * k.pageStruct)
	s, err := slabLayout.Load(k, head)
	if err != nil {
		return nil, err
	}
	if is, err := k.isSlab(&s); err != nil || !is {
		return nil, &PathError{Path: "page", Addr: head, Err: errors.Join(err, ErrNotSlab)}
	}
	o := &SlabObject{Inuse: int(s.Inuse), Frozen: s.Frozen}
	if o.Cache, err = k.SlabCacheAt(s.Cache); err != nil {
		return nil, err
	}
	o.Slab = a - a%vmi.PageSize - Addr(p.PFN-p.Head)*vmi.PageSize
	size := int(o.Cache.Size)
	o.Order = uint(bits.Len(uint(max(size*int(s.Objects)-1, 0) / vmi.PageSize)))
	in := int(a-o.Slab) - int(o.Cache.RedLeftPad)
	o.Index = max(in, 0) / size
	if o.Index >= int(s.Objects) {
		return nil, &PathError{Path: "slab", Addr: a, Err: fmt.Errorf("%w: it is behind the last object of %s", ErrNotSlab, o.Cache.Name)}
	}
	o.Offset = in - o.Index*size
	o.Addr = a.Add(-o.Offset)
	return o, nil
}

// isSlab says whether a page is (the first) of a slab: it is of that type since 6.10,
// and has a flag before. Source: include/linux/page-flags.h:PageSlab.
func (k *Kernel) isSlab(s *slabFields) (bool, error) {
	if e, err := k.types.Enum("pagetype"); err == nil {
		if v, err := e.EnumValue("PGTY_slab"); err == nil {
			return int64(s.PageType>>24) == v, nil
		}
	}
	e, err := k.types.Enum("pageflags")
	if err != nil {
		return false, err
	}
	v, err := e.EnumValue("PG_slab")
	return err == nil && s.Flags>>(v&63)&1 != 0, err
}
