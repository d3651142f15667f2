package copyout

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/vmitest"
)

// pieces joins pieces of one kind, as their number depends on how they were read.
func pieces(t *testing.T, m vmi.Memory) (out []Piece, done uint64) {
	t.Helper()
	err := Memory(t.Context(), m, func(d, total uint64) {
		require.Greater(t, d, done)
		require.LessOrEqual(t, d, total)
		done = d
	}, func(p Piece) error {
		if p.Kind == Data {
			require.EqualValues(t, p.Len(), len(p.Data))
			want := make([]byte, len(p.Data))
			_, err := m.ReadPhys(want, p.Start)
			require.NoError(t, err)
			require.Equal(t, want, p.Data)
			p.Data = nil
		}
		if n := len(out); n > 0 && out[n-1].Kind == p.Kind && out[n-1].End == p.Start {
			out[n-1].End = p.End
			return nil
		}
		out = append(out, p)
		return nil
	})
	require.NoError(t, err)
	return out, done
}

func TestMemory(t *testing.T) {
	m := vmitest.New(vmi.Range{Start: 0x800, End: 0x400000}, vmi.Range{Start: 1 << 32, End: 1<<32 + 0x5000})
	m.SetUint64(0x1ff8, 1)
	m.SetUint64(0x300000, 2)
	m.SetUint64(1<<32, 3)
	m.SetUint64(1<<32+0x2000, 0) // touched, and zeros
	m.SetUint64(1<<32+0x4000, 4)
	m.SetUint64(1<<32+0x3000, 4)
	m.Fault(vmi.Range{Start: 1<<32 + 0x3000, End: 1<<32 + 0x4000}, vmi.ErrExcluded)
	want := []Piece{
		{Range: vmi.Range{Start: 0x800, End: 0x1000}, Kind: Zeros},
		{Range: vmi.Range{Start: 0x1000, End: 0x2000}, Kind: Data},
		{Range: vmi.Range{Start: 0x2000, End: 0x300000}, Kind: Zeros},
		{Range: vmi.Range{Start: 0x300000, End: 0x301000}, Kind: Data},
		{Range: vmi.Range{Start: 0x301000, End: 0x400000}, Kind: Zeros},
		{Range: vmi.Range{Start: 1 << 32, End: 1<<32 + 0x1000}, Kind: Data},
		{Range: vmi.Range{Start: 1<<32 + 0x1000, End: 1<<32 + 0x3000}, Kind: Zeros},
		{Range: vmi.Range{Start: 1<<32 + 0x3000, End: 1<<32 + 0x4000}, Kind: Absent},
		{Range: vmi.Range{Start: 1<<32 + 0x4000, End: 1<<32 + 0x5000}, Kind: Data},
	}
	for _, mem := range []vmi.Memory{m, m.ReadOnly()} {
		got, done := pieces(t, mem)
		require.Equal(t, want, got)
		require.EqualValues(t, 0x400000-0x800+0x5000, done)
	}
}

func TestEnds(t *testing.T) {
	m := vmitest.New(vmi.Range{Start: 0, End: 0x4000})
	m.SetUint64(0x1000, 1)
	m.Fault(vmi.Range{Start: 0x1000, End: 0x2000}, io.ErrUnexpectedEOF)
	nothing := func(Piece) error { return nil }
	err := Memory(t.Context(), m, nil, nothing)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF, "not known to be left out")

	m.ClearFaults()
	ctx, cancel := context.WithCancelCause(t.Context())
	boom := errors.New("boom")
	cancel(boom)
	require.ErrorIs(t, Memory(ctx, m, nil, nothing), boom)
	require.ErrorIs(t, Memory(t.Context(), m, nil, func(Piece) error { return boom }), boom)
}
