package elfnote

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/vmi"
)

func note(name string, typ uint32, desc []byte) []byte {
	pad := func(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }
	var b []byte
	for _, n := range []uint32{uint32(len(name) + 1), uint32(len(desc)), typ} {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	return append(append(b, pad([]byte(name+"\x00"))...), pad(desc)...)
}

// state is a QEMU note in which every 8-byte word holds its own offset.
func state() []byte {
	b := make([]byte, qemuSize)
	for off := 8; off < len(b); off += 8 {
		binary.LittleEndian.PutUint64(b[off:], uint64(off))
	}
	binary.LittleEndian.PutUint32(b, qemuVersion)
	binary.LittleEndian.PutUint32(b[4:], qemuSize)
	return b
}

func TestQEMUState(t *testing.T) {
	b := append(note("VMCOREINFO", 0, []byte("a=b")), note("QEMU", 0, state())...)
	b = append(b, note("QEMU", 0, state())...)
	cpus := CPUs(b)
	require.Len(t, cpus, 2)
	require.Equal(t, 1, cpus[1].ID)
	c := cpus[0]
	require.Equal(t, [16]uint64{8, 24, 32, 16, 56, 64, 40, 48, 72, 80, 88, 96, 104, 112, 120, 128}, c.GPR)
	require.EqualValues(t, 136, c.RIP)
	require.EqualValues(t, 144, c.RFLAGS)
	require.EqualValues(t, 152, c.CS)
	require.EqualValues(t, 152+5*24, c.SS)
	require.EqualValues(t, 152+3*24+16, c.FSBase)
	require.EqualValues(t, 152+4*24+16, c.GSBase)
	require.EqualValues(t, 392, c.CR0)
	require.EqualValues(t, 416, c.CR3)
	require.EqualValues(t, 432, c.KGSBase)
	require.Equal(t, vmi.KnownControl|vmi.KnownKGSBase, c.Known)
	require.Equal(t, "a=b", string(VMCoreInfo(b)))
}

func TestCutNotes(t *testing.T) {
	b := note("QEMU", 0, state())
	for n := range len(b) {
		require.Empty(t, CPUs(b[:n]))
	}
	wrong := state()
	wrong[0] = 2
	require.Empty(t, CPUs(note("QEMU", 0, wrong)), "version")
	require.Empty(t, CPUs(note("QEMU", 0, state()[:qemuSizeShort])), "size field")
	require.Nil(t, VMCoreInfo([]byte{255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0}))
}
