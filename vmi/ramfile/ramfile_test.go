package ramfile

import (
	"bytes"
	"encoding/binary"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// sparse makes a RAM file of size bytes with the given pages filled.
func sparse(t testing.TB, size int64, pages ...int64) string {
	t.Helper()
	dir := t.TempDir()
	if d, err := os.MkdirTemp("/dev/shm", "ramfile"); err == nil {
		dir = d
		t.Cleanup(func() { os.RemoveAll(d) })
	}
	path := filepath.Join(dir, "ram")
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.Truncate(size))
	for _, p := range pages {
		_, err := f.WriteAt(bytes.Repeat([]byte{byte(p) | 1}, vmi.PageSize), p*vmi.PageSize)
		require.NoError(t, err)
	}
	return path
}

func open(t testing.TB, arg string, o *vmi.Options) vmi.Image {
	t.Helper()
	m, err := vmi.Open(t.Context(), arg, o)
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

func TestReadView(t *testing.T) {
	m := open(t, sparse(t, 4<<20, 3, 4), nil)
	require.Equal(t, []vmi.Range{{Start: 0, End: 4 << 20}}, m.Ranges())
	p := make([]byte, 8)
	n, err := m.ReadPhys(p, 4*vmi.PageSize-4)
	require.NoError(t, err)
	require.Equal(t, 8, n)
	require.Equal(t, []byte{3, 3, 3, 3, 5, 5, 5, 5}, p)
	require.Equal(t, p, m.(vmi.Viewer).View(4*vmi.PageSize-4, 8))
	require.Nil(t, m.(vmi.Viewer).View(4<<20-4, 8))
	require.Nil(t, m.(vmi.Viewer).View(0, -1))

	n, err = m.ReadPhys(p, 4<<20-4)
	require.Equal(t, 4, n)
	var fault *vmi.FaultError
	require.ErrorAs(t, err, &fault)
	require.Equal(t, vmi.FaultError{Addr: 4 << 20, Len: 4}, *fault)
	_, err = m.ReadPhys(p, 1<<63)
	require.ErrorAs(t, err, &fault)
	_, err = m.ReadPhys(p, ^vmi.Phys(0))
	require.ErrorAs(t, err, &fault)

	_, isWriter := m.(vmi.Writer)
	require.False(t, isWriter, "opened read-only")

	require.NoError(t, m.Close())
	require.NoError(t, m.Close())
	_, err = m.ReadPhys(p, 0)
	require.ErrorIs(t, err, fs.ErrClosed)
	require.Nil(t, m.(vmi.Viewer).View(0, 8))
}

func TestWrite(t *testing.T) {
	path := sparse(t, 1<<20)
	m := open(t, path, &vmi.Options{Writable: true})
	w := m.(vmi.Writer)
	for i, n := range []int{1, 2, 4, 8, 3, 5, 4096, 8} {
		p := bytes.Repeat([]byte{byte(i + 1)}, n)
		addr := vmi.Phys(0x1000*i + i%8/7) // the last one is not aligned
		k, err := w.WritePhys(p, addr)
		require.NoError(t, err)
		require.Equal(t, n, k)
		got := make([]byte, n+1)
		_, err = m.ReadPhys(got, addr)
		require.NoError(t, err)
		require.Equal(t, append(p, got[n]), got)
		disk, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, p, disk[addr:int(addr)+n])
	}
	n, err := w.WritePhys(make([]byte, 8), 1<<20-4)
	require.Equal(t, 4, n)
	require.Error(t, err)
}

// A word written by one goroutine is never seen half written by another.
func TestWordsAreWhole(t *testing.T) {
	m := open(t, sparse(t, 1<<20, 0), &vmi.Options{Writable: true})
	m.(vmi.Writer).WritePhys(make([]byte, 8), 64)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 20000 {
			m.(vmi.Writer).WritePhys(bytes.Repeat([]byte{byte(i)}, 8), 64)
		}
	})
	wg.Go(func() {
		var p [8]byte
		for range 20000 {
			m.ReadPhys(p[:], 64)
			v := binary.LittleEndian.Uint64(p[:])
			if v != v&0xff*0x0101010101010101 {
				t.Errorf("torn word %#x", v)
				return
			}
		}
	})
	wg.Wait()
}

