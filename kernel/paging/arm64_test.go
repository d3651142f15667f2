package paging_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// Bits of an arm64 descriptor.
const (
	valid, isTable      = 1, 2
	apUser, apRO, af    = 1 << 6, 1 << 7, 1 << 10
	nG, dbm, contig     = 1 << 11, 1 << 51, 1 << 52
	pxn, uxn            = 1 << 53, 1 << 54
	swDirty, armSpecial = 1 << 55, 1 << 56
	bit58, bit59        = 1 << 58, 1 << 59
	armPage             = valid | isTable | af
	armBlock            = valid | af
	readonly            = armPage | apUser | apRO | nG | pxn
)

// armBuilder makes arm64 tables; its root is at the given address, since that of five
// levels is smaller than a page.
type armBuilder struct {
	builder
	root  uint64
	upper bool
}

func buildARM(levels int, upper bool) *armBuilder {
	b := &armBuilder{builder{m: make(ram, 1<<20), levels: levels, next: 2 * page}, page, upper}
	if levels == 5 {
		b.root += 3 * 128
	}
	return b
}

func (b *armBuilder) set(va uint64, level int, entry uint64) {
	at := b.root
	for l := b.levels; ; l-- {
		mask := uint64(511)
		if l == 5 {
			mask = 15
		}
		slot := at + va>>(12+9*(l-1))&mask*8
		if l == level {
			b.put(slot, entry)
			return
		}
		if b.word(slot) == 0 {
			b.put(slot, b.next|valid|isTable)
			b.next += page
		}
		at = b.word(slot) &^ 0xfff
	}
}

func (b *armBuilder) tables(mem vmi.Memory, f paging.Format) paging.Tables {
	return paging.Tables{
		Mem: mem, Root: vmi.Phys(b.root), Levels: b.levels, Format: f, Upper: b.upper, LPA2: b.levels == 5,
		Swap: linux612,
	}
}

// armSwap is the entry of a swap type and offset.
func armSwap(f paging.Format, typ, off uint64) uint64 {
	switch f {
	case paging.FormatARM64v5_10:
		return typ<<2 | off<<8
	case paging.FormatARM64v5_19:
		return typ<<3 | off<<8
	}
	return typ<<6 | off<<12
}

func TestARM64Translate(t *testing.T) {
	for _, tt := range []struct {
		levels int
		upper  bool
		va     uint64 // in the lowest table
		block  uint64 // mapped by a block of 1 GiB
		wrong  uint64 // of the other half, or beyond the address bits
	}{
		{3, false, 0x7f_1234_5000, 0x40_0000_0000, 0x80_0000_0000},
		{3, true, 0xffff_ff80_1234_5000, 0xffff_ffc0_4000_0000, 0xffff_ff7f_ffff_f000},
		{4, false, 0xffff_a2f9_0000, 0x8000_0000_0000, 0x1_0000_0000_0000},
		{4, true, 0xffff_a6e7_8ae1_0000, 0xffff_8000_4000_0000, 0x7fff_a6e7_8ae1_0000},
		{5, false, 0xf_ffff_a2f9_0000, 0x8_0000_0000_0000, 0x10_0000_0000_0000},
		{5, true, 0xffff_a396_15c1_0000, 0xfff0_0000_4000_0000, 0xffe0_0000_0000_0000},
	} {
		b := buildARM(tt.levels, tt.upper)
		b.set(tt.va, 1, 0x1234000|readonly)
		b.set(tt.block, 3, 0x80_4000_0000|armBlock)
		for _, mem := range []vmi.Memory{b.m, viewed{b.m}} {
			tab := b.tables(mem, paging.FormatARM64v6_10)
			if pa, size, err := tab.Translate(tt.va + 0x123); err != nil || pa != 0x1234123 || size != page {
				t.Errorf("%d levels: Translate(%#x) = %#x, %#x, %v", tt.levels, tt.va, pa, size, err)
			}
			if pa, size, err := tab.Translate(tt.block + 0x1234567); err != nil || pa != 0x80_4123_4567 || size != 1<<30 {
				t.Errorf("%d levels: Translate(%#x) = %#x, %#x, %v", tt.levels, tt.block, pa, size, err)
			}
			var none *paging.NotMappedError
			for _, va := range []uint64{tt.wrong, tt.va ^ 1<<63, tt.va + page} {
				if _, _, err := tab.Translate(va); !errors.As(err, &none) || none.VA != va {
					t.Errorf("%d levels: Translate(%#x): %v", tt.levels, va, err)
				}
			}
			var got []uint64
			for e := range tab.Entries(0, 0) {
				got = append(got, e.VA)
			}
			want := []uint64{min(tt.va, tt.block), max(tt.va, tt.block)}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%d levels: %s", tt.levels, diff)
			}
		}
	}
}

