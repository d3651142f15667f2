package segment

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/ovmigrate/ovmigrate/vmi"
)

func TestTable(t *testing.T) {
	tab, err := New([]Segment{
		{Addr: 0x3000, Len: 0x1000, Src: 1, Off: 0},
		{Addr: 0x1000, Len: 0x1000, Src: 0, Off: 0x5000},
		{Addr: 0x2000, Len: 0x1000, Src: 0, Off: 0x6000}, // joins the one before
		{Addr: 0x8000, Len: 0x1000, Src: 0, Off: 0},
		{Addr: 0x9000, Len: 0},
	})
	require.NoError(t, err)
	require.Len(t, tab.Segments(), 3)
	require.Equal(t, []vmi.Range{{Start: 0x1000, End: 0x4000}, {Start: 0x8000, End: 0x9000}}, tab.Ranges())

	src, off, ok := tab.Find(0x1ff8, 16)
	require.True(t, ok)
	require.Equal(t, 0, src)
	require.EqualValues(t, 0x5ff8, off)
	_, _, ok = tab.Find(0x2ff8, 16)
	require.False(t, ok, "two sources")

	boom := errors.New("boom")
	n, err := tab.Do(make([]byte, 0x10), 0x2ff8, func(p []byte, src int, off uint64) error {
		require.Len(t, p, 8)
		if src == 1 {
			return boom
		}
		return nil
	})
	require.Equal(t, 8, n)
	require.ErrorIs(t, err, boom)
	var fault *vmi.FaultError
	require.ErrorAs(t, err, &fault)
	require.EqualValues(t, 0x3000, fault.Addr)
	require.Equal(t, 8, fault.Len)

	got := tab.Select(func(src int) []Extent {
		if src == 1 {
			return nil
		}
		return []Extent{{0x800, 0x100}, {0x5f00, 0x200}, {0x6f00, 0x9000}}
	})
	require.Equal(t, []vmi.Range{{Start: 0x1f00, End: 0x2100}, {Start: 0x2f00, End: 0x3000}, {Start: 0x8800, End: 0x8900}}, got)
}

func TestBadTables(t *testing.T) {
	for _, segs := range [][]Segment{
		nil,
		{{Addr: 0, Len: 2}, {Addr: 1, Len: 2}},
		{{Addr: 1 << 63, Len: 1 << 63}},
		{{Addr: 0, Len: 1 << 60}},
	} {
		_, err := New(segs)
		require.Error(t, err)
	}
}

// Do touches exactly the bytes that a plain walk over all segments would.
func TestDoProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var segs []Segment
		var addr vmi.Phys
		for i := range rapid.IntRange(1, 6).Draw(t, "segments") {
			addr += vmi.Phys(rapid.IntRange(0, 3).Draw(t, "gap"))
			n := rapid.IntRange(1, 5).Draw(t, "len")
			segs = append(segs, Segment{Addr: addr, Len: uint64(n), Src: i % 2, Off: uint64(i * 100)})
			addr += vmi.Phys(n)
		}
		type place struct {
			src int
			off uint64
		}
		want := make(map[vmi.Phys]place)
		for _, s := range segs {
			for i := range s.Len {
				want[s.Addr+vmi.Phys(i)] = place{s.Src, s.Off + i}
			}
		}
		tab, err := New(segs)
		if err != nil {
			t.Fatal(err)
		}
		start := vmi.Phys(rapid.IntRange(0, 50).Draw(t, "start"))
		length := rapid.IntRange(0, 50).Draw(t, "n")
		var got []place
		n, err := tab.Do(make([]byte, length), start, func(p []byte, src int, off uint64) error {
			for i := range p {
				got = append(got, place{src, off + uint64(i)})
			}
			return nil
		})
		if n != len(got) || (err == nil) != (n == length) {
			t.Fatalf("n = %d, err = %v, %d places", n, err, len(got))
		}
		for i, p := range got {
			if want[start+vmi.Phys(i)] != p {
				t.Fatalf("byte %d: %v, want %v", i, p, want[start+vmi.Phys(i)])
			}
		}
		if _, ok := want[start+vmi.Phys(n)]; ok && err != nil {
			t.Fatal("stopped before the end of memory")
		}
	})
}