func TestPCIHole(t *testing.T) {
	const size = 3 << 30
	const below = 2 << 30
	path := sparse(t, size, below/vmi.PageSize-1, below/vmi.PageSize, size/vmi.PageSize-1)
	_, err := vmi.Open(t.Context(), path, nil)
	require.ErrorContains(t, err, "?below4g=2G")
	require.ErrorContains(t, err, path)
	require.NotContains(t, err.Error(), "\n")

	m := open(t, path+"?below4g=2G", nil)
	require.Equal(t, []vmi.Range{{Start: 0, End: below}, {Start: 4 << 30, End: 5 << 30}}, m.Ranges())
	p := make([]byte, 4)
	_, err = m.ReadPhys(p, 4<<30)
	require.NoError(t, err)
	require.Equal(t, []byte{1, 1, 1, 1}, p)
	n, err := m.ReadPhys(p, below-2)
	require.Equal(t, 2, n)
	var fault *vmi.FaultError
	require.ErrorAs(t, err, &fault)
	require.EqualValues(t, below, fault.Addr)
	require.Equal(t, []vmi.Range{
		{Start: below - vmi.PageSize, End: below},
		{Start: 4 << 30, End: 4<<30 + vmi.PageSize},
		{Start: 5<<30 - vmi.PageSize, End: 5 << 30},
	}, m.(vmi.Sparse).Data())

	same := open(t, path+"?layout=0:0:2G,4G:2G:1G", nil)
	require.Equal(t, m.Ranges(), same.Ranges())
	id := open(t, path+"?layout=identity", nil)
	require.Equal(t, []vmi.Range{{Start: 0, End: size}}, id.Ranges())
}

func TestBadLayout(t *testing.T) {
	path := sparse(t, 1<<20)
	for _, tt := range []struct{ params, want string }{
		{"below4g=5G", "at most 4G"},
		{"below4g=1", "whole pages"},
		{"below4g=x", "no size"},
		{"below4g=99999999T", "too large"},
		{"hole=2G", "unknown parameter"},
		{"below4g=1G&layout=identity", "exclude"},
		{"layout=0:0", "PHYS:OFFSET:LENGTH"},
		{"layout=0:0:2M", "truncated"},
		{"layout=0:0:64K,32K:64K:64K", "there twice"},
		{"layout=0x8000000000000000:0:4K", "no such address"},
		{"layout=0:0:0", "no guest memory"},
	} {
		_, err := vmi.Open(t.Context(), path+"?"+tt.params, nil)
		require.ErrorContains(t, err, tt.want, tt.params)
	}
}

func TestHolesStayHoles(t *testing.T) {
	path := sparse(t, 64<<20, 100)
	m := open(t, path, nil)
	data := m.(vmi.Sparse).Data()
	require.Equal(t, []vmi.Range{{Start: 100 * vmi.PageSize, End: 101 * vmi.PageSize}}, data)
	before := blocks(t, path)
	for _, r := range data {
		_, err := m.ReadPhys(make([]byte, r.Len()), r.Start)
		require.NoError(t, err)
	}
	require.Equal(t, before, blocks(t, path))
	require.Empty(t, open(t, sparse(t, 1<<20), nil).(vmi.Sparse).Data())
}

func blocks(t *testing.T, path string) int64 {
	st, err := os.Stat(path)
	require.NoError(t, err)
	return st.Sys().(*syscall.Stat_t).Blocks
}

