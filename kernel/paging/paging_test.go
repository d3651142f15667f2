package paging_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// ram is guest memory from address 0 on, without views.
type ram []byte

func (m ram) Ranges() []vmi.Range { return []vmi.Range{{End: vmi.Phys(len(m))}} }

func (m ram) ReadPhys(p []byte, a vmi.Phys) (int, error) {
	if !m.Ranges()[0].Contains(a, len(p)) {
		return 0, &vmi.FaultError{Addr: a, Len: len(p)}
	}
	return copy(p, m[a:]), nil
}

// viewed is ram that can be seen without a copy.
type viewed struct{ ram }

func (m viewed) View(a vmi.Phys, n int) []byte {
	if !m.Ranges()[0].Contains(a, n) {
		return nil
	}
	return m.ram[a:][:n]
}

// Bits of an entry, as the processor and Linux define them.
const (
	p, rw, us, a, d, ps = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7
	protnone, special   = 1 << 8, 1 << 9
	uffd, soft          = 1 << 10, 1 << 11
	saved, nx           = 1 << 58, 1 << 63
	page                = 4096
)

// builder makes page tables in ram, the root at page 1.
type builder struct {
	m      ram
	levels int
	next   uint64
}

func build(size, levels int) *builder {
	return &builder{m: make(ram, size), levels: levels, next: 2 * page}
}

func (b *builder) word(at uint64) uint64 { return binary.LittleEndian.Uint64(b.m[at:]) }

func (b *builder) put(at, v uint64) { binary.LittleEndian.PutUint64(b.m[at:], v) }

// set stores an entry at a level, making the tables above it.
func (b *builder) set(va uint64, level int, entry uint64) {
	at := uint64(page)
	for l := b.levels; ; l-- {
		slot := at + va>>(12+9*(l-1))&511*8
		if l == level {
			b.put(slot, entry)
			return
		}
		if b.word(slot) == 0 {
			b.put(slot, b.next|p|rw|us|a|d)
			b.next += page
		}
		at = b.word(slot) &^ 0xfff
	}
}

func (b *builder) tables(mem vmi.Memory) paging.Tables {
	return paging.Tables{Mem: mem, Root: page, Levels: b.levels, Swap: linux612}
}

var linux612 = paging.SwapConfig{HWPoison: 1, Migration: 3, Device: 4, Marker: 1}

// swap is the entry of a swap type and offset (__swp_entry).
func swap(typ, off uint64) uint64 { return typ<<59 | ^off<<14>>5&^(0x1f<<59)&^0x1ff }

// inverted is the entry of a frame whose present bit is clear.
func inverted(phys, flags uint64) uint64 { return ^phys&0x000f_ffff_ffff_f000 | flags }

const (
	user   = 0x7f12_3456_7000
	kernel = 0xffff_ffff_a120_0000
)

