package kdump

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// The rank of every page, and the ranges, are what counting bits one by one gives.
func TestIndexProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		end := rapid.Uint64Range(1, 5000).Draw(rt, "end")
		need := int((end + 7) / 8)
		b := make([]byte, 2*need)
		for range rapid.IntRange(0, 30).Draw(rt, "runs") {
			at := rapid.IntRange(0, 16*need-1).Draw(rt, "at")
			n := rapid.IntRange(1, 3000).Draw(rt, "n")
			for i := at; i < min(at+n, 16*need); i++ {
				b[i/8] |= 1 << (i % 8)
			}
		}
		m := mapBytes(t, b)
		defer m.Close()
		p := &part{in: input{m: m, size: uint64(len(b))}}
		p.header.shift, p.header.end = 12, end
		p.header.ram, p.header.dumped = span{0, uint64(need)}, span{uint64(need), uint64(need)}
		x, ranges, err := indexPages(t.Context(), p)
		bit := func(i uint64) bool { return b[i/8]>>(i%8)&1 != 0 }
		var want []vmi.Range
		for pfn := range end {
			if bit(pfn) {
				want = appendPage(want, pfn)
			}
		}
		if want == nil {
			require.ErrorIs(rt, err, ErrCorrupt)
			return
		}
		require.NoError(rt, err)
		require.Equal(rt, want, ranges)
		rank := uint64(0)
		for pfn := range end + 3 {
			got, ok, err := x.find(pfn)
			require.NoError(rt, err)
			require.Equal(rt, rank, got)
			set := pfn < end && bit(uint64(8*need)+pfn)
			require.Equal(rt, set, ok)
			if set {
				rank++
			}
			require.Equal(rt, pfn < end && bit(pfn), containsPage(ranges, vmi.Phys(pfn<<12)))
		}
	})
}

func appendPage(to []vmi.Range, pfn uint64) []vmi.Range {
	r := vmi.Range{Start: vmi.Phys(pfn << 12), End: vmi.Phys((pfn + 1) << 12)}
	if k := len(to) - 1; k >= 0 && to[k].End == r.Start {
		to[k].End = r.End
		return to
	}
	return append(to, r)
}

func TestBitmapWriter(t *testing.T) {
	// Chunks and groups beyond the first, against the writer's bitmap.
	pages := []pageRange{{3, 5}, {30, 70000}, {70001, 70002}, {chunkPFNs - 1, chunkPFNs + 70000}, {3*chunkPFNs + 5, 3*chunkPFNs + 6}}
	end := pages[len(pages)-1].end
	f := newTemp(t)
	w := bitmapWriter{f: f}
	for _, r := range pages {
		require.NoError(t, w.set(r.start, r.end-r.start))
	}
	require.NoError(t, w.flush())
	m := mapFile(t, f)
	defer m.Close()
	s := span{0, (end + 7) / 8}
	p := &part{in: input{m: m, size: m.Size()}, header: header{shift: 12, end: end, ram: s, dumped: s}}
	x, ranges, err := indexPages(t.Context(), p)
	require.NoError(t, err)
	require.Len(t, ranges, len(pages))
	rank := uint64(0)
	for i, r := range pages {
		require.Equal(t, vmi.Range{Start: vmi.Phys(r.start << 12), End: vmi.Phys(r.end << 12)}, ranges[i])
		for _, pfn := range []uint64{r.start, r.end - 1, r.end} {
			got, ok, err := x.find(pfn)
			require.NoError(t, err)
			require.Equal(t, rank+pfn-r.start, got)
			require.Equal(t, pfn < r.end, ok)
		}
		rank += r.end - r.start
	}
	require.Nil(t, x.chunks[2].groups, "no page, no memory")
}
