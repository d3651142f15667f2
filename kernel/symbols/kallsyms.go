package symbols

import (
	"bytes"
	"encoding/binary"
)

// Bounds on what a guest may claim.
const (
	maxSymbols  = 1 << 21 // a kernel with all debug options has 300,000
	maxNames    = 32 << 20
	maxName     = 1024 // KSYM_NAME_LEN is 512 (128 before 6.1)
	markEvery   = 64   // names between two entries of kallsyms.marks
	tokenCount  = 256
	maxTokenTab = 1 << 16 // kallsyms_token_index is u16
	maxArena    = 128 << 20
)

// encoding says how kallsyms stores the address of symbol i.
type encoding uint8

const (
	encPercpu   encoding = iota // s32: ≥ 0 absolute, < 0 base-1-v (x86-64 SMP until 6.14)
	encBase                     // base + u32
	encPlace                    // address of the slot + s32 (7.0+)
	encAbsolute                 // u64 (without KALLSYMS_BASE_RELATIVE, until 6.11)
)

func (e encoding) String() string {
	return [...]string{"per-CPU absolute or base-relative", "base-relative", "place-relative", "absolute"}[e]
}

// kallsyms is the compressed table, copied from the guest once.
type kallsyms struct {
	n     int
	names []byte   // length byte(s) and tokens of each symbol
	uleb  bool     // lengths of two bytes exist (6.1+)
	marks []uint32 // where every markEvery-th name starts
	seqs  []byte   // 3 bytes each: symbol indices in name order; nil if missing
	tok   tokens

	offsets []byte // 4 bytes each, 8 if encAbsolute
	enc     encoding
	base    uint64 // kallsyms_relative_base
	slot    uint64 // address of offsets[0]
}

// tokens is the dictionary. Nearly all tokens fit in 16 bytes and are copied as
// such, whatever their length.
type tokens struct {
	short [tokenCount][16]byte
	size  [tokenCount]uint16
	long  [tokenCount][]byte // nil if size ≤ 16
}

// dictionary checks that table and index are one: each string begins where the index
// says. It calls each with all of them, if each is not nil.
func dictionary(table, index []byte, each func(i, begin, end int)) bool {
	if len(index) < 2*tokenCount {
		return false
	}
	at := 0
	for i := range tokenCount {
		if int(binary.LittleEndian.Uint16(index[2*i:])) != at || at >= len(table) {
			return false
		}
		n := bytes.IndexByte(table[at:min(at+maxName+1, len(table))], 0)
		if n < 0 {
			return false
		}
		if each != nil {
			each(i, at, at+n)
		}
		at += n + 1
	}
	return true
}

// newTokens reads the dictionary; it keeps table.
func newTokens(table, index []byte) (*tokens, bool) {
	t := &tokens{}
	ok := dictionary(table, index, func(i, begin, end int) {
		t.size[i] = uint16(end - begin)
		if copy(t.short[i][:], table[begin:end]); end-begin > 16 {
			t.long[i] = table[begin:end:end]
		}
	})
	return t, ok
}

// nameLen returns the number of tokens of the name at p and the size of the length
// itself. It returns 0, 0 at the end of the table.
func (k *kallsyms) nameLen(p uint32) (n, head uint32) {
	if uint64(p) >= uint64(len(k.names)) {
		return 0, 0
	}
	b := uint32(k.names[p])
	if !k.uleb || b < 0x80 {
		return b, 1
	}
	if uint64(p)+1 >= uint64(len(k.names)) {
		return 0, 0
	}
	return b&0x7f | uint32(k.names[p+1])<<7, 2
}

// scan walks all n names, fills marks and cuts names to their true length. It
// returns the offsets of the first names of every 256, which the kernel's own
// kallsyms_markers must equal.
func (k *kallsyms) scan() (markers []uint32, ok bool) {
	k.marks = k.marks[:0]
	p := uint32(0)
	for i := range k.n {
		if i%markEvery == 0 {
			k.marks = append(k.marks, p)
			if i%256 == 0 {
				markers = append(markers, p)
			}
		}
		n, head := k.nameLen(p)
		if n == 0 || uint64(p)+uint64(head)+uint64(n) > uint64(len(k.names)) {
			return nil, false
		}
		p += head + n
	}
	k.names = k.names[:p]
	return markers, true
}

