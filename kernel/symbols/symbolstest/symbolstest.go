// Package symbolstest writes kallsyms tables as Linux's build does
// (scripts/kallsyms.c), in every layout of 5.10 to 7.x, for tests of what reads them.
package symbolstest

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"

	"github.com/ovmigrate/ovmigrate/kernel/symbols"
)

// Encoding is how addresses are stored.
type Encoding int

// The encodings, oldest first.
const (
	Absolute Encoding = iota // full addresses
	Percpu                   // negative ones relative to the base address, others as they are
	Base                     // relative to the base address
	Place                    // relative to their own place
)

// Layout is one of the layouts that kernels have had.
type Layout struct {
	Name           string
	AddressesFirst bool // before the names: up to 6.3
	Encoding       Encoding
	LongName       bool // lengths of two bytes where needed: 6.1
	Sorted         bool // kallsyms_seqs_of_names: 6.2
	Align          int  // 8; 4 in 7.x
}

// Layouts are those of the kernels since 5.10.
var Layouts = []Layout{
	{Name: "5.10 absolute", AddressesFirst: true, Encoding: Absolute, Align: 8},
	{Name: "5.10", AddressesFirst: true, Encoding: Percpu, Align: 8},
	{Name: "5.10 arm64", AddressesFirst: true, Encoding: Base, Align: 8},
	{Name: "6.1", AddressesFirst: true, Encoding: Percpu, LongName: true, Align: 8},
	{Name: "6.2", AddressesFirst: true, Encoding: Percpu, LongName: true, Sorted: true, Align: 8},
	{Name: "6.4", Encoding: Percpu, LongName: true, Sorted: true, Align: 8},
	{Name: "6.15", Encoding: Base, LongName: true, Sorted: true, Align: 8},
	{Name: "7.0", Encoding: Place, LongName: true, Sorted: true, Align: 4},
}

// Write returns the tables of syms, which it sorts by address, as they are at address
// at, which must be a multiple of 8, and where each of them is. base is
// kallsyms_relative_base: the address of the first symbol that is not per-CPU.
func Write(l Layout, syms []symbols.Symbol, at, base uint64) ([]byte, symbols.Addrs) {
	slices.SortStableFunc(syms, func(a, b symbols.Symbol) int { return cmp.Compare(a.Addr, b.Addr) })
	w := &writer{Layout: l, at: at, base: base, syms: syms, tokens: dictionary(syms)}
	if l.AddressesFirst {
		w.addresses()
	}
	w.a.NumSyms = w.here()
	w.u32(uint32(len(syms)))
	w.names()
	w.dictionary()
	if !l.AddressesFirst {
		w.addresses()
		w.seqs()
	}
	w.align()
	return w.b, w.a
}

type writer struct {
	Layout
	at, base uint64
	syms     []symbols.Symbol
	tokens   [256]string
	codes    map[string]byte
	b        []byte
	a        symbols.Addrs
}

// here pads to the alignment and returns the address of what follows.
func (w *writer) here() uint64 {
	w.align()
	return w.at + uint64(len(w.b))
}

func (w *writer) align() {
	for len(w.b)%w.Align != 0 {
		w.b = append(w.b, 0)
	}
}

func (w *writer) u32(v uint32) { w.b = binary.LittleEndian.AppendUint32(w.b, v) }
func (w *writer) u64(v uint64) { w.b = binary.LittleEndian.AppendUint64(w.b, v) }

func (w *writer) addresses() {
	at := w.here()
	if w.Encoding == Absolute {
		w.a.Addresses = at
		for _, s := range w.syms {
			w.u64(s.Addr)
		}
		return
	}
	w.a.Offsets = at
	for i, s := range w.syms {
		switch {
		case w.Encoding == Place:
			w.u32(uint32(s.Addr - (at + 4*uint64(i))))
		case w.Encoding == Base:
			w.u32(uint32(s.Addr - w.base))
		case s.Addr < 1<<31:
			w.u32(uint32(s.Addr))
		default:
			w.u32(uint32(w.base - 1 - s.Addr))
		}
	}
	if w.Encoding != Place {
		w.a.RelativeBase = w.here()
		w.u64(w.base)
	}
}

func (w *writer) names() {
	w.a.Names = w.here()
	begin := len(w.b)
	var markers []uint32
	for i, s := range w.syms {
		if i%256 == 0 {
			markers = append(markers, uint32(len(w.b)-begin))
		}
		code := w.compress(string(s.Type) + s.Name)
		switch {
		case len(code) < 0x80 || !w.LongName && len(code) < 0x100:
			w.b = append(w.b, byte(len(code)))
		case w.LongName:
			w.b = append(w.b, byte(len(code))|0x80, byte(len(code)>>7))
		default:
			panic(fmt.Sprintf("%q is too long for this layout", s.Name))
		}
		w.b = append(w.b, code...)
	}
	w.here()
	for _, m := range markers {
		w.u32(m)
	}
	if w.AddressesFirst {
		w.seqs()
	}
}

func (w *writer) seqs() {
	if !w.Sorted {
		return
	}
	w.here()
	order := make([]int, len(w.syms))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(i, j int) bool { return w.syms[order[i]].Name < w.syms[order[j]].Name })
	for _, i := range order {
		w.b = append(w.b, byte(i>>16), byte(i>>8), byte(i))
	}
}

func (w *writer) dictionary() {
	w.a.TokenTable = w.here()
	var index []int
	begin := len(w.b)
	for _, t := range w.tokens {
		index = append(index, len(w.b)-begin)
		w.b = append(append(w.b, t...), 0)
	}
	w.a.TokenIndex = w.here()
	for _, i := range index {
		w.b = binary.LittleEndian.AppendUint16(w.b, uint16(i))
	}
}

// compress replaces s by tokens, the longest that fits first.
func (w *writer) compress(s string) (code []byte) {
	if w.codes == nil {
		w.codes = make(map[string]byte)
		for i, t := range w.tokens {
			w.codes[t] = byte(i)
		}
	}
	for len(s) > 0 {
		n := min(len(s), maxToken)
		for ; n > 0; n-- {
			if c, ok := w.codes[s[:n]]; ok {
				code = append(code, c)
				break
			}
		}
		if n == 0 {
			panic(fmt.Sprintf("no token for %q", s))
		}
		s = s[n:]
	}
	return code
}

const maxToken = 24

// dictionary gives every used character its own token, digits always, and fills the
// others with common begins of names.
func dictionary(syms []symbols.Symbol) (tokens [256]string) {
	for c := byte('0'); c <= '9'; c++ {
		tokens[c] = string(c)
	}
	count := map[string]int{}
	for _, s := range syms {
		tokens[s.Type] = string(s.Type)
		for i := range len(s.Name) {
			tokens[s.Name[i]] = s.Name[i : i+1]
		}
		for n := 2; n <= len(s.Name) && n <= maxToken; n++ {
			count[s.Name[:n]]++
		}
	}
	common := make([]string, 0, len(count))
	for t := range count {
		common = append(common, t)
	}
	slices.SortFunc(common, func(a, b string) int {
		return cmp.Or(cmp.Compare(count[b]*len(b), count[a]*len(a)), cmp.Compare(a, b))
	})
	for i := range tokens {
		if tokens[i] == "" && len(common) > 0 {
			tokens[i], common = common[0], common[1:]
		}
	}
	return tokens
}
