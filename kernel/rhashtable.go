package kernel

import (
	"iter"
)

type rhashtable struct {
	Tbl        Addr   `k:"tbl"`
	HeadOffset uint16 `k:"p.head_offset"`
	RHList     bool   `k:"rhlist"`
}

type bucketTable struct {
	Size    uint32 `k:"size"`
	Nest    uint32 `k:"nest"`
	Future  Addr   `k:"future_tbl"`
	Buckets Addr   `k:"&buckets"`
}

type rhlistHead struct {
	Next Addr `k:"next"`
}

var (
	rhashtableLayout  = LayoutOf[rhashtable]("rhashtable")
	bucketTableLayout = LayoutOf[bucketTable]("bucket_table")
	rhlistHeadLayout  = LayoutOf[rhlistHead]("rhlist_head")
)

const (
	maxRHBuckets = 1 << 30
	maxRHTables  = 8 // tables that a rehash under way can chain
	rhNestShift  = 9 // a page of a nested table holds so many pointers, as a power of two
)

// RHashTable walks a resizable hash table, given the address of its struct
// rhashtable, and yields the address of each element (not of its rhash_head). Of a
// table that is being resized it walks the old and the new buckets, so that an
// element may come twice. Elements with the same key (rhltable) are yielded one by
// one. A broken chain is yielded as an error, and the walk goes on with the next
// bucket. Source: lib/rhashtable.c:__rhashtable_walk_find_next.
func (k *Kernel) RHashTable(a Addr) iter.Seq2[Addr, error] {
	return func(yield func(Addr, error) bool) {
		h, err := rhashtableLayout.Load(k, a)
		if err != nil {
			yield(0, err)
			return
		}
		w := rhWalk{k: k, table: a, rhashtable: h, yield: yield}
		for t, n := h.Tbl, 0; t != 0; n++ {
			if n >= maxRHTables {
				yield(0, &PathError{Path: "rhashtable", Addr: a, Err: ErrLimit})
				return
			}
			b, err := bucketTableLayout.Load(k, t)
			if err != nil {
				yield(0, err)
				return
			}
			if b.Size == 0 || b.Size&(b.Size-1) != 0 || b.Size > maxRHBuckets {
				yield(0, corrupt(t, "bucket_table", "%d buckets", b.Size))
				return
			}
			if !w.buckets(t, &b) {
				return
			}
			t = b.Future
		}
	}
}

type rhWalk struct {
	k     *Kernel
	table Addr
	rhashtable
	yield func(Addr, error) bool
	steps int
}

// step counts towards the bound of the whole walk.
func (w *rhWalk) step(at Addr) bool {
	if w.steps++; w.steps > maxWalk {
		w.yield(0, &PathError{Path: "rhashtable", Addr: at, Err: ErrLimit})
		return false
	}
	return true
}

func (w *rhWalk) buckets(t Addr, b *bucketTable) bool {
	if b.Nest != 0 {
		return w.nestedBuckets(t, b)
	}
	for i := range int(b.Size) {
		if !w.step(t) || !w.chain(b.Buckets.Add(8*i)) {
			return false
		}
	}
	return true
}

// nestedBuckets walks a table that was too large to allocate in one piece: its only
// bucket leads to a page of 1<<nest pointers, each of which leads to a page of
// pointers, and so on, until a page covers what is left. Source:
// lib/rhashtable.c:nested_bucket_table_free.
func (w *rhWalk) nestedBuckets(t Addr, b *bucketTable) bool {
	if b.Nest > rhNestShift || b.Size>>b.Nest == 0 {
		return w.yield(0, corrupt(t, "bucket_table", "%d buckets, nest %d", b.Size, b.Nest))
	}
	root, err := w.k.ReadAddr(b.Buckets)
	if err != nil {
		return w.yield(0, &PathError{Path: "bucket_table", Addr: t, Err: err})
	}
	for i := range 1 << b.Nest {
		if root != 0 && !w.nested(t, root.Add(8*i), int(b.Size)>>b.Nest) {
			return false
		}
	}
	return true
}

func (w *rhWalk) nested(t, a Addr, size int) bool {
	page, err := w.k.ReadAddr(a)
	if err != nil {
		return w.yield(0, &PathError{Path: "nested_table", Addr: t, Err: err})
	}
	for i := range min(size, 1<<rhNestShift) {
		if page == 0 {
			return true // no element needed it yet
		}
		at := page.Add(8 * i)
		switch {
		case !w.step(t):
			return false
		case size > 1<<rhNestShift:
			if !w.nested(t, at, size>>rhNestShift) {
				return false
			}
		case !w.chain(at):
			return false
		}
	}
	return true
}

// chain walks one bucket. Its head carries a lock in bit 0 (the lock makes an empty
// bucket's head 1); the end of the chain is its own address with bit 0 set.
func (w *rhWalk) chain(bucket Addr) bool {
	next, err := w.k.ReadAddr(bucket)
	if err != nil {
		return w.yield(0, &PathError{Path: "rhash_head", Addr: bucket, Err: err})
	}
	next &^= 1
	var loop loopCheck
	for next != 0 && next&1 == 0 {
		if !next.IsKernel() || next&7 != 0 {
			return w.yield(0, corrupt(bucket, "rhash_head", "next is %s", next))
		}
		if !w.step(bucket) {
			return false
		}
		if loop.seen(next) {
			return w.yield(0, &PathError{Path: "rhash_head", Addr: bucket, Err: ErrLimit})
		}
		if !w.entry(next) {
			return false
		}
		if next, err = w.k.ReadAddr(next); err != nil {
			return w.yield(0, &PathError{Path: "rhash_head", Addr: bucket, Err: err})
		}
	}
	return true
}

// entry yields the element whose rhash_head lies at node, and those with its key.
func (w *rhWalk) entry(node Addr) bool {
	for w.step(node) {
		if !w.yield(node-Addr(w.HeadOffset), nil) {
			return false
		}
		if !w.RHList {
			return true
		}
		l, err := rhlistHeadLayout.Load(w.k, node)
		if err != nil {
			return w.yield(0, err)
		}
		if l.Next == 0 {
			return true
		}
		node = l.Next
	}
	return false
}
