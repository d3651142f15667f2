package symbols

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// ErrFormat is wrapped by Open's and Search's errors: there is no symbol table
// where one was said to be, or it is damaged.
var ErrFormat = errors.New("no usable kallsyms table")

// Reader returns the n bytes at an address of the kernel image, which is
// contiguous in every address space this package is used with. The result may be
// guest memory itself and is not kept.
type Reader func(addr uint64, n int) ([]byte, error)

// Addrs says where the tables of kernel/kallsyms.c are, as the variables
// kallsyms_* or as VMCOREINFO's SYMBOL(kallsyms_*), 6.0 and newer. RelativeBase or
// Addresses is 0 in a kernel that does not have it.
type Addrs struct {
	NumSyms, Names, TokenTable, TokenIndex uint64
	Offsets, RelativeBase                  uint64
	Addresses                              uint64 // in place of Offsets: full addresses
}

// Layout says which of the layouts a table has, for people.
type Layout struct {
	Symbols  int
	Encoding string // how addresses are stored
	LongName bool   // lengths may take two bytes
	Sorted   bool   // kallsyms_seqs_of_names is there: no decoding is needed
}

func (l Layout) String() string {
	s := fmt.Sprintf("%d symbols, %s", l.Symbols, l.Encoding)
	if l.LongName {
		s += ", long names"
	}
	if l.Sorted {
		s += ", name index"
	}
	return s
}

// Open copies the tables at a and returns the symbols in them. check is asked
// about every way to read the addresses in which they rise, and accepts the one
// whose known symbols are right. The error wraps ErrFormat.
func Open(read Reader, a Addrs, check func(*Table) bool) (*Table, Layout, error) {
	k, tail, err := readNames(read, a)
	if err != nil {
		return nil, Layout{}, err
	}
	t := &Table{k: k}
	seqs := seqsAfter(k, tail)
	for _, e := range candidates(a) {
		o, err := e.offsets(read, a, k.n)
		if err != nil {
			continue
		}
		k.offsets, k.enc, k.base, k.slot = o.data, e.enc, o.base, a.Offsets
		if !k.rising() {
			continue
		}
		if t.p == nil && k.seqs == nil {
			if k.seqs = firstSorted(read, k, append(seqs, o.behind...)); k.seqs == nil {
				t.p = k.decode()
			}
		}
		if check(t) {
			// The copy of the offsets is made only of those that are kept.
			k.offsets = slices.Clone(k.offsets)
			l := Layout{Symbols: k.n, Encoding: e.enc.String(), LongName: k.uleb, Sorted: t.p == nil}
			if t.p != nil {
				k.names, k.marks = nil, nil
			}
			return t, l, nil
		}
	}
	return nil, Layout{}, fmt.Errorf("%w: %d names read, but no way to read their addresses fits", ErrFormat, k.n)
}

// readNames reads the dictionary and the names. tail is what follows the names up
// to the token table: markers, and in some kernels the name index.
func readNames(read Reader, a Addrs) (k *kallsyms, tail []byte, err error) {
	num, err := read(a.NumSyms, 4)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: number of symbols: %w", ErrFormat, err)
	}
	n := int(binary.LittleEndian.Uint32(num))
	if n == 0 || n > maxSymbols {
		return nil, nil, fmt.Errorf("%w: %d symbols", ErrFormat, n)
	}
	if size := a.TokenIndex - a.TokenTable; a.TokenIndex < a.TokenTable || size > maxTokenTab+8 {
		return nil, nil, fmt.Errorf("%w: token table at %#x, its index at %#x", ErrFormat, a.TokenTable, a.TokenIndex)
	}
	table, err := read(a.TokenTable, int(a.TokenIndex-a.TokenTable))
	if err != nil {
		return nil, nil, fmt.Errorf("%w: token table: %w", ErrFormat, err)
	}
	index, err := read(a.TokenIndex, 2*tokenCount)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: token index: %w", ErrFormat, err)
	}
	tok, ok := newTokens(slices.Clone(table), index)
	if !ok {
		return nil, nil, fmt.Errorf("%w: token table at %#x does not match its index", ErrFormat, a.TokenTable)
	}
	if size := a.TokenTable - a.Names; a.TokenTable < a.Names || size > maxNames {
		return nil, nil, fmt.Errorf("%w: names at %#x, token table at %#x", ErrFormat, a.Names, a.TokenTable)
	}
	raw, err := read(a.Names, int(a.TokenTable-a.Names))
	if err != nil {
		return nil, nil, fmt.Errorf("%w: names: %w", ErrFormat, err)
	}
	raw = slices.Clone(raw)
	for _, uleb := range []bool{true, false} {
		k := &kallsyms{n: n, names: raw, uleb: uleb, tok: *tok}
		if markers, ok := k.scan(); ok {
			if end, ok := matchMarkers(raw, len(k.names), a.Names, markers); ok {
				return k, raw[end:], nil
			}
		}
	}
	return nil, nil, fmt.Errorf("%w: the markers do not match the %d names", ErrFormat, n)
}

