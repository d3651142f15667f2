package kdump_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/kdump"
	"github.com/ovmigrate/ovmigrate/vmi/vmitest"
)

const page = vmi.PageSize

// fill puts pages of all kinds into memory: zeros, text, noise.
func fill(m *vmitest.Mem, r vmi.Range) {
	rng := rand.New(rand.NewPCG(7, uint64(r.Start)))
	for a := r.Start; a < r.End; a += page {
		b := make([]byte, page)
		switch rng.IntN(4) {
		case 0:
			continue
		case 1:
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
		default:
			for i := range b {
				b[i] = "task_struct"[rng.IntN(11)]
			}
		}
		m.Set(a, b)
	}
}

func open(t testing.TB, path string) vmi.Image {
	m, err := vmi.Open(t.Context(), path, nil)
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

// samePages fails unless got has the pages of want in r.
func samePages(t testing.TB, want, got vmi.Memory, r vmi.Range) {
	a, b := make([]byte, page), make([]byte, page)
	for at := r.Start; at < r.End; at += page {
		_, err := want.ReadPhys(a, at)
		require.NoError(t, err)
		_, err = got.ReadPhys(b, at)
		require.NoError(t, err)
		require.Equal(t, a, b, "%#x", at)
	}
}

func TestWrite(t *testing.T) {
	ranges := []vmi.Range{
		{Start: 0, End: 0x9f000},
		{Start: 1 << 20, End: 9 << 20},
		{Start: 128<<20 - 3*page, End: 128<<20 + 5*page}, // over the end of a block of the bitmap
		{Start: 5<<30 + 7*page, End: 5<<30 + 100*page},
	}
	m := vmitest.New(ranges...)
	for _, r := range ranges {
		fill(m, r)
	}
	cpus := []vmi.CPU{{RIP: 1, CS: 0x10}, {ID: 1, RIP: 2, CR3: 3, Known: vmi.KnownControl}}
	for i := range cpus {
		cpus[i].Known = vmi.KnownControl
	}
	info := "OSRELEASE=6.1.0\nNUMBER(phys_base)=-4096\nX"
	for _, c := range []kdump.Compression{kdump.Zlib, kdump.Zstd, kdump.None} {
		path := filepath.Join(t.TempDir(), "dump")
		var last, total uint64
		require.NoError(t, kdump.Write(t.Context(), path, m, &kdump.WriteOptions{
			Compression: c,
			DumpOptions: vmi.DumpOptions{
				VMCoreInfo: []byte(info), CPUs: cpus,
				Progress: func(d, of uint64) {
					require.Greater(t, d, last)
					last, total = d, of
				},
			},
		}))
		require.Equal(t, total, last)
		got := open(t, path)
		require.Equal(t, ranges, got.Ranges())
		for _, r := range ranges {
			samePages(t, m, got, r)
			require.Positive(t, total)
			total -= r.Len()
		}
		require.Zero(t, total)
		require.Equal(t, info, string(got.(vmi.Notes).VMCoreInfo()))
		all, err := got.(vmi.CPUs).CPUs(t.Context())
		require.NoError(t, err)
		require.Equal(t, cpus, all)
		var fault *vmi.FaultError
		_, err = got.ReadPhys(make([]byte, 1), 0x9f000)
		require.ErrorAs(t, err, &fault)
		require.NoError(t, fault.Err, "no RAM")
		n, err := got.ReadPhys(make([]byte, 3*page), 0x9f000-page-8)
		require.ErrorAs(t, err, &fault)
		require.Equal(t, page+8, n)
		require.EqualValues(t, 0x9f000, fault.Addr)
		for _, a := range []vmi.Phys{5<<30 + 100*page, 1 << 50, ^vmi.Phys(0)} {
			_, err = got.ReadPhys(make([]byte, 16), a)
			require.ErrorAs(t, err, &fault, "%#x", a)
		}
		require.NoError(t, got.Close())
		_, err = got.ReadPhys(make([]byte, 16), 0)
		require.ErrorIs(t, err, os.ErrClosed)
	}
}

// What memory lacks is missing in the dump and is said to be, page by page.
func TestWriteExcluded(t *testing.T) {
	ranges := []vmi.Range{{Start: 0x800, End: 0x100000}, {Start: 0x200000, End: 0x280800}, {Start: 0x280900, End: 0x281000}}
	m := vmitest.New(ranges...)
	m.Set(0x10000, []byte("here"))
	m.Fault(vmi.Range{Start: 0x20010, End: 0x20020}, vmi.ErrExcluded)
	m.Fault(vmi.Range{Start: 0x30000, End: 0x70000}, vmi.ErrExcluded)
	path := filepath.Join(t.TempDir(), "dump")
	require.NoError(t, kdump.Write(t.Context(), path, struct{ vmi.Memory }{m}, nil))
	got := open(t, path)
	require.Equal(t, []vmi.Range{{Start: 0, End: 0x100000}, {Start: 0x200000, End: 0x281000}}, got.Ranges())
	missing := 0
	for _, r := range got.Ranges() {
		for a := r.Start; a < r.End; a += page {
			var b [page]byte
			if _, err := got.ReadPhys(b[:], a); err != nil {
				require.ErrorIs(t, err, vmi.ErrExcluded)
				missing++
			}
			require.Equal(t, a == 0x10000, string(b[:4]) == "here")
		}
	}
	require.Equal(t, 1+1+0x40+1, missing, "the page at 0x280000 has a hole")
	_, err := got.(vmi.CPUs).CPUs(t.Context())
	require.ErrorIs(t, err, vmi.ErrNoCPUs)
	require.Nil(t, got.(vmi.Notes).VMCoreInfo())

	// And what is missing stays so in a dump of the dump.
	again := filepath.Join(t.TempDir(), "again")
	require.NoError(t, kdump.Write(t.Context(), again, got, &kdump.WriteOptions{Compression: kdump.Zstd}))
	_, err = open(t, again).ReadPhys(make([]byte, 8), 0x20000)
	require.ErrorIs(t, err, vmi.ErrExcluded)
}

// sparse is memory most of which must not be read.
type sparse struct {
	*vmitest.Mem
	data []vmi.Range
}

func (s sparse) Data() []vmi.Range { return s.data }

func TestWriteSparse(t *testing.T) {
	all := vmi.Range{Start: 0, End: 64 << 20}
	m := sparse{vmitest.New(all), []vmi.Range{{Start: 1 << 20, End: 1<<20 + page}, {Start: 32 << 20, End: 33 << 20}}}
	for _, r := range m.data {
		fill(m.Mem, r)
	}
	for _, r := range []vmi.Range{{Start: 0, End: 1 << 19}, {Start: 2 << 20, End: 32 << 20}, {Start: 34 << 20, End: all.End}} {
		m.Fault(r, errors.New("read where nothing is"))
	}
	path := filepath.Join(t.TempDir(), "dump")
	require.NoError(t, kdump.Write(t.Context(), path, m, nil))
	m.ClearFaults()
	samePages(t, m, open(t, path), all)
}

func TestWriteFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "dump")
	r := vmi.Range{Start: 0, End: 32 << 20}
	m := vmitest.New(r)
	fill(m, r)
	boom := errors.New("boom")
	m.Fault(vmi.Range{Start: 20 << 20, End: 20<<20 + 1}, boom)
	empty := func() {
		names, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Empty(t, names)
	}
	err := kdump.Write(t.Context(), path, m, nil)
	require.ErrorIs(t, err, boom)
	require.NotContains(t, err.Error(), "\n")
	empty()
	m.ClearFaults()
	ctx, cancel := context.WithCancel(t.Context())
	err = kdump.Write(ctx, path, m, &kdump.WriteOptions{DumpOptions: vmi.DumpOptions{Progress: func(done, _ uint64) {
		if done > 4<<20 {
			cancel()
		}
	}}})
	require.ErrorIs(t, err, context.Canceled)
	empty()
	for name, o := range map[string]*kdump.WriteOptions{
		"no compression": {Compression: 9},
		"registers":      {DumpOptions: vmi.DumpOptions{Machine: "aarch64", CPUs: make([]vmi.CPU, 1)}},
		"too many notes": {DumpOptions: vmi.DumpOptions{VMCoreInfo: make([]byte, 2<<20)}},
	} {
		require.ErrorContains(t, kdump.Write(t.Context(), path, m, o), name)
	}
	require.ErrorContains(t, kdump.Write(t.Context(), path, vmitest.New(vmi.Range{Start: 1 << 50, End: 1<<50 + page}), nil), "addresses end")
	empty()
}

func BenchmarkWrite(b *testing.B) {
	r := vmi.Range{Start: 0, End: 64 << 20}
	m := vmitest.New(r)
	fill(m, r)
	for name, c := range map[string]kdump.Compression{"zlib": kdump.Zlib, "zstd": kdump.Zstd, "none": kdump.None} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(r.Len()))
			for b.Loop() {
				if err := kdump.Write(b.Context(), filepath.Join(b.TempDir(), "d"), m, &kdump.WriteOptions{Compression: c}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