func TestTranslate(t *testing.T) {
	for _, levels := range []int{4, 5} {
		b := build(1<<20, levels)
		b.set(user, 1, 0x1234000|p|rw|us|nx)
		b.set(user+page, 1, inverted(0x5678000, protnone|a))
		b.set(user+2*page, 1, swap(0, 77))
		b.set(kernel, 2, 0x4000_0000|p|ps|1<<12)
		b.set(0xffff_8880_4000_0000, 3, 0x8000_0000|p|ps|nx)
		b.set(0x1000_0000_0000, 3, 1<<40|p) // its table is not in RAM
		tests := []struct {
			va, pa, size uint64
			level        int // of the error
		}{
			{va: user + 0x123, pa: 0x1234123, size: 4 << 10},
			{va: user + page + 1, pa: 0x5678001, size: 4 << 10},
			{va: user + 2*page, level: paging.LevelPTE},
			{va: user + 3*page, level: paging.LevelPTE},
			{va: kernel + 0x12345, pa: 0x4001_2345, size: 2 << 20},
			{va: 0xffff_8880_4abc_def0, pa: 0x8abc_def0, size: 1 << 30},
			{va: 0x1234, level: paging.LevelP4D},
			{va: 0xffff_ffff_ffff_ffff, level: paging.LevelPUD},
			{va: 1 << 62, level: levels},
			{va: 0x0800_0000_0000_0000, level: levels},
		}
		for _, mem := range []vmi.Memory{b.m, viewed{b.m}} {
			tab := b.tables(mem)
			for _, tt := range tests {
				pa, size, err := tab.Translate(tt.va)
				var nm *paging.NotMappedError
				if tt.level != 0 {
					if !errors.As(err, &nm) || nm.VA != tt.va || nm.Level != tt.level {
						t.Errorf("%d levels: Translate(%#x): error %v, want not mapped at level %d", levels, tt.va, err, tt.level)
					}
				} else if err != nil || uint64(pa) != tt.pa || size != tt.size {
					t.Errorf("%d levels: Translate(%#x) = %#x, %#x, %v, want %#x, %#x", levels, tt.va, pa, size, err, tt.pa, tt.size)
				}
			}
			var te *paging.TableError
			var fault *vmi.FaultError
			if _, _, err := tab.Translate(0x1000_0000_0000); !errors.As(err, &te) || !errors.As(err, &fault) || te.Table != 1<<40 {
				t.Errorf("table outside RAM: error %v", err)
			}
		}
	}
}

func TestEncMask(t *testing.T) {
	const c = 1 << 47
	b := build(1<<20, 4)
	b.set(user, 1, 0x1234000|p|c)
	tab := b.tables(b.m)
	tab.EncMask = c
	if pa, _, err := tab.Translate(user); err != nil || pa != 0x1234000 {
		t.Errorf("Translate = %#x, %v", pa, err)
	}
	if e, err := tab.Lookup(user); err != nil || e.PFN != 0x1234 {
		t.Errorf("Lookup = %+v, %v", e, err)
	}
}

func TestTranslateAllocates(t *testing.T) {
	b := build(1<<20, 4)
	b.set(user, 1, 0x1234000|p)
	for _, mem := range []vmi.Memory{b.m, viewed{b.m}} {
		tab := b.tables(mem)
		if n := testing.AllocsPerRun(100, func() { _, _, _ = tab.Translate(user) }); n > 0 {
			t.Errorf("%T: %v allocations", mem, n)
		}
	}
}