// TestARM64Entries has every kind of entry, as each age of Linux writes it.
func TestARM64Entries(t *testing.T) {
	const v510, v519, v610 = paging.FormatARM64v5_10, paging.FormatARM64v5_19, paging.FormatARM64v6_10
	for _, f := range []paging.Format{v510, v519, v610} {
		old := f != v610
		none := uint64(nG) // in a page that nobody may touch
		if old {
			none = nG | bit58
		}
		split := uint64(nG)
		if old {
			split = nG | bit59
		}
		type want struct {
			va, entry, pfn uint64
			level          int
			kind           paging.Kind
			flags          string
		}
		wants := []want{
			{0x1000, 0x1234000 | readonly | uxn, 0x1234, 1, paging.Present, "present user accessed nx"},
			{0x2000, 0x1235000 | readonly | dbm | swDirty, 0x1235, 1, paging.Present, "present writable user accessed dirty"},
			{0x3000, 0x1236000 | armPage | apUser | nG | dbm | pxn | uxn, 0x1236, 1, paging.Present, "present writable user accessed dirty nx"},
			{0x4000, 0x1237000 | readonly | dbm | armSpecial, 0x1237, 1, paging.Present, "present writable user accessed special"},
			{0x5000, 0x1238000 | (readonly|uxn)&^valid | none, 0x1238, 1, paging.ProtNone, "present accessed nx"},
			{0x6000, armSwap(f, 3, 0x12345), 0, 1, paging.Swap, "type3 off12345"},
			{0x7000, armSwap(f, 32-9, 0x777), 0x777, 1, paging.HWPoison, "type23 off777"},
			{0x8000, armSwap(f, 32-8, 1<<40|0x4321), 0x4321, 1, paging.Migration, "type24 off10000004321"},
			{0x9000, armSwap(f, 32-5, 5), 0, 1, paging.Device, "type27 off5"},
			{0xa000, armSwap(f, 31, 4), 0, 1, paging.Marker, "type31 off4 marker4"},
			{0xb000, 0x9_0000 | valid | af, 0, 1, paging.Bad, ""}, // a block where pages are
			{0x20_0000, 0x4000_0000 | armBlock | apUser | nG | dbm | pxn | uxn, 0x40000, 2, paging.Present, "present writable user accessed dirty nx huge"},
			{0x40_0000, 0x6000_0000 | armBlock&^valid | apUser | none | pxn | uxn, 0x60000, 2, paging.ProtNone, "present accessed nx huge"},
			{0x60_0000, 0x6020_0000 | armBlock&^valid | apUser | split | pxn | uxn | apRO, 0x60200, 2, paging.ProtNone, "present accessed nx huge"},
			{0x80_0000, armSwap(f, 32-7, 0x60400), 0x60400, 2, paging.Migration, "huge type25 off60400"},
			{0xa0_0000, 0x8_0000_0000 | valid | isTable, 0x800000, 2, paging.Bad, "huge"}, // its table is not in RAM
			{0x4000_0000, 0x1_4000_0000 | armBlock | apRO | pxn, 0x140000, 3, paging.Present, "present accessed huge"},
			{0x80_0000_0000, page | valid | isTable, 1, 4, paging.Bad, "huge"}, // points back at the root
			{0x100_0000_0000, valid, 0, 4, paging.Bad, "huge"},
		}
		b := buildARM(4, false)
		for _, w := range wants {
			b.set(w.va, w.level, w.entry)
		}
		for _, mem := range []vmi.Memory{b.m, viewed{b.m}} {
			tab := b.tables(mem, f)
			var got []want
			for e := range tab.Entries(0, 0) {
				got = append(got, want{e.VA, e.Raw, e.PFN, int(e.Level), e.Kind, flags(e)})
				if e.Kind != paging.Bad {
					if l, err := tab.Lookup(e.VA + e.Size/2); err != nil || l != e {
						t.Errorf("format %d: Lookup(%#x) = %+v, %v, want %+v", f, e.VA, l, err, e)
					}
				}
			}
			if diff := cmp.Diff(wants, got, cmp.AllowUnexported(want{})); diff != "" {
				t.Errorf("format %d, %T: %s", f, mem, diff)
			}
		}
	}
}

