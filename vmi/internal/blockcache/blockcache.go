// Package blockcache keeps blocks of a compressed dump that were decompressed.
package blockcache

import "sync"

// Cache holds at most a fixed number of blocks, by a key of the caller's; the oldest
// go first. It is safe for concurrent use. Blocks are never changed.
type Cache struct {
	mu     sync.Mutex
	blocks map[uint64][]byte
	ring   []uint64 // keys, the oldest at next once it is full
	next   int
}

// New returns a cache of n blocks.
func New(n int) *Cache {
	return &Cache{blocks: make(map[uint64][]byte, n), ring: make([]uint64, 0, max(n, 1))}
}

// Get returns the block with that key, made by load if it is not there. load may run
// on several goroutines at a time, for one key too. Its errors are not kept.
func (c *Cache) Get(key uint64, load func() ([]byte, error)) ([]byte, error) {
	c.mu.Lock()
	b, ok := c.blocks[key]
	c.mu.Unlock()
	if ok {
		return b, nil
	}
	b, err := load()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.blocks[key]; ok { // another goroutine was first
		return b, nil
	}
	if len(c.ring) < cap(c.ring) {
		c.ring = append(c.ring, key)
	} else {
		delete(c.blocks, c.ring[c.next])
		c.ring[c.next] = key
		c.next = (c.next + 1) % len(c.ring)
	}
	c.blocks[key] = b
	return b, nil
}