func TestWalkKinds(t *testing.T) {
	b := build(1<<20, 4)
	type want struct {
		va, entry, size, pfn uint64
		level                int
		kind                 paging.Kind
		flags                string
	}
	wants := []want{
		{0x1000, 0x1234000 | p | rw | us | a | d | soft | nx, page, 0x1234, 1, paging.Present, "present writable user accessed dirty softdirty nx"},
		{0x2000, 0x1235000 | p | us | special | saved, page, 0x1235, 1, paging.Present, "present user dirty special"},
		{0x3000, inverted(0x9_8765_4000, protnone|rw|d|uffd), page, 0x987654, 1, paging.ProtNone, "present writable dirty uffdwp"},
		{0x4000, swap(3, 0x12345) | rw | us | 8, page, 0, 1, paging.Swap, "softdirty uffdwp exclusive type3 off12345"},
		{0x5000, swap(32-9, 0x777), page, 0x777, 1, paging.HWPoison, "type23 off777"},
		{0x6000, swap(32-8, 1<<40|0x4321), page, 0x4321, 1, paging.Migration, "type24 off10000004321"},
		{0x7000, swap(32-5, 5), page, 0, 1, paging.Device, "type27 off5"},
		{0x8000, swap(31, 4|1), page, 0, 1, paging.Marker, "type31 off5 marker5"},
		{0x20_0000, 0x4000_0000 | p | ps | rw | us | 1<<12, 2 << 20, 0x40000, 2, paging.Present, "present writable user huge"},
		{0x40_0000, inverted(0x6000_0000, ps|protnone), 2 << 20, 0x60000, 2, paging.ProtNone, "present huge"},
		{0x60_0000, inverted(0x6020_0000, ps|rw), 2 << 20, 0x60200, 2, paging.ProtNone, "present writable huge"}, // being split
		{0x80_0000, swap(32-7, 0x60400), 2 << 20, 0x60400, 2, paging.Migration, "huge type25 off60400"},
		{0xa0_0000, 0x8_0000_0000 | p, 2 << 20, 0x800000, 2, paging.Bad, "huge"}, // its table is not in RAM
		{0x4000_0000, 0x1_4000_0000 | p | ps | us, 1 << 30, 0x140000, 3, paging.Present, "present user huge"},
		{0x80_0000_0000, 0x1000 | p, 1 << 39, 1, 4, paging.Bad, "huge"}, // points back at the root
		{0x100_0000_0000, 2, 1 << 39, 0, 4, paging.Bad, "huge"},
		{0xffff_ffff_ffff_f000, 0x42000 | p | nx, page, 0x42, 1, paging.Present, "present nx"},
	}
	for _, w := range wants {
		b.set(w.va, w.level, w.entry)
	}
	b.set(0x9000, 1, a|d) // as good as empty (_PAGE_KNL_ERRATUM_MASK)
	for _, mem := range []vmi.Memory{b.m, viewed{b.m}} {
		var got []want
		for e := range b.tables(mem).Entries(0, 0) {
			got = append(got, want{e.VA, e.Raw, e.Size, e.PFN, int(e.Level), e.Kind, flags(e)})
			if e.Kind != paging.Bad {
				if l, err := b.tables(mem).Lookup(e.VA + e.Size/2); err != nil || l != e {
					t.Errorf("Lookup(%#x) = %+v, %v, want %+v", e.VA, l, err, e)
				}
			}
		}
		if diff := cmp.Diff(wants, got, cmp.AllowUnexported(want{})); diff != "" {
			t.Errorf("%T: %s", mem, diff)
		}
	}
}

func flags(e paging.Entry) string {
	s := ""
	for _, f := range []struct {
		on   bool
		name string
	}{
		{e.Present(), "present"},
		{e.Writable(), "writable"},
		{e.User(), "user"},
		{e.Accessed(), "accessed"},
		{e.Dirty(), "dirty"},
		{e.SoftDirty(), "softdirty"},
		{e.NX(), "nx"},
		{e.UffdWP(), "uffdwp"},
		{e.Special(), "special"},
		{e.Exclusive(), "exclusive"},
		{e.Huge(), "huge"},
		{e.Kind >= paging.Swap && e.Kind < paging.Bad, fmt.Sprintf("type%d off%x", e.SwapType(), e.SwapOffset())},
		{e.MarkerBits() != 0, fmt.Sprintf("marker%d", e.MarkerBits())},
	} {
		if f.on {
			if s != "" {
				s += " "
			}
			s += f.name
		}
	}
	return s
}

func TestSwapConfig(t *testing.T) {
	const s, h, m, dv, mk = paging.Swap, paging.HWPoison, paging.Migration, paging.Device, paging.Marker
	for _, tt := range []struct {
		c     paging.SwapConfig
		files int
		last  []paging.Kind // of the last types
	}{
		{paging.SwapConfig{}, 32, []paging.Kind{s, s}},
		{paging.SwapConfig{HWPoison: 1, Migration: 2, Device: 2}, 27, []paging.Kind{s, h, m, m, dv, dv}},
		{paging.SwapConfig{HWPoison: 1, Migration: 3, Device: 4, Marker: 1, SwapinError: 1}, 22, []paging.Kind{s, h, m, m, m, dv, dv, dv, dv, mk, h}},
		{linux612, 23, []paging.Kind{s, h, m, m, m, dv, dv, dv, dv, mk}},
		{paging.SwapConfig{Migration: 200}, 0, []paging.Kind{m}},
	} {
		if got := tt.c.MaxSwapFiles(); got != tt.files {
			t.Errorf("%+v: MaxSwapFiles = %d, want %d", tt.c, got, tt.files)
		}
		for i, want := range tt.last {
			typ := uint8(32 - len(tt.last) + i)
			if got := tt.c.Kind(typ); got != want {
				t.Errorf("%+v: Kind(%d) = %v, want %v", tt.c, typ, got, want)
			}
		}
	}
}

