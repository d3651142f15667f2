package vmi

import "sync"

// Cache is a Memory that keeps pages it has read. Over a source that takes a system
// call a read (anonymous RAM of a QEMU process, a compressed dump) it makes walks of
// small structures many times faster; over a mapped file it is of no use.
//
// A Cache of a running guest goes on showing what was: use it while the guest is
// paused, or for memory that does not change (kernel code, types, symbols), and call
// Flush when that ends or after a write. It has no ability but Memory, so that no
// write goes past it unnoticed.
type Cache struct {
	m     Memory
	mu    sync.Mutex
	pages map[Phys]*[PageSize]byte
	order []Phys // ring of the pages held, oldest at next once it is full
	next  int
	gen   uint64 // of Flush
}

// maxCached is the longest read that is served by pages: longer ones would only
// push others out.
const maxCached = 4 * PageSize

// Cached returns a cache of at most the given number of pages over m.
func Cached(m Memory, pages int) *Cache {
	return &Cache{m: m, pages: make(map[Phys]*[PageSize]byte), order: make([]Phys, 0, max(pages, 1))}
}

// Ranges implements Memory.
func (c *Cache) Ranges() []Range { return c.m.Ranges() }

// Flush forgets all pages.
func (c *Cache) Flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.pages)
	c.order, c.next = c.order[:0], 0
	c.gen++
}

// ReadPhys implements Memory.
func (c *Cache) ReadPhys(p []byte, addr Phys) (n int, err error) {
	if len(p) > maxCached {
		return c.m.ReadPhys(p, addr)
	}
	for n < len(p) {
		page := addr &^ (PageSize - 1)
		in := int(addr - page)
		k := min(len(p)-n, PageSize-in)
		if b := c.page(page); b != nil {
			copy(p[n:n+k], b[in:])
		} else if k, err := c.m.ReadPhys(p[n:n+k], addr); err != nil { // RAM in part, or a fault
			return n + k, err
		}
		n, addr = n+k, addr+Phys(k)
	}
	return n, nil
}

// page returns the page at a, nil if it cannot be read as a whole. Pages are never
// changed once they are in the map.
func (c *Cache) page(a Phys) *[PageSize]byte {
	c.mu.Lock()
	b, gen := c.pages[a], c.gen
	c.mu.Unlock()
	if b != nil {
		return b
	}
	b = new([PageSize]byte)
	if n, err := c.m.ReadPhys(b[:], a); err != nil || n < PageSize {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gen != gen { // flushed since: good for this read, not for later ones
		return b
	}
	if _, ok := c.pages[a]; ok { // another goroutine was first
		return b
	}
	if len(c.order) < cap(c.order) {
		c.order = append(c.order, a)
	} else {
		delete(c.pages, c.order[c.next])
		c.order[c.next] = a
		c.next = (c.next + 1) % len(c.order)
	}
	c.pages[a] = b
	return b
}
