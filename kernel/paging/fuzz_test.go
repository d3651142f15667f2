package paging_test

import (
	"errors"
	"testing"

	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// FuzzWalk takes the input as guest memory. Walk must end, give entries in order
// and agree with Translate and Lookup.
func FuzzWalk(f *testing.F) {
	b := build(16*page, 4)
	b.set(user, 1, 0x3000|p)
	b.set(kernel, 2, 0x4000_0000|p|ps)
	b.set(0x9000, 1, swap(1, 2))
	f.Add([]byte(b.m[page:b.next]), uint8(0), uint64(user-page), uint64(user+page), uint64(0))
	f.Add([]byte(b.m[page:b.next]), uint8(1), uint64(0), uint64(0), uint64(1<<47))
	f.Fuzz(func(t *testing.T, mem []byte, mode uint8, start, end, enc uint64) {
		m := make(ram, (len(mem)+page-1)&^(page-1))
		copy(m, mem)
		tab := paging.Tables{Mem: m, Levels: 4 + int(mode&1), EncMask: enc, Swap: linux612}
		if mode&2 != 0 {
			tab.Mem = viewed{m}
		}
		checkWalk(t, tab, start, end)
	})
}

// checkWalk says that a walk ends, gives entries in order and agrees with Translate and
// Lookup.
func checkWalk(t *testing.T, tab paging.Tables, start, end uint64) {
	t.Helper()
	last, n := uint64(0), 0
	err := tab.Walk(start, end, func(e paging.Entry) bool {
		if n > 0 && e.VA <= last {
			t.Fatalf("%#x after %#x", e.VA, last)
		}
		last = e.VA
		n++
		if e.Size == 0 || e.VA&(e.Size-1) != 0 || e.Kind < paging.Present || e.Kind > paging.Bad {
			t.Fatalf("%+v", e)
		}
		pa, size, err := tab.Translate(e.VA)
		if e.Present() != (err == nil) || err == nil && (pa != e.Phys() || size != e.Size) {
			if e.Kind != paging.Bad { // one that points to its ancestor translates
				t.Fatalf("%+v: Translate = %#x, %#x, %v", e, pa, size, err)
			}
		}
		if l, err := tab.Lookup(e.VA); e.Kind != paging.Bad && (err != nil || l != e) {
			t.Fatalf("Lookup = %+v, %v, want %+v", l, err, e)
		}
		return n < 5000
	})
	var te *paging.TableError
	if err != nil && !errors.Is(err, paging.ErrLimit) && !errors.As(err, &te) {
		t.Fatal(err)
	}
}

// BenchmarkWalk walks 1 GiB of base pages, as a process that uses them has.
func BenchmarkWalk(b *testing.B) {
	const pages = 1 << 18
	t := build(4<<20, 4)
	for i := range uint64(pages) {
		t.set(user&^(1<<30-1)+i*page, 1, i<<12|p|rw|us|a|d)
	}
	for _, mem := range []vmi.Memory{viewed{t.m}, t.m} {
		name := "view"
		if _, ok := mem.(vmi.Viewer); !ok {
			name = "read"
		}
		b.Run(name, func(b *testing.B) {
			var n, dirty int
			for b.Loop() {
				_ = t.tables(mem).Walk(0, 0, func(e paging.Entry) bool {
					n++
					if e.Dirty() {
						dirty++
					}
					return true
				})
			}
			if n != dirty || n == 0 {
				b.Fatal(n, dirty)
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds()/1e6, "Mentries/s")
		})
	}
}

// BenchmarkWalkSparse walks tables with one entry each.
func BenchmarkWalkSparse(b *testing.B) {
	t := build(8<<20, 4)
	for i := range uint64(1000) {
		t.set(i<<21, 1, i<<12|p)
	}
	for b.Loop() {
		_ = t.tables(viewed{t.m}).Walk(0, 0, func(e paging.Entry) bool { return true })
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/table")
}

func BenchmarkTranslate(b *testing.B) {
	t := build(4<<20, 4)
	const pages = 1 << 17
	for i := range uint64(pages) {
		t.set(i*page, 1, i<<12|p)
	}
	tab := t.tables(viewed{t.m})
	i := uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		i = i*6364136223846793005 + 1442695040888963407
		if _, _, err := tab.Translate(i >> 40 & (pages - 1) * page); err != nil {
			b.Fatal(err)
		}
	}
}
