package elfcore

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/vmitest"
)

// written writes m and opens the result.
func written(t *testing.T, m vmi.Memory, o *vmi.DumpOptions) (*File, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "out.elf")
	require.NoError(t, Write(t.Context(), path, m, o))
	back, err := vmi.Open(t.Context(), path, nil)
	require.NoError(t, err)
	t.Cleanup(func() { back.Close() })
	return back.(*File), path
}

func TestWrite(t *testing.T) {
	m := vmitest.New(vmi.Range{Start: 0x400, End: 64 << 20}, vmi.Range{Start: 1 << 32, End: 1<<32 + 0x4000})
	for a := vmi.Phys(0x1000); a < 0x10000; a += 8 {
		m.SetUint64(a, uint64(a)*0x9e3779b97f4a7c15+1)
	}
	m.SetUint64(0x400, 5)
	m.SetUint64(1<<32+0x1000, 6)
	m.SetUint64(1<<32+0x2000, 7)
	m.Fault(vmi.Range{Start: 0x8000, End: 0x9000}, vmi.ErrExcluded)
	m.Fault(vmi.Range{Start: 1<<32 + 0x1000, End: 1<<32 + 0x2000}, vmi.ErrExcluded)
	cpu := vmi.CPU{RIP: 1, CR3: 0x2000, Known: vmi.KnownControl}
	o := &vmi.DumpOptions{VMCoreInfo: []byte("OSRELEASE=6.1\n"), CPUs: []vmi.CPU{cpu}}
	back, path := written(t, m, o)

	want := []vmi.Range{
		{Start: 0x400, End: 0x8000},
		{Start: 0x9000, End: 64 << 20},
		{Start: 1 << 32, End: 1<<32 + 0x1000},
		{Start: 1<<32 + 0x2000, End: 1<<32 + 0x4000},
	}
	require.Equal(t, want, back.Ranges())
	for _, r := range want {
		a, b := make([]byte, r.Len()), make([]byte, r.Len())
		_, err := m.ReadPhys(a, r.Start)
		require.NoError(t, err)
		_, err = back.ReadPhys(b, r.Start)
		require.NoError(t, err)
		require.Equal(t, a, b)
	}
	_, err := back.ReadPhys(make([]byte, 8), 0x8ffc)
	var fault *vmi.FaultError
	require.ErrorAs(t, err, &fault)
	require.Equal(t, "OSRELEASE=6.1\n", string(back.VMCoreInfo()))
	cpus, err := back.CPUs(t.Context())
	require.NoError(t, err)
	require.Equal(t, []vmi.CPU{cpu}, cpus)
	require.Equal(t, "x86_64", back.Machine())

	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Greater(t, st.Size(), int64(64<<20))
	require.Less(t, st.Sys().(*syscall.Stat_t).Blocks*512, int64(2<<20), "zeros are holes")

	f, err := elf.Open(path) // by somebody else's reading of the format
	require.NoError(t, err)
	defer f.Close()
	require.Equal(t, elf.ET_CORE, f.Type)
	require.Len(t, f.Progs, 5)
	require.Equal(t, elf.PT_NOTE, f.Progs[0].Type)

	back, _ = written(t, m, &vmi.DumpOptions{Machine: "aarch64"})
	require.Equal(t, "aarch64", back.Machine())
	require.Nil(t, back.VMCoreInfo())
}

// odd is memory that lacks each odd page, as a filtered dump may.
type odd struct{ *vmitest.Mem }

func (o odd) Data() []vmi.Range { return o.Ranges() }

func (o odd) ReadPhys(p []byte, a vmi.Phys) (int, error) {
	if a/vmi.PageSize%2 == 1 {
		return 0, &vmi.FaultError{Addr: a, Len: len(p), Err: vmi.ErrExcluded}
	}
	n := min(len(p), int(vmi.PageSize-a%vmi.PageSize))
	k, err := o.Mem.ReadPhys(p[:n], a)
	if err == nil && n < len(p) {
		err = &vmi.FaultError{Addr: a + vmi.Phys(n), Len: len(p) - n, Err: vmi.ErrExcluded}
	}
	return k, err
}

// More segments than the header can say, and than Write had room for at first.
func TestWriteManySegments(t *testing.T) {
	const n = 70000
	m := vmitest.New(vmi.Range{Start: 0, End: 2 * n * vmi.PageSize})
	some := []uint64{0, 1, 65534, 65535, n - 1}
	for _, i := range some {
		m.SetUint64(vmi.Phys(i*2*vmi.PageSize), i+1)
	}
	total := uint64(0)
	back, _ := written(t, odd{m}, &vmi.DumpOptions{VMCoreInfo: []byte("a=b\n"), Progress: func(_, n uint64) { total = n }})
	require.EqualValues(t, 2*n*vmi.PageSize, total)
	require.Len(t, back.Ranges(), n)
	require.Equal(t, "a=b\n", string(back.VMCoreInfo()))
	for _, i := range some {
		var p [8]byte
		_, err := back.ReadPhys(p[:], vmi.Phys(i*2*vmi.PageSize))
		require.NoError(t, err)
		require.Equal(t, i+1, binary.LittleEndian.Uint64(p[:]))
	}
}

func TestWriteFails(t *testing.T) {
	m := vmitest.New(vmi.Range{Start: 0, End: 1 << 20})
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	require.ErrorContains(t, Write(t.Context(), path, m, &vmi.DumpOptions{Machine: "vax"}), "vax")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, Write(ctx, path, m, nil), context.Canceled)
	m.SetUint64(0x2000, 1)
	m.Fault(vmi.Range{Start: 0x2000, End: 0x3000}, syscall.EIO)
	require.ErrorIs(t, Write(t.Context(), path, m, nil), syscall.EIO)
	m.ClearFaults()
	m.Fault(vmi.Range{Start: 0, End: 1 << 20}, vmi.ErrExcluded)
	require.ErrorContains(t, Write(t.Context(), path, m.ReadOnly(), nil), "no memory")
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}
