package symbols

import (
	"hash/maphash"
	"math/bits"
	"slices"
)

// plain holds decoded symbols: the names in one arena, and a hash table of chains
// over them. Its hash is seeded, so that no guest can make the chains long.
type plain struct {
	arena []byte
	ends  []uint32 // end of name i in arena
	addrs []uint64 // rising; nil if kallsyms has them
	types []byte

	seed  maphash.Seed
	heads []uint32 // 1 + index of the first symbol of a chain
	next  []uint32 // 1 + index of the next one, a later address
}

func (p *plain) nameBytes(i int) []byte {
	start := uint32(0)
	if i > 0 {
		start = p.ends[i-1]
	}
	return p.arena[start:p.ends[i]]
}

// index builds the hash table. Chains are filled from the end, so that they rise.
func (p *plain) index() {
	n := len(p.ends)
	size := 1 << bits.Len(uint(n))
	p.seed = maphash.MakeSeed()
	p.heads = make([]uint32, size)
	p.next = make([]uint32, n)
	for i := n - 1; i >= 0; i-- {
		h := maphash.Bytes(p.seed, p.nameBytes(i)) & uint64(size-1)
		p.next[i] = p.heads[h]
		p.heads[h] = uint32(i + 1)
	}
}

func (p *plain) find(name string) (int, bool) {
	h := maphash.String(p.seed, name) & uint64(len(p.heads)-1)
	return p.chain(p.heads[h], name)
}

// findNext returns the next symbol after i that is also called name.
func (p *plain) findNext(i int, name string) (int, bool) { return p.chain(p.next[i], name) }

func (p *plain) chain(at uint32, name string) (int, bool) {
	for at != 0 {
		i := int(at - 1)
		if string(p.nameBytes(i)) == name {
			return i, true
		}
		at = p.next[i]
	}
	return 0, false
}

// New makes a table of symbols in any order: those of a module, or of a file that
// this package cannot read. It keeps no reference to them.
func New(symbols []Symbol) *Table {
	order := slices.Clone(symbols)
	slices.SortStableFunc(order, func(a, b Symbol) int {
		switch {
		case a.Addr < b.Addr:
			return -1
		case a.Addr > b.Addr:
			return 1
		}
		return 0
	})
	p := &plain{}
	for _, s := range order {
		p.arena = append(p.arena, s.Name...)
		p.ends = append(p.ends, uint32(len(p.arena)))
		p.addrs = append(p.addrs, s.Addr)
		p.types = append(p.types, s.Type)
	}
	p.index()
	return &Table{p: p}
}