// TestWalkRange compares walks of random ranges with one of everything.
func TestWalkRange(t *testing.T) {
	for _, levels := range []int{4, 5} {
		r := rand.New(rand.NewPCG(1, uint64(levels)))
		b := build(4<<20, levels)
		at := func() uint64 {
			va := r.Uint64() >> 1 >> uint(16+9*(5-levels)-r.IntN(2)*r.IntN(9)) &^ 0xfff
			va = va & (1<<(12+9*levels-1) - 1) &^ (r.Uint64() & 0x7fff_ff00_0000)
			if r.IntN(2) == 0 {
				va = ^va &^ 0xfff
			}
			return va
		}
		for range 60 {
			b.set(at(), 1, r.Uint64()>>12<<12&0xffff000|p)
			if r.IntN(10) == 0 {
				if va := at() &^ (2<<20 - 1); b.m != nil {
					if _, err := b.tables(b.m).Lookup(va); err != nil {
						b.set(va, 2, 0x4000_0000|p|ps)
					}
				}
			}
		}
		var all []paging.Entry
		for e := range b.tables(b.m).Entries(0, 0) {
			if n := len(all); n > 0 && all[n-1].VA >= e.VA {
				t.Fatalf("%#x after %#x", e.VA, all[n-1].VA)
			}
			all = append(all, e)
		}
		if len(all) < 50 {
			t.Fatalf("%d entries", len(all))
		}
		edge := func() uint64 {
			e := all[r.IntN(len(all))]
			return e.VA + []uint64{0, 1, e.Size - 1, e.Size, -e.Size}[r.IntN(5)]
		}
		for range 40 {
			start, end := edge(), edge()
			if end != 0 && end < start {
				start, end = end, start
			}
			var want, got []paging.Entry
			for _, e := range all {
				if (end == 0 || e.VA < end) && e.VA+(e.Size-1) >= start && (end == 0 || start < end) {
					want = append(want, e)
				}
			}
			if err := b.tables(viewed{b.m}).Walk(start, end, func(e paging.Entry) bool {
				got = append(got, e)
				return true
			}); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("Walk(%#x, %#x): %s", start, end, diff)
			}
		}
	}
}

func TestWalkStops(t *testing.T) {
	b := build(1<<20, 4)
	for i := range uint64(600) {
		b.set(user+i*page, 1, 0x1000|p)
	}
	for _, stop := range []int{1, 10, 513} {
		n := 0
		if err := b.tables(b.m).Walk(0, 0, func(paging.Entry) bool { n++; return n < stop }); err != nil || n != stop {
			t.Errorf("%d calls, error %v, want %d", n, err, stop)
		}
	}
}

func TestWalkRootOutside(t *testing.T) {
	var te *paging.TableError
	err := paging.Tables{Mem: make(ram, page), Root: 1 << 30}.Walk(0, 0, func(paging.Entry) bool { return true })
	if !errors.As(err, &te) || te.Table != 1<<30 {
		t.Errorf("error %v", err)
	}
}

// TestWalkBomb lets few tables stand for very many.
func TestWalkBomb(t *testing.T) {
	b := build(8*page, 5)
	for l := uint64(1); l <= 5; l++ { // table l is page 6-l
		n := uint64(512)
		if l == 1 {
			n = 3
		}
		for i := range n {
			b.put((6-l)*page+i*8, (7-l)*page|p|rw)
		}
	}
	n := 0
	err := b.tables(viewed{b.m}).Walk(0, 0, func(paging.Entry) bool { n++; return true })
	if !errors.Is(err, paging.ErrLimit) {
		t.Errorf("%d entries, error %v, want ErrLimit", n, err)
	}
}
