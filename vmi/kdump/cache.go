package kdump

import "sync"

// cacheBytes is how much decompressed memory a File keeps.
const cacheBytes = 16 << 20

// cacheShards is the number of parts with a lock of their own.
const cacheShards = 64

// pageCache keeps pages by page frame number. vmi.Cache is not used: here copies are
// made under the lock of a shard, so that the memory of pages is used again instead of
// being left to the garbage collector, and readers of different pages do not meet.
type pageCache struct {
	shards [cacheShards]cacheShard
	free   sync.Pool // *[]byte, of a page
}

type cacheShard struct {
	mu    sync.Mutex
	at    map[uint64]int // page frame → index in slots
	slots []slot
	hand  int // of the clock that looks for a slot to use again
	_     [64]byte
}

type slot struct {
	pfn  uint64
	used bool // since the hand came by
	b    *[]byte
}

func newPageCache(pageSize int) *pageCache {
	c := &pageCache{}
	for i := range c.shards {
		s := &c.shards[i]
		s.at = make(map[uint64]int)
		s.slots = make([]slot, 0, cacheBytes/cacheShards/pageSize)
	}
	c.free.New = func() any { return new(make([]byte, pageSize)) }
	return c
}

func (c *pageCache) shard(pfn uint64) *cacheShard { return &c.shards[pfn%cacheShards] }

// read copies from the page at offset in, if it is there.
func (c *pageCache) read(pfn uint64, in int, p []byte) bool {
	s := c.shard(pfn)
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.at[pfn]
	if ok {
		s.slots[i].used = true
		copy(p, (*s.slots[i].b)[in:])
	}
	return ok
}

// buffer returns memory for a page, to be given to add or release.
func (c *pageCache) buffer() *[]byte { return c.free.Get().(*[]byte) }

func (c *pageCache) release(b *[]byte) { c.free.Put(b) }

// add puts a page into the cache, which owns b from then on.
func (c *pageCache) add(pfn uint64, b *[]byte) {
	s := c.shard(pfn)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.at[pfn]; ok { // another reader was faster
		c.release(b)
		return
	}
	if len(s.slots) < cap(s.slots) {
		s.at[pfn] = len(s.slots)
		s.slots = append(s.slots, slot{pfn: pfn, b: b})
		return
	}
	for s.slots[s.hand].used {
		s.slots[s.hand].used = false
		s.hand = (s.hand + 1) % len(s.slots)
	}
	old := &s.slots[s.hand]
	delete(s.at, old.pfn)
	c.release(old.b)
	*old = slot{pfn: pfn, b: b}
	s.at[pfn] = s.hand
	s.hand = (s.hand + 1) % len(s.slots)
}