// matchMarkers looks for the array kallsyms_markers behind the names and returns
// the offset of its end.
func matchMarkers(raw []byte, end int, base uint64, markers []uint32) (int, bool) {
	for _, align := range []uint64{8, 4} {
		at := int((base+uint64(end)+align-1)&^(align-1) - base)
		if at+4*len(markers) > len(raw) {
			continue
		}
		same := true
		for i, m := range markers {
			if binary.LittleEndian.Uint32(raw[at+4*i:]) != m {
				same = false
				break
			}
		}
		if same {
			return at + 4*len(markers), true
		}
	}
	return 0, false
}

// rising says whether the addresses do.
func (k *kallsyms) rising() bool {
	last := uint64(0)
	for i := range k.n {
		a := k.addr(i)
		if a < last {
			return false
		}
		last = a
	}
	return true
}

// place is a stretch of memory that may be kallsyms_seqs_of_names: bytes at hand,
// or an address.
type place struct {
	data []byte
	addr uint64
}

// seqsAfter returns the places behind the markers where 6.1 to 6.3 keep it.
func seqsAfter(k *kallsyms, tail []byte) []place {
	var p []place
	for pad := 0; pad < 8; pad += 4 {
		if len(tail) >= pad+3*k.n {
			p = append(p, place{data: tail[pad : pad+3*k.n]})
		}
	}
	return p
}

// firstSorted returns the first place that holds the symbols' indices in name
// order, as far as samples tell, or nil.
func firstSorted(read Reader, k *kallsyms, places []place) []byte {
	for _, p := range places {
		if p.data == nil {
			b, err := read(p.addr, 3*k.n)
			if err != nil {
				continue
			}
			p.data = slices.Clone(b)
		}
		if k.sorted(p.data) {
			return p.data
		}
	}
	return nil
}

// sorted samples seqs: neighbours must be different symbols in name order.
func (k *kallsyms) sorted(seqs []byte) bool {
	const samples = 256
	var b1, b2 [2 * maxName]byte
	index := func(j int) int { return int(seqs[3*j])<<16 | int(seqs[3*j+1])<<8 | int(seqs[3*j+2]) }
	step := max(1, k.n/samples)
	for j := 0; j+1 < k.n; j += step {
		a, b := index(j), index(j+1)
		if a >= k.n || b >= k.n || a == b {
			return false
		}
		n1, _ := k.name(a, b1[:0])
		n2, _ := k.name(b, b2[:0])
		if string(n1) > string(n2) || string(n1) == string(n2) && a > b {
			return false
		}
	}
	return true
}

// candidate is one way to read the addresses.
type candidate struct{ enc encoding }

func candidates(a Addrs) []candidate {
	switch {
	case a.Addresses != 0:
		return []candidate{{encAbsolute}}
	case a.RelativeBase != 0:
		return []candidate{{encPercpu}, {encBase}, {encPlace}}
	}
	return []candidate{{encPlace}}
}

type offsets struct {
	data   []byte
	base   uint64
	behind []place // where the name index may follow
}

// offsets reads the array of addresses and notes where 6.4 and newer keep the name
// index: behind it, or behind the base address that follows it.
func (c candidate) offsets(read Reader, a Addrs, n int) (o offsets, err error) {
	if c.enc == encAbsolute {
		o.data, err = read(a.Addresses, 8*n)
		return o, err
	}
	if o.data, err = read(a.Offsets, 4*n); err != nil {
		return o, err
	}
	end := a.Offsets + 4*uint64(n)
	if c.enc != encPlace {
		b, err := read(a.RelativeBase, 8)
		if err != nil {
			return o, err
		}
		o.base = binary.LittleEndian.Uint64(b)
		if a.RelativeBase >= end && a.RelativeBase < end+16 {
			o.behind = append(o.behind, place{addr: a.RelativeBase + 8})
		}
	}
	for _, align := range []uint64{8, 4} {
		o.behind = append(o.behind, place{addr: (end + align - 1) &^ (align - 1)})
	}
	return o, nil
}
