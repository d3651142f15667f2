package symbols_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ovmigrate/ovmigrate/kernel/symbols"
	"github.com/ovmigrate/ovmigrate/kernel/symbols/symbolstest"
)

const text = 0xffff_ffff_a120_0000

// kernel returns n symbols like a kernel's, per-CPU ones among them.
func kernel(n int, percpu bool) []symbols.Symbol {
	s := []symbols.Symbol{
		{Name: "_text", Addr: text, Type: 'T'},
		{Name: "_stext", Addr: text, Type: 'T'},
		{Name: strings.Repeat("very_long_", 12) + "name", Addr: text + 0x40, Type: 't'},
	}
	if percpu {
		s = append(s, symbols.Symbol{Name: "this_cpu_off", Addr: 0x1000, Type: 'A'})
	}
	words := []string{"do", "sys", "vfs", "tcp", "sched", "read", "write", "alloc", "free", "init"}
	for i := len(s); i < n; i++ {
		name := fmt.Sprintf("%s_%s_%d", words[i%10], words[i/10%10], i/7)
		if i%50 == 0 {
			name = "cleanup" // a static function that many files have
		}
		s = append(s, symbols.Symbol{Name: name, Addr: text + uint64(i)*0x30, Type: "tTdDbBrR"[i%8]})
	}
	return s
}

func stext(t *symbols.Table) bool {
	a, ok := t.Lookup("_stext")
	return ok && a == text
}

// image is a stretch of memory at an address.
type image struct {
	at uint64
	b  []byte
}

var errRange = errors.New("out of range")

func (m image) read(addr uint64, n int) ([]byte, error) {
	if addr < m.at || addr-m.at > uint64(len(m.b)) || n < 0 || uint64(n) > uint64(len(m.b))-(addr-m.at) {
		return nil, errRange
	}
	return m.b[addr-m.at:][:n], nil
}

func percpu(l symbolstest.Layout) bool {
	return l.Encoding == symbolstest.Percpu || l.Encoding == symbolstest.Absolute
}

func TestLayouts(t *testing.T) {
	for _, l := range symbolstest.Layouts {
		t.Run(l.Name, func(t *testing.T) {
			const at = text + 0x100_0000
			want := kernel(3000, percpu(l))
			b, addrs := symbolstest.Write(l, want, at, text)
			tab, layout, err := symbols.Open(image{at, b}.read, addrs, stext)
			if err != nil {
				t.Fatal(err)
			}
			if layout.Sorted != l.Sorted {
				t.Errorf("layout %v, want name index %v", layout, l.Sorted)
			}
			checkTable(t, tab, want)

			var found *symbols.Table
			around := slices.Concat(make([]byte, 4096), []byte("0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00"), make([]byte, 4076), b, make([]byte, 4096))
			ok := symbols.Search(around, at-8192, func(a symbols.Addrs) bool {
				found, _, err = symbols.Open(image{at - 8192, around}.read, a, stext)
				return err == nil
			})
			if !ok {
				t.Fatal("not found by content:", err)
			}
			checkTable(t, found, want)
		})
	}
}

// checkTable compares all that a table can tell with the symbols it was made of.
func checkTable(t *testing.T, tab *symbols.Table, want []symbols.Symbol) {
	t.Helper()
	if diff := cmp.Diff(want, slices.Collect(tab.All())); diff != "" {
		t.Fatal(diff)
	}
	if tab.Len() != len(want) {
		t.Errorf("Len = %d, want %d", tab.Len(), len(want))
	}
	byName := map[string][]uint64{}
	first := map[uint64]string{}
	for _, s := range want {
		byName[s.Name] = append(byName[s.Name], s.Addr)
		if first[s.Addr] == "" {
			first[s.Addr] = s.Name
		}
	}
	for name, addrs := range byName {
		if got := tab.LookupAll(name); !slices.Equal(got, addrs) {
			t.Fatalf("LookupAll(%s) = %#x, want %#x", name, got, addrs)
		}
		if got, ok := tab.Lookup(name); !ok || got != addrs[0] {
			t.Fatalf("Lookup(%s) = %#x, %v, want %#x", name, got, ok, addrs[0])
		}
	}
	last := want[len(want)-1].Addr
	for addr, name := range first {
		if got, off, ok := tab.At(addr); !ok || got != name || off != 0 {
			t.Fatalf("At(%#x) = %s+%#x, %v, want %s", addr, got, off, ok, name)
		}
		if addr >= text+0x40 && addr < last {
			if got, off, ok := tab.At(addr + 7); !ok || got != name || off != 7 {
				t.Fatalf("At(%#x) = %s+%#x, %v, want %s+7", addr+7, got, off, ok, name)
			}
		}
	}
	for _, addr := range []uint64{last + 1, 0x7fff_0000_0000, text - 1, ^uint64(0)} {
		if name, off, ok := tab.At(addr); ok {
			t.Errorf("At(%#x) = %s+%#x, want none", addr, name, off)
		}
	}
	for _, name := range []string{"", "no_such_symbol", "_tex", "_textual", "zzz", "cleanu"} {
		if got, ok := tab.Lookup(name); ok {
			t.Errorf("Lookup(%q) = %#x", name, got)
		}
	}
	if got := tab.Resolve("_stext", "nothing"); !cmp.Equal(got, map[string]uint64{"_stext": text}) {
		t.Errorf("Resolve = %v", got)
	}
}

