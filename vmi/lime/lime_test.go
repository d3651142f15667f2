package lime

import (
	"bytes"
	"context"
	"encoding/binary"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/vmitest"
)

// record is a range as LiME writes it.
func record(start uint64, data []byte) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, 0x4c694d45)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, start)
	b = le.AppendUint64(b, start+uint64(len(data))-1)
	return append(append(b, make([]byte, 8)...), data...)
}

func content(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed + byte(i/256) + byte(i*7)
	}
	return b
}

func openBytes(t testing.TB, b []byte) (vmi.Image, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dump")
	require.NoError(t, os.WriteFile(path, b, 0o600))
	m, err := vmi.Open(t.Context(), path, nil)
	if err == nil {
		t.Cleanup(func() { m.Close() })
	}
	return m, err
}

func TestRead(t *testing.T) {
	low, mid, high := content(0x9e000, 1), content(0x3000, 2), content(0x1234, 3)
	b := append(record(0x1000, low), record(1<<32, high)...)
	b = append(b, record(0x9f000, mid)...) // where the first ends, as avml splits ranges
	m, err := openBytes(t, b)
	require.NoError(t, err)
	require.Equal(t, []vmi.Range{{Start: 0x1000, End: 0xa2000}, {Start: 1 << 32, End: 1<<32 + 0x1234}}, m.Ranges())
	got := make([]byte, 0xa1000)
	_, err = m.ReadPhys(got, 0x1000)
	require.NoError(t, err)
	require.True(t, bytes.Equal(append(bytes.Clone(low), mid...), got))
	require.Equal(t, high[0x34:], m.(vmi.Viewer).View(1<<32+0x34, 0x1200))
	require.Nil(t, m.(vmi.Viewer).View(0x9eff8, 16), "in two places")
	n, err := m.ReadPhys(got[:16], 1<<32+0x1234-8)
	require.Equal(t, 8, n)
	var fault *vmi.FaultError
	require.ErrorAs(t, err, &fault)
	require.Equal(t, vmi.FaultError{Addr: 1<<32 + 0x1234, Len: 8}, *fault)
	_, err = m.ReadPhys(got[:1], 0)
	require.ErrorAs(t, err, &fault)
	_, isWriter := m.(vmi.Writer)
	require.False(t, isWriter)
	require.NoError(t, m.Close())
	_, err = m.ReadPhys(got[:1], 0x1000)
	require.ErrorIs(t, err, fs.ErrClosed)
}

func TestBadFiles(t *testing.T) {
	good := record(0x1000, content(0x2000, 5))
	edit := func(at int, with ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], with)
		return b
	}
	for name, tt := range map[string]struct {
		b    []byte
		want error
	}{
		"cut in header": {good[:20], vmi.ErrTruncated},
		"cut in memory": {good[:len(good)/2], vmi.ErrTruncated},
		"rest":          {append(bytes.Clone(good), "rest"...), vmi.ErrTruncated},
		"behind":        {append(bytes.Clone(good), make([]byte, 32)...), vmi.ErrFormat},
		"version":       {edit(4, 2), vmi.ErrFormat},
		"reversed":      {edit(16, 0, 0), vmi.ErrFormat},
		"all memory":    {edit(8, append(make([]byte, 8), bytes.Repeat([]byte{0xff}, 8)...)...), vmi.ErrFormat},
		"too high":      {edit(15, 0x80, 0xff, 0x2f, 0, 0, 0, 0, 0, 0x80), nil},
		"twice":         {append(bytes.Clone(good), good...), nil},
	} {
		_, err := openBytes(t, tt.b)
		require.Error(t, err, name)
		require.NotContains(t, err.Error(), "\n", name)
		if tt.want != nil {
			require.ErrorIs(t, err, tt.want, name)
		}
	}
	path := filepath.Join(t.TempDir(), "dump")
	require.NoError(t, os.WriteFile(path, good, 0o600))
	_, err := vmi.Open(t.Context(), path, &vmi.Options{Writable: true})
	require.ErrorContains(t, err, "cannot be written")
	_, err = vmi.Open(t.Context(), path+"?below4g=2G", nil)
	require.ErrorContains(t, err, "no parameters")
}

// What is written is what LiME would write, without what the source lacks.
func TestWrite(t *testing.T) {
	m := vmitest.New(vmi.Range{Start: 0, End: 0x10000}, vmi.Range{Start: 1 << 32, End: 1<<32 + 0x3000})
	for a := vmi.Phys(0); a < 0x10000; a += 8 {
		if a/0x1000%3 != 1 {
			m.SetUint64(a, uint64(a)*0x9e3779b97f4a7c15+1)
		}
	}
	m.SetUint64(1<<32+0x2000, 1)
	m.Fault(vmi.Range{Start: 0x8000, End: 0xa000}, vmi.ErrExcluded)
	m.Fault(vmi.Range{Start: 1<<32 + 0x2000, End: 1<<32 + 0x3000}, vmi.ErrExcluded)
	path := filepath.Join(t.TempDir(), "out.lime")
	var last, total uint64
	require.NoError(t, Write(t.Context(), path, m, &vmi.DumpOptions{Progress: func(d, n uint64) { last, total = d, n }}))
	require.EqualValues(t, 0x13000, total)
	require.Equal(t, total, last)

	var want []byte
	for _, r := range []vmi.Range{{Start: 0, End: 0x8000}, {Start: 0xa000, End: 0x10000}, {Start: 1 << 32, End: 1<<32 + 0x2000}} {
		p := make([]byte, r.Len())
		_, err := m.ReadPhys(p, r.Start)
		require.NoError(t, err)
		want = append(want, record(uint64(r.Start), p)...)
	}
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	back, err := vmi.Open(t.Context(), path, nil)
	require.NoError(t, err)
	defer back.Close()
	_, err = back.ReadPhys(make([]byte, 8), 0x8000)
	var fault *vmi.FaultError
	require.ErrorAs(t, err, &fault)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	require.ErrorIs(t, Write(ctx, filepath.Join(dir, "x"), m, nil), context.Canceled)
	m.Fault(vmi.Range{Start: 0, End: 1 << 40}, vmi.ErrExcluded)
	require.ErrorContains(t, Write(t.Context(), filepath.Join(dir, "x"), m.ReadOnly(), nil), "no memory")
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

func FuzzOpen(f *testing.F) {
	f.Add(record(0x1000, content(90, 1)))
	f.Add(append(record(0, make([]byte, 10)), record(1<<32, content(100, 2))...))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := openBytes(t, b)
		if err != nil {
			return
		}
		p := make([]byte, 64)
		for _, r := range m.Ranges() {
			if n, err := m.ReadPhys(p[:min(64, r.Len())], r.Start); err != nil {
				t.Fatalf("range %v: %d bytes, %v", r, n, err)
			}
		}
	})
}