// start returns where name i starts.
func (k *kallsyms) start(i int) uint32 {
	p := k.marks[i/markEvery]
	for range i % markEvery {
		n, head := k.nameLen(p)
		p += n + head
	}
	return p
}

// appendName appends the expanded name at p, its type letter first. It returns nil
// beyond the table or maxName.
func (k *kallsyms) appendName(dst []byte, p uint32) (_ []byte, next uint32) {
	n, head := k.nameLen(p)
	begin := len(dst)
	next = p + head + n
	for _, b := range k.names[p+head : next] {
		size := int(k.tok.size[b])
		if size > 16 {
			dst = append(dst, k.tok.long[b]...)
		} else {
			dst = append(dst, k.tok.short[b][:]...)
			dst = dst[:len(dst)-16+size]
		}
		if len(dst)-begin > maxName {
			return dst[:begin+maxName], next
		}
	}
	return dst, next
}

// name expands the name of symbol i into buf[:0].
func (k *kallsyms) name(i int, buf []byte) (name []byte, typ byte) {
	b, _ := k.appendName(buf[:0], k.start(i))
	if len(b) == 0 {
		return nil, '?'
	}
	return b[1:], b[0]
}

// addr returns the address of symbol i.
func (k *kallsyms) addr(i int) uint64 {
	if k.enc == encAbsolute {
		return binary.LittleEndian.Uint64(k.offsets[8*i:])
	}
	v := binary.LittleEndian.Uint32(k.offsets[4*i:])
	switch {
	case k.enc == encBase:
		return k.base + uint64(v)
	case k.enc == encPlace:
		return k.slot + 4*uint64(i) + uint64(int64(int32(v)))
	case int32(v) >= 0:
		return uint64(v)
	}
	return k.base - 1 - uint64(int64(int32(v)))
}

// seq returns the index of the j-th symbol in name order; 0 if out of range.
func (k *kallsyms) seq(j int) int {
	b := k.seqs[3*j : 3*j+3]
	if i := int(b[0])<<16 | int(b[1])<<8 | int(b[2]); i < k.n {
		return i
	}
	return 0
}

// find returns the first index in name order whose symbol is called name: of
// several the kernel sorts the one with the lowest address first.
func (k *kallsyms) find(name string) (j int, ok bool) {
	var buf [2 * maxName]byte
	lo, hi := 0, k.n
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if s, _ := k.name(k.seq(m), buf[:0]); string(s) < name {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return k.findNext(lo-1, name)
}

// findNext returns j+1 if that symbol, too, is called name.
func (k *kallsyms) findNext(j int, name string) (int, bool) {
	if j++; j >= k.n {
		return 0, false
	}
	var buf [2 * maxName]byte
	s, _ := k.name(k.seq(j), buf[:0])
	return j, string(s) == name
}

// decode expands all names.
func (k *kallsyms) decode() *plain {
	p := &plain{
		arena: make([]byte, 0, min(3*len(k.names), maxArena)),
		ends:  make([]uint32, k.n),
		types: make([]byte, k.n),
	}
	var at uint32
	for i := range k.n {
		begin := len(p.arena)
		if begin < maxArena {
			p.arena, at = k.appendName(p.arena, at)
		}
		if len(p.arena) > begin {
			// The type letter is the first byte; the name moves over it.
			p.types[i] = p.arena[begin]
			copy(p.arena[begin:], p.arena[begin+1:])
			p.arena = p.arena[:len(p.arena)-1]
		}
		p.ends[i] = uint32(len(p.arena))
	}
	p.index()
	return p
}

// all yields all symbols; the names of 256 share one string.
func (k *kallsyms) all(yield func(Symbol) bool) {
	var buf []byte
	var ends [256]int
	var at uint32
	for i := 0; i < k.n; i += 256 {
		n := min(256, k.n-i)
		buf = buf[:0]
		for j := range n {
			buf, at = k.appendName(buf, at)
			ends[j] = len(buf)
		}
		text, begin := string(buf), 0
		for j := range n {
			s := Symbol{Addr: k.addr(i + j), Type: '?'}
			if ends[j] > begin {
				s.Type, s.Name = text[begin], text[begin+1:ends[j]]
			}
			begin = ends[j]
			if !yield(s) {
				return
			}
		}
	}
}