func TestShrunkFile(t *testing.T) {
	path := sparse(t, 2<<20, 0, 300)
	m := open(t, path, &vmi.Options{Writable: true})
	require.NoError(t, os.Truncate(path, 1<<20))
	p := make([]byte, vmi.PageSize)
	_, err := m.ReadPhys(p, 300*vmi.PageSize)
	var fault *vmi.FaultError
	require.ErrorAs(t, err, &fault)
	require.ErrorIs(t, err, vmi.ErrTruncated)
	_, err = m.(vmi.Writer).WritePhys(p, 300*vmi.PageSize)
	require.ErrorIs(t, err, vmi.ErrTruncated)
	_, err = m.ReadPhys(p, 0)
	require.NoError(t, err, "what is left can be read")
	view := m.(vmi.Viewer).View(300*vmi.PageSize, 8)
	require.Error(t, vmi.Guard(func() { p[0] = view[0] }))
}

func TestNotRAM(t *testing.T) {
	dir := t.TempDir()
	write := func(name, head string, size int) string {
		b := make([]byte, size)
		copy(b, head)
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, b, 0o600))
		return path
	}
	for _, path := range []string{
		write("empty", "", 0),
		write("short", "", 4096),
		write("odd", "", 1<<20+1),
		write("qcow2", "QFI\xfb", 1<<20),
		write("gz", "\x1f\x8b", 1<<20),
	} {
		_, err := vmi.Open(t.Context(), path, nil)
		require.ErrorIs(t, err, vmi.ErrFormat, path)
	}
	_, err := vmi.Open(t.Context(), filepath.Join(dir, "none"), nil)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.Equal(t, 1, strings.Count(err.Error(), "none"))
	_, err = vmi.Open(t.Context(), filepath.Join(dir, "none?below4g=2G"), nil)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = vmi.Open(t.Context(), dir, nil)
	require.ErrorContains(t, err, "is a directory")
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	_, err = vmi.Open(t.Context(), fifo, nil)
	require.ErrorContains(t, err, "not a regular file")
}

func TestQuestionMarkInName(t *testing.T) {
	path := sparse(t, 1<<20)
	odd := path + "?below4g=x"
	require.NoError(t, os.Rename(path, odd))
	open(t, odd, nil)
}

func FuzzLayout(f *testing.F) {
	f.Add("0:0:2G,4G:2G:1G")
	f.Add("0x10:0K:1t,::")
	f.Fuzz(func(t *testing.T, s string) {
		blocks, err := parseBlocks(s)
		if err == nil && len(blocks) == 0 {
			t.Fatal("no blocks and no error")
		}
	})
}

func BenchmarkRead(b *testing.B) {
	m := open(b, sparse(b, 8<<20), nil)
	for _, tt := range []struct {
		name string
		n    int
	}{{"8B", 8}, {"4KiB", 4096}, {"1MiB", 1 << 20}} {
		b.Run(tt.name, func(b *testing.B) {
			p := make([]byte, tt.n)
			b.SetBytes(int64(tt.n))
			for i := 0; b.Loop(); i++ {
				addr := vmi.Phys(i*7919*8) % (7 << 20)
				if _, err := m.ReadPhys(p, addr); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// RAM of an arm64 machine begins elsewhere, and with what a process may have put there.
func TestBase(t *testing.T) {
	path := sparse(t, 4<<20, 0, 3)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("\x7fELF\x02\x01\x01"), 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	_, err = vmi.Open(t.Context(), path, nil)
	require.ErrorIs(t, err, vmi.ErrFormat)

	m := open(t, path+"?base=1G", nil)
	require.Equal(t, []vmi.Range{{Start: 1 << 30, End: 1<<30 + 4<<20}}, m.Ranges())
	p := make([]byte, 4)
	_, err = m.ReadPhys(p, 1<<30+3*vmi.PageSize)
	require.NoError(t, err)
	require.Equal(t, []byte{3, 3, 3, 3}, p)
	var fault *vmi.FaultError
	_, err = m.ReadPhys(p, 0)
	require.ErrorAs(t, err, &fault)

	for _, bad := range []string{"base=1", "base=x", "base=0xfffffffffffff000", "base=1G&below4g=2G"} {
		_, err := vmi.Open(t.Context(), path+"?"+bad, nil)
		require.Error(t, err, bad)
	}
}
