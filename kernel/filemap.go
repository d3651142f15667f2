package kernel

import (
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// ErrNotCached is wrapped by errors about a part of a file that is only on disk.
var ErrNotCached = errors.New("not in the guest's memory")

// ErrSwapped is wrapped by errors about memory that was swapped out.
var ErrSwapped = errors.New("swapped out")

// CacheError says which page of a file could not be read. It wraps ErrNotCached or
// ErrSwapped.
type CacheError struct {
	Mapping Addr
	Index   uint64 // of the page in the file
	Swap    SwapEntry
	Err     error
}

func (e *CacheError) Error() string {
	if errors.Is(e.Err, ErrSwapped) {
		return fmt.Sprintf("page %d of address_space %s: %v to slot %d of swap area %d", e.Index, e.Mapping, e.Err, e.Swap.Offset, e.Swap.Type)
	}
	return fmt.Sprintf("page %d of address_space %s: %v", e.Index, e.Mapping, e.Err)
}

func (e *CacheError) Unwrap() error { return e.Err }

// SwapEntry is a place in a swap area.
type SwapEntry struct {
	Type   uint8
	Offset uint64 // in pages
}

type addressSpace struct {
	Host    Addr   `k:"host"`
	Pages   Addr   `k:"&i_pages"`
	NrPages uint64 `k:"nrpages"`
	AOps    Addr   `k:"a_ops"`
}

type pageState struct {
	Flags    uint64 `k:"flags"`
	Mapping  Addr   `k:"mapping"`
	Index    uint64 `k:"index|__folio_index"`
	Compound uint64 `k:"compound_info|compound_head"`
}

var (
	addressSpaceLayout = LayoutOf[addressSpace]("address_space")
	pageStateLayout    = LayoutOf[pageState]("page")
)

// PageCache is the part of a file's content that is in memory. For files on tmpfs
// (also memfd_create, shared anonymous and System V memory) that is the content,
// and what is absent reads as zeros; for other files what is absent is on disk.
type PageCache struct {
	k    *Kernel
	Addr Addr // of the address_space
	addressSpace
	Size  int64 // of the file, in bytes
	Shmem bool  // on tmpfs

	uptodate, dirty, writeback uint64 // bits of page->flags
}

// PageCache returns the cached content of the inode. For hugetlbfs the error wraps
// ErrWrongKind. Source: struct address_space.
func (i *Inode) PageCache() (*PageCache, error) {
	sb, err := i.SuperBlock()
	if err != nil {
		return nil, err
	}
	if sb.Magic == MagicHugetlbfs {
		return nil, &PathError{Path: "inode", Addr: i.Addr, Err: fmt.Errorf("%w: on hugetlbfs", ErrWrongKind)}
	}
	c := &PageCache{k: i.k, Addr: i.Mapping, Size: i.Size, Shmem: sb.Magic == MagicTmpfs}
	if err := addressSpaceLayout.LoadInto(i.k, i.Mapping, &c.addressSpace); err != nil {
		return nil, err
	}
	e, err := i.k.types.Enum("pageflags")
	if err != nil {
		return nil, err
	}
	for name, bit := range map[string]*uint64{"PG_uptodate": &c.uptodate, "PG_dirty": &c.dirty, "PG_writeback": &c.writeback} {
		v, err := e.EnumValue(name)
		if err != nil {
			return nil, err
		}
		*bit = 1 << (v & 63)
	}
	return c, nil
}

// CachedPages are pages of a file that lie one after another in the file and in
// memory: one page, or a large folio.
type CachedPages struct {
	Index     uint64 // of the first page in the file
	Count     uint64
	Phys      vmi.Phys // of the first page; meaningless if Swapped
	Dirty     bool     // memory is newer than the disk
	Writeback bool     // being written to disk
	Zero      bool     // allocated but never written to: reads as zeros, the memory holds garbage
	Swapped   bool
	Swap      SwapEntry
}

// swapTypeShift is SWP_TYPE_SHIFT: where an entry of a page cache holds the number
// of the swap area.
const swapTypeShift = 58

// Pages yields what is present, in order. Pages of files other than on tmpfs that
// are not read in yet are left out. An error ends the walk. Source:
// mm/filemap.c:find_get_entries.
func (c *PageCache) Pages() iter.Seq2[CachedPages, error] {
	return func(yield func(CachedPages, error) bool) {
		for e, err := range c.k.XArray(c.addressSpace.Pages) {
			if err != nil {
				yield(CachedPages{}, fmt.Errorf("page cache: %w", err))
				return
			}
			p, ok, err := c.entry(e.Entry, e.Index, 1<<(e.Order&63))
			if err != nil {
				yield(p, err)
				return
			}
			if ok && !yield(p, nil) {
				return
			}
		}
	}
}

// Page returns the page at an index. ok is false if it is not in memory.
func (c *PageCache) Page(index uint64) (p CachedPages, ok bool, err error) {
	e, err := c.k.XALoad(c.addressSpace.Pages, index)
	if err != nil || e == 0 {
		return p, false, err
	}
	return c.entry(e, index, 1)
}

// entry makes sense of one entry of the xarray.
func (c *PageCache) entry(e, index, count uint64) (CachedPages, bool, error) {
	p := CachedPages{Index: index, Count: count}
	if e&1 != 0 {
		// On tmpfs a swapped page; elsewhere a note on a page that was dropped.
		v := e >> 1
		p.Swapped, p.Swap = true, SwapEntry{uint8(v >> swapTypeShift), v & (1<<swapTypeShift - 1)}
		return p, c.Shmem, nil
	}
	head := Addr(e)
	s, err := pageStateLayout.Load(c.k, head)
	if err != nil {
		return p, false, err
	}
	off := index - s.Index
	if s.Mapping != c.Addr || index < s.Index || off > maxFolio || s.Compound&1 != 0 {
		return p, false, corrupt(head, "page", "at index %d: of mapping %s, index %d", index, s.Mapping, s.Index)
	}
	if last := off + count - 1; last > 0 {
		// The last page that is claimed must be part of a folio.
		tail, err := pageStateLayout.Load(c.k, head.Add(int(last)*c.k.pageStruct))
		if err != nil {
			return p, false, err
		}
		if tail.Compound&1 == 0 {
			return p, false, corrupt(head, "page", "%d pages that are no folio", last+1)
		}
	}
	phys, err := c.k.pagePhys(head)
	if err != nil {
		return p, false, err
	}
	p.Phys = phys + vmi.Phys(off*vmi.PageSize)
	p.Dirty, p.Writeback = s.Flags&c.dirty != 0, s.Flags&c.writeback != 0
	if s.Flags&c.uptodate == 0 {
		p.Zero = c.Shmem
		return p, c.Shmem, nil
	}
	return p, true, nil
}

// maxFolio bounds the pages of one folio: 1 GiB.
const maxFolio = 1 << 18

// ReadAt reads the file as a process would, from memory alone. Holes of tmpfs are
// zeros; a page that is not in memory gives a *CacheError after the n bytes before
// it; the end of the file gives io.EOF. It implements io.ReaderAt.
func (c *PageCache) ReadAt(b []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	if off >= c.Size {
		return 0, io.EOF
	}
	if int64(len(b)) > c.Size-off {
		n, err := c.ReadAt(b[:c.Size-off], off)
		if err == nil {
			err = io.EOF
		}
		return n, err
	}
	for n < len(b) {
		at := uint64(off) + uint64(n)
		in := at % vmi.PageSize
		part := b[n:min(len(b), n+int(vmi.PageSize-in))]
		p, ok, err := c.Page(at / vmi.PageSize)
		switch {
		case err != nil:
			return n, err
		case p.Swapped && ok:
			return n, &CacheError{c.Addr, p.Index, p.Swap, ErrSwapped}
		case !ok && !c.Shmem:
			return n, &CacheError{Mapping: c.Addr, Index: at / vmi.PageSize, Err: ErrNotCached}
		case !ok || p.Zero:
			clear(part)
			n += len(part)
			continue
		}
		m, err := c.k.mem.ReadPhys(part, p.Phys+vmi.Phys(in))
		n += m
		if err != nil {
			return n, fmt.Errorf("page cache: %w", err)
		}
	}
	return n, nil
}
