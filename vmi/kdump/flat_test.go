package kdump

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/hostmap"
)

type piece struct {
	off  uint64
	data []byte
}

// flatten writes a flattened file, with the mark of its end.
func flatten(pieces []piece) []byte {
	b := make([]byte, flatStart)
	copy(b, flatSignature)
	be := binary.BigEndian
	be.PutUint64(b[16:], 1)
	be.PutUint64(b[24:], 1)
	for _, p := range append(pieces, piece{off: ^uint64(0)}) {
		b = be.AppendUint64(b, p.off)
		b = be.AppendUint64(b, uint64(len(p.data)))
		b = append(b, p.data...)
	}
	return b
}

func mapBytes(t testing.TB, b []byte) *hostmap.Map {
	f := newTemp(t)
	_, err := f.Write(b)
	require.NoError(t, err)
	return mapFile(t, f)
}

// However pieces overlap, every byte is that of the last piece that has it, and bytes
// that none has are an error.
func TestFlatProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const size = 200
		var pieces []piece
		want, have := make([]byte, size), make([]bool, size)
		follow := uint64(0)
		for i := range rapid.IntRange(1, 40).Draw(rt, "pieces") {
			off := follow
			if rapid.IntRange(0, 2).Draw(rt, "jump") == 0 || off >= size {
				off = uint64(rapid.IntRange(0, size-1).Draw(rt, "off"))
			}
			n := min(rapid.IntRange(1, 12).Draw(rt, "len"), size-int(off))
			p := piece{off, bytes.Repeat([]byte{byte(i + 1)}, n)}
			pieces = append(pieces, p)
			copy(want[off:], p.data)
			for j := range n {
				have[int(off)+j] = true
			}
			follow = off + uint64(n)
		}
		m := mapBytes(t, flatten(pieces))
		defer m.Close()
		x, end, err := indexFlat(t.Context(), m)
		require.NoError(rt, err)
		require.LessOrEqual(rt, end, uint64(size))
		for off := range size {
			for _, n := range []int{1, 7, 50} {
				if off+n > size {
					continue
				}
				whole := true
				for j := range n {
					whole = whole && have[off+j]
				}
				p := make([]byte, n)
				err := x.read(m, p, uint64(off))
				require.Equal(rt, whole, err == nil, "%d+%d: %v", off, n, err)
				if whole {
					require.Equal(rt, want[off:off+n], p)
				}
			}
		}
	})
}

func TestFlatBad(t *testing.T) {
	good := flatten([]piece{{0, []byte("abc")}, {3, []byte("def")}})
	for _, tt := range []struct {
		name string
		b    []byte
		want error
	}{
		{"no mark of the end", good[:len(good)-16], vmi.ErrTruncated},
		{"cut in a piece", good[:len(good)-17], vmi.ErrTruncated},
		{"cut in the header", good[:100], vmi.ErrTruncated},
		{"nothing", flatten(nil), ErrCorrupt},
		{"empty piece", flatten([]piece{{0, nil}}), ErrCorrupt},
		{"far away", flatten([]piece{{1<<62 + 1, []byte("x")}}), ErrCorrupt},
		{"before the start", flatten([]piece{{^uint64(1), []byte("x")}}), ErrCorrupt},
		{"version", append(bytes.Clone(good[:31]), append([]byte{2}, good[32:]...)...), vmi.ErrFormat},
	} {
		m := mapBytes(t, tt.b)
		_, _, err := indexFlat(t.Context(), m)
		require.ErrorIs(t, err, tt.want, tt.name)
		m.Close()
	}
	// Pieces all over the place: the index must not grow with them.
	var many []piece
	for i := range uint64(maxRuns + 1) {
		many = append(many, piece{i * 2, []byte("x")})
	}
	m := mapBytes(t, flatten(many))
	defer m.Close()
	_, _, err := indexFlat(t.Context(), m)
	require.ErrorIs(t, err, ErrCorrupt)
	require.ErrorContains(t, err, "makedumpfile -R")
}

func newTemp(t testing.TB) *os.File {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	require.NoError(t, err)
	return f
}

func mapFile(t testing.TB, f *os.File) *hostmap.Map {
	m, err := hostmap.New(f, false)
	require.NoError(t, err)
	return m
}
