package vmitest

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/vmi"
)

var _ interface {
	vmi.Image
	vmi.Writer
	vmi.Sparse
	vmi.CPUs
	vmi.Pauser
	vmi.Stater
	vmi.NMI
	vmi.Notes
} = (*Mem)(nil)

func TestMem(t *testing.T) {
	m := New(vmi.Range{Start: 0x4000, End: 0x6800}, vmi.Range{Start: 0, End: 0x3000})
	require.EqualValues(t, 0, m.Ranges()[0].Start)
	m.Set(0x4ffe, []byte{1, 2, 3, 4})
	p := []byte{9, 9, 9, 9, 9, 9}
	n, err := m.ReadPhys(p, 0x4ffd)
	require.NoError(t, err)
	require.Equal(t, 6, n)
	require.Equal(t, []byte{0, 1, 2, 3, 4, 0}, p)
	require.Equal(t, []vmi.Range{{Start: 0x4000, End: 0x6000}}, m.Data())
	m.SetUint64(0x6000, 7)
	require.EqualValues(t, 7, m.Uint64(0x6000))
	require.EqualValues(t, 0x6800, m.Data()[0].End, "RAM ends inside the page")

	var fault *vmi.FaultError
	n, err = m.WritePhys(p, 0x67fe)
	require.Equal(t, 2, n)
	require.ErrorAs(t, err, &fault)
	require.Equal(t, vmi.FaultError{Addr: 0x6800, Len: 4}, *fault)
	_, err = m.ReadPhys(p, 0x3000)
	require.ErrorAs(t, err, &fault)

	boom := errors.New("boom")
	m.Fault(vmi.Range{Start: 0x1004, End: 0x1005}, boom)
	n, err = m.ReadPhys(p, 0x1000)
	require.Equal(t, 4, n)
	require.ErrorIs(t, err, boom)
	m.ClearFaults()
	_, err = m.ReadPhys(p, 0x1000)
	require.NoError(t, err)

	m.OnWrite(func(m *Mem, addr vmi.Phys, n int) { m.SetUint64(0x2000, uint64(addr)) })
	_, err = m.WritePhys(p, 0x1000)
	require.NoError(t, err)
	require.EqualValues(t, 0x1000, m.Uint64(0x2000))
	_, isWriter := m.ReadOnly().(vmi.Writer)
	require.False(t, isWriter)
	require.NoError(t, m.Close())
	_, err = m.ReadPhys(p, 0x1000)
	require.ErrorIs(t, err, fs.ErrClosed)
	require.Panics(t, func() { New(vmi.Range{Start: 1, End: 0}) })
}

func TestPause(t *testing.T) {
	m := New(vmi.Range{Start: 0, End: 0x1000})
	a, err := m.Pause(t.Context())
	require.NoError(t, err)
	b, err := m.Pause(t.Context())
	require.NoError(t, err)
	require.NoError(t, a())
	require.NoError(t, a())
	require.True(t, m.Paused())
	require.NoError(t, b())
	require.False(t, m.Paused())
	require.Equal(t, 2, m.Pauses())
	m.SetPaused(true)
	s, err := m.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, vmi.Status{State: "paused"}, s)
	m.FailPause(fs.ErrClosed)
	_, err = m.Pause(t.Context())
	require.ErrorIs(t, err, fs.ErrClosed)
	require.NoError(t, m.InjectNMI(t.Context()))
	require.Equal(t, 1, m.NMIs())
}

func TestConcurrent(t *testing.T) {
	m := New(vmi.Range{Start: 0, End: 1 << 20})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 100 {
				a := vmi.Phys(i*8 + j*64)
				m.SetUint64(a, uint64(a))
				if got := m.Uint64(a); got != uint64(a) {
					t.Errorf("%#x: %#x", a, got)
				}
			}
		})
	}
	wg.Wait()
	require.Len(t, m.Data(), 1)
}

func Example() {
	m := New(vmi.Range{Start: 0, End: 1 << 20})
	m.SetUint64(0x1000, 42)
	m.Fault(vmi.Range{Start: 0x2000, End: 0x3000}, errors.New("page is gone"))
	_, err := m.ReadPhys(make([]byte, 16), 0x1ff8)
	fmt.Println(m.Uint64(0x1000), err)
	// Output: 42 guest-physical 0x2000+8: page is gone
}
