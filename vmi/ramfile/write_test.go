package ramfile

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/vmitest"
)

// What Write writes is, opened as Layout says, what was there: with its holes.
func TestWriteAgain(t *testing.T) {
	for _, ranges := range [][]vmi.Range{
		{{Start: 0, End: 4 << 20}},
		{{Start: 0x1000, End: 0x9f000}, {Start: 1 << 20, End: 8 << 20}},
		{{Start: 0, End: 2 << 30}, {Start: 4 << 30, End: 5 << 30}},
		{{Start: 0, End: 3 << 30}},
	} {
		m := vmitest.New(ranges...)
		for _, r := range ranges {
			m.SetUint64(r.Start, uint64(r.Start)+1)
			m.SetUint64(r.Start+0x5000, uint64(r.Start)+2)
		}
		path := filepath.Join(t.TempDir(), "out.raw")
		done := uint64(0)
		require.NoError(t, Write(t.Context(), path, m, &vmi.DumpOptions{Progress: func(d, _ uint64) { done = d }}))
		st, err := os.Stat(path)
		require.NoError(t, err)
		require.Less(t, st.Sys().(*syscall.Stat_t).Blocks*512, int64(1<<20), "zeros are holes")
		arg, total := path, uint64(0)
		if l := Layout(ranges); l != "" {
			arg += "?" + l
		}
		back := open(t, arg, nil)
		require.Equal(t, ranges, back.Ranges())
		for _, r := range ranges {
			total += r.Len()
			for _, a := range []vmi.Phys{r.Start, r.Start + 0x5000, r.End - 8} {
				var p [8]byte
				_, err := back.ReadPhys(p[:], a)
				require.NoError(t, err)
				require.Equal(t, m.Uint64(a), binary.LittleEndian.Uint64(p[:]), "%#x", uint64(a))
			}
		}
		require.Equal(t, total, done)
	}
}

// A raw file cannot say that memory is missing.
func TestWriteIncomplete(t *testing.T) {
	m := vmitest.New(vmi.Range{Start: 0, End: 1 << 20})
	m.SetUint64(0x3000, 1)
	m.Fault(vmi.Range{Start: 0x3000, End: 0x4000}, vmi.ErrExcluded)
	dir := t.TempDir()
	err := Write(t.Context(), filepath.Join(dir, "x"), m, nil)
	var fault *vmi.FaultError
	require.ErrorAs(t, err, &fault)
	require.EqualValues(t, 0x3000, fault.Addr)
	require.ErrorIs(t, err, vmi.ErrExcluded)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

// bootParams writes what Firecracker leaves at 0x7000: entries of address, size, type.
func bootParams(entries ...[3]uint64) []byte {
	b := make([]byte, bootMapEnd)
	z := b[zeroPage:]
	binary.LittleEndian.PutUint16(z[bootFlagAt:], 0xaa55)
	copy(z[headerAt:], "HdrS")
	z[e820CountAt] = byte(len(entries))
	for i, e := range entries {
		at := z[e820At+i*e820Size:]
		binary.LittleEndian.PutUint64(at, e[0])
		binary.LittleEndian.PutUint64(at[8:], e[1])
		binary.LittleEndian.PutUint32(at[16:], uint32(e[2]))
	}
	return b
}

// startInfoMap writes what Cloud Hypervisor leaves at 0x6000 and 0x7000.
func startInfoMap(entries ...[3]uint64) []byte {
	b := make([]byte, bootMapEnd)
	le := binary.LittleEndian
	le.PutUint32(b[startInfo:], startMagic)
	le.PutUint64(b[startInfo+memmapAt:], 0x7000)
	le.PutUint32(b[startInfo+memmapAt+8:], uint32(len(entries)))
	for i, e := range entries {
		at := b[0x7000+i*memmapSize:]
		le.PutUint64(at, e[0])
		le.PutUint64(at[8:], e[1])
		le.PutUint32(at[16:], uint32(e[2]))
	}
	return b
}

func TestBootLayout(t *testing.T) {
	const size = 4 << 30
	table := [][3]uint64{
		{0, 0x9fc00, 1}, {0x9fc00, 0x40400, 2}, {1 << 20, 3<<30 - 1<<20, 1}, {0xeec00000, 256 << 20, 2}, {4 << 30, 1 << 30, 1},
	}
	want := Below4G(size, 3<<30)
	edit := func(i int, to [3]uint64) [][3]uint64 {
		out := append([][3]uint64(nil), table...)
		out[i] = to
		return out
	}
	zeros := make([]byte, bootMapEnd)
	for _, make := range []func(...[3]uint64) []byte{bootParams, startInfoMap} {
		path := sparse(t, size)
		put := func(b []byte) {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = f.WriteAt(b, 0)
			require.NoError(t, err)
			require.NoError(t, f.Close())
		}
		put(make(table...))
		m := open(t, path, nil)
		require.Equal(t, []vmi.Range{{Start: 0, End: 3 << 30}, {Start: 4 << 30, End: 5 << 30}}, m.Ranges())
		f, err := os.Open(path)
		require.NoError(t, err)
		defer f.Close()
		got, ok := BootLayout(f, size)
		require.True(t, ok)
		require.Equal(t, want, got)
		for name, bad := range map[string][]byte{
			"less than the file": make(edit(4, [3]uint64{4 << 30, 1<<30 - 4096, 1})...),
			"more than the file": make(edit(4, [3]uint64{4 << 30, 2 << 30, 1})...),
			"elsewhere":          make(edit(4, [3]uint64{5 << 30, 1 << 30, 1})...),
			"no whole pages":     make(edit(2, [3]uint64{1 << 20, 3<<30 - 1<<20 - 8, 1})...),
			"end before start":   make(edit(2, [3]uint64{1 << 20, ^uint64(0), 1})...),
			"a third part":       make(edit(3, [3]uint64{256 << 30, 1 << 30, 1})...),
			"nothing":            make(),
			"no map":             append([]byte("not a map"), zeros[:]...),
		} {
			put(bad)
			_, ok := BootLayout(f, size)
			require.False(t, ok, name)
			_, err := vmi.Open(t.Context(), path, nil)
			require.ErrorContains(t, err, "?below4g=", name)
		}
	}
}

func FuzzBootLayout(f *testing.F) {
	f.Add(bootParams([3]uint64{0, 1 << 21, 1}), uint64(1<<21))
	f.Add(startInfoMap([3]uint64{0, 3 << 30, 1}, [3]uint64{4 << 30, 1 << 20, 1}), uint64(3<<30+1<<20))
	f.Fuzz(func(t *testing.T, b []byte, size uint64) {
		layout, ok := BootLayout(readerAt(b), size)
		sum := uint64(0)
		for _, l := range layout {
			sum += l.Len
		}
		if ok && sum != size || !ok && layout != nil {
			t.Fatalf("%#x of %#x", layout, size)
		}
	})
}

type readerAt []byte

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	if int(off)+len(p) > len(r) {
		return 0, os.ErrInvalid
	}
	return copy(p, r[off:]), nil
}
