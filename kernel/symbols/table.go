// Package symbols reads the symbol table of a Linux kernel: from the kallsyms
// tables in its own memory, or from a System.map file.
//
// Every distribution kernel carries the names and addresses of its functions, and
// mostly of its variables too, for its own oopses: some 150,000 names, compressed
// by a dictionary of 256 tokens into about 2 MiB of read-only data. A [Table] over
// them is opened without decoding them: an index that newer kernels also carry
// (kallsyms_seqs_of_names) answers [Table.Lookup] by binary search. Where it is
// missing, Open decodes all names once.
//
// The layout of those tables changed five times between Linux 5.10 and 7.0
// (kernel/kallsyms.c, scripts/kallsyms.c). [Open] does not go by version: it tries
// each and keeps the one in which all addresses rise and known symbols are where
// they must be.
//
// Names are not unique: two files may have a static function of the same name.
package symbols

import "iter"

// Symbol is one name. Type is nm's letter: T for a global function, t for a local
// one, D, d, B, b, R, r for data, A for a per-CPU variable of a kernel before 6.15,
// whose Addr is an offset into the per-CPU area, and so on. Addr is a virtual address
// of the running kernel, its randomisation included.
type Symbol struct {
	Name string
	Addr uint64
	Type byte
}

// Table is a set of symbols in address order. It is immutable and safe for
// concurrent use. A nil Table is empty.
type Table struct {
	k *kallsyms // addresses, and with seqs the names too; nil if parsed from a file
	p *plain    // names if k cannot be searched, and addresses if k is nil

	end uint64 // of what the last symbol names; 0 if that is a mere mark
}

// Len returns the number of symbols.
func (t *Table) Len() int {
	switch {
	case t == nil:
		return 0
	case t.k != nil:
		return t.k.n
	}
	return len(t.p.addrs)
}

// Lookup returns the address of name, the lowest if there are several.
func (t *Table) Lookup(name string) (addr uint64, ok bool) {
	if t == nil || name == "" {
		return 0, false
	}
	if t.p == nil {
		i, ok := t.k.find(name)
		if !ok {
			return 0, false
		}
		return t.k.addr(t.k.seq(i)), true
	}
	i, ok := t.p.find(name)
	if !ok {
		return 0, false
	}
	return t.addr(i), true
}

// LookupAll returns every address of name, rising; nil if there is none.
func (t *Table) LookupAll(name string) []uint64 {
	if t == nil || name == "" {
		return nil
	}
	var all []uint64
	if t.p == nil {
		for i, ok := t.k.find(name); ok; i, ok = t.k.findNext(i, name) {
			all = append(all, t.k.addr(t.k.seq(i)))
		}
		return all
	}
	for i, ok := t.p.find(name); ok; i, ok = t.p.findNext(i, name) {
		all = append(all, t.addr(i))
	}
	return all
}

// Resolve looks up many names. Those that do not exist are absent from the result.
func (t *Table) Resolve(names ...string) map[string]uint64 {
	m := make(map[string]uint64, len(names))
	for _, n := range names {
		if a, ok := t.Lookup(n); ok {
			m[n] = a
		}
	}
	return m
}

// maxGap is how far beyond a symbol At still names it: larger than any object of
// the kernel image, smaller than the distance from the per-CPU offsets to the image.
const maxGap = 64 << 20

// At returns the symbol that addr lies in or behind, and the distance from it. Of
// several at one address it is the first. ok is false outside the kernel image.
func (t *Table) At(addr uint64) (name string, off uint64, ok bool) {
	above := t.above(addr)
	i := above - 1
	if i < 0 {
		return "", 0, false
	}
	if off = addr - t.addr(i); off > maxGap || above == t.Len() && off != 0 && addr >= t.end {
		return "", 0, false
	}
	return t.symbol(t.first(i)).Name, off, true
}

// Span returns the symbol that addr lies in and the bytes from there to the next
// one, which kallsyms takes for its size. Of several at one address it is the first.
// Source: kernel/kallsyms.c:get_symbol_pos.
func (t *Table) Span(addr uint64) (s Symbol, size uint64, ok bool) {
	above := t.above(addr)
	if above == 0 || above == t.Len() && addr >= t.end {
		return Symbol{}, 0, false
	}
	s = t.symbol(t.first(above - 1))
	end := t.end
	if above < t.Len() {
		end = t.addr(above)
		if t.end > addr {
			end = min(end, t.end)
		}
	}
	return s, end - s.Addr, true
}

// above returns the index of the first symbol above addr.
func (t *Table) above(addr uint64) int {
	lo, hi := 0, t.Len()
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if t.addr(m) <= addr {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo
}

// first returns the index of the first symbol at the address of symbol i.
func (t *Table) first(i int) int {
	for base := t.addr(i); i > 0 && t.addr(i-1) == base; {
		i--
	}
	return i
}

func (t *Table) addr(i int) uint64 {
	if t.k != nil {
		return t.k.addr(i)
	}
	return t.p.addrs[i]
}

func (t *Table) symbol(i int) Symbol {
	if t.p != nil {
		return Symbol{Name: string(t.p.nameBytes(i)), Addr: t.addr(i), Type: t.p.types[i]}
	}
	var buf [2 * maxName]byte
	name, typ := t.k.name(i, buf[:0])
	return Symbol{Name: string(name), Addr: t.k.addr(i), Type: typ}
}

// All yields every symbol in address order.
func (t *Table) All() iter.Seq[Symbol] {
	return func(yield func(Symbol) bool) {
		if t != nil && t.p == nil {
			t.k.all(yield)
			return
		}
		for i := range t.Len() {
			if !yield(t.symbol(i)) {
				return
			}
		}
	}
}

// Until returns the table with end as the end of what its last symbol names. Without
// it that symbol is taken for a mark of the end, as a kernel's _end is. The two share
// memory.
func (t *Table) Until(end uint64) *Table {
	if t == nil {
		return nil
	}
	u := *t
	u.end = end
	return &u
}

// Slid returns a table with delta added to the kernel addresses among its addresses,
// those in the upper half of the address space; per-CPU offsets stay. It is for tables
// of files, whose addresses are those that the kernel was linked at.
func (t *Table) Slid(delta uint64) *Table {
	if t == nil || t.p == nil || t.k != nil || delta == 0 {
		return t
	}
	p := *t.p
	p.addrs = make([]uint64, len(t.p.addrs))
	for i, a := range t.p.addrs {
		if a>>63 != 0 {
			a += delta
		}
		p.addrs[i] = a
	}
	return &Table{p: &p, end: t.end}
}

// Moved returns the table with delta added to every address. It is for a table
// whose addresses are relative to its own place (7.0 and newer) and that was opened
// elsewhere than where the kernel has it. The two share memory.
func (t *Table) Moved(delta uint64) *Table {
	m := *t
	if t.k != nil {
		k := *t.k
		k.slot += delta
		if k.enc == encBase || k.enc == encPercpu {
			k.base += delta
		}
		m.k = &k
		return &m
	}
	p := *t.p
	p.addrs = make([]uint64, len(t.p.addrs))
	for i, a := range t.p.addrs {
		p.addrs[i] = a + delta
	}
	m.p = &p
	return &m
}