func TestMoved(t *testing.T) {
	const phys = 0x120_0000
	for _, l := range symbolstest.Layouts {
		syms := kernel(300, false)
		b, addrs := symbolstest.Write(l, syms, text+0x100_0000, text)
		delta := uint64(0)
		if l.Encoding == symbolstest.Place {
			delta = text - phys // read where it lies in physical memory
		}
		move := func(a *uint64) {
			if *a != 0 {
				*a -= delta
			}
		}
		for _, a := range []*uint64{&addrs.NumSyms, &addrs.Names, &addrs.TokenTable, &addrs.TokenIndex, &addrs.Offsets, &addrs.RelativeBase, &addrs.Addresses} {
			move(a)
		}
		tab, _, err := symbols.Open(image{text + 0x100_0000 - delta, b}.read, addrs, func(t *symbols.Table) bool {
			a, ok := t.Lookup("_text")
			return ok && a == text-delta
		})
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := tab.Moved(delta).Lookup("_text"); got != text {
			t.Errorf("%s: _text = %#x, want %#x", l.Name, got, uint64(text))
		}
	}
}

// TestDamaged flips every part of the tables: a wrong table must be refused or be
// wrong in names only, and never panic.
func TestDamaged(t *testing.T) {
	for _, l := range symbolstest.Layouts {
		syms := kernel(600, percpu(l))
		b, addrs := symbolstest.Write(l, syms, text, text)
		for i := 0; i < len(b); i += 1 + len(b)/150 {
			bad := slices.Clone(b)
			bad[i] ^= 0xff
			use(image{text, bad}.read, addrs)
		}
		for cut := 0; cut < len(b); cut += 1 + len(b)/50 {
			use(image{text, b[:cut]}.read, addrs)
		}
	}
}

// use does with a table whatever can be done with one.
func use(read symbols.Reader, a symbols.Addrs) {
	tab, _, err := symbols.Open(read, a, func(*symbols.Table) bool { return true })
	if err != nil {
		if !errors.Is(err, symbols.ErrFormat) {
			panic(err)
		}
		return
	}
	n := 0
	for s := range tab.All() {
		if n++; n%64 == 0 {
			tab.LookupAll(s.Name)
			tab.At(s.Addr)
		}
	}
}

func FuzzOpen(f *testing.F) {
	for _, l := range symbolstest.Layouts {
		b, a := symbolstest.Write(l, kernel(300, false), text, text)
		f.Add(b, a.NumSyms-text, a.Names-text, a.TokenTable-text, a.TokenIndex-text, a.Offsets-text, a.RelativeBase-text, a.Addresses-text)
	}
	f.Fuzz(func(t *testing.T, b []byte, num, names, tokens, index, offsets, base, addrs uint64) {
		place := func(v uint64) uint64 {
			if v += text; v == 0 { // was absent
				return 0
			}
			return v
		}
		a := symbols.Addrs{
			NumSyms: place(num), Names: place(names), TokenTable: place(tokens), TokenIndex: place(index),
			Offsets: place(offsets), RelativeBase: place(base), Addresses: place(addrs),
		}
		use(image{text, b}.read, a)
	})
}

func FuzzSearch(f *testing.F) {
	for _, l := range symbolstest.Layouts {
		b, _ := symbolstest.Write(l, kernel(1100, false), text, text)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		tries := 0
		symbols.Search(b, text, func(a symbols.Addrs) bool {
			use(image{text, b}.read, a)
			tries++
			return tries > 8
		})
	})
}

func BenchmarkOpen(b *testing.B) {
	for _, l := range []symbolstest.Layout{symbolstest.Layouts[3], symbolstest.Layouts[5]} {
		b.Run(l.Name, func(b *testing.B) {
			mem, addrs := symbolstest.Write(l, kernel(100_000, percpu(l)), text, text)
			for b.Loop() {
				if _, _, err := symbols.Open(image{text, mem}.read, addrs, stext); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	for _, l := range []symbolstest.Layout{symbolstest.Layouts[3], symbolstest.Layouts[5]} {
		b.Run(l.Name, func(b *testing.B) {
			mem, addrs := symbolstest.Write(l, kernel(100_000, percpu(l)), text, text)
			tab, _, err := symbols.Open(image{text, mem}.read, addrs, stext)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				tab.Lookup("_stext")
			}
		})
	}
}