// TestARM64SwapBits tests the bits beside type and offset.
func TestARM64SwapBits(t *testing.T) {
	for _, tt := range []struct {
		f     paging.Format
		extra uint64
		want  string
	}{
		{paging.FormatARM64v5_10, 0, "type9 off12345"},
		{paging.FormatARM64v5_19, 1 << 2, "exclusive type9 off12345"},
		{paging.FormatARM64v6_10, 1 << 2, "exclusive type9 off12345"},
		{paging.FormatARM64v6_10, 1 << 3, "uffdwp type9 off12345"},
	} {
		e := paging.Entry{Raw: armSwap(tt.f, 9, 0x12345) | tt.extra, Kind: paging.Swap, Format: tt.f, Size: page}
		if got := flags(e); got != tt.want {
			t.Errorf("format %d: %q, want %q", tt.f, got, tt.want)
		}
	}
	e := paging.Entry{Raw: readonly | bit58 | contig, Kind: paging.Present, Format: paging.FormatARM64v6_10, Size: page}
	if !e.UffdWP() || !e.Contiguous() {
		t.Errorf("UffdWP %v, Contiguous %v", e.UffdWP(), e.Contiguous())
	}
}

// TestARM64LPA2 has addresses of 52 bits, in a page and in the way to it.
func TestARM64LPA2(t *testing.T) {
	b := buildARM(5, false)
	b.set(0x1000, 1, 0x1_8765_4321_0000|3<<8|armPage)
	tab := b.tables(b.m, paging.FormatARM64v6_10)
	if pa, _, err := tab.Translate(0x1000); err != nil || pa != 0xd_8765_4321_0000 {
		t.Errorf("%#x, %v", pa, err)
	}
	tab.LPA2 = false
	if pa, _, err := tab.Translate(0x1000); err != nil || pa != 0x8765_4321_0000 {
		t.Errorf("without LPA2: %#x, %v", pa, err)
	}
}

func TestArchNames(t *testing.T) {
	if paging.FormatARM64v5_19.Arch() != paging.ARM64 || paging.FormatX86.Arch() != paging.X86_64 || paging.Format(200).Arch() != paging.X86_64 {
		t.Error("formats belong to other architectures")
	}
	if s := paging.X86_64.String() + paging.ARM64.String() + paging.Arch(9).String(); s != "x86-64arm64arch9" {
		t.Error(s)
	}
}

// FuzzWalkARM64 is FuzzWalk for arm64: walks end, in order, and agree with Lookup.
func FuzzWalkARM64(f *testing.F) {
	b := buildARM(4, false)
	b.set(0x1000, 1, 0x3000|armPage)
	b.set(0x20_0000, 2, 0x4000_0000|armBlock)
	b.set(0x2000, 1, armSwap(paging.FormatARM64v6_10, 1, 2))
	for mode := range uint8(12) {
		f.Add([]byte(b.m[page:b.next]), mode, uint64(0), uint64(0))
	}
	f.Fuzz(func(t *testing.T, mem []byte, mode uint8, start, end uint64) {
		m := make(ram, (len(mem)+page-1)&^(page-1))
		copy(m, mem)
		tab := paging.Tables{
			Mem: m, Levels: 3 + int(mode%3), Format: paging.FormatARM64v5_10 + paging.Format(mode/3%3),
			Upper: mode&0x40 != 0, LPA2: mode&0x80 != 0, Root: vmi.Phys(mode&0x20) * 4, Swap: linux612,
		}
		if mode&0x10 != 0 {
			tab.Mem = viewed{m}
		}
		checkWalk(t, tab, start, end)
	})
}
