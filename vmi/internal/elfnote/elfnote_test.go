package elfnote

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/vmi"
)

func note(name string, typ uint32, desc []byte) []byte { return Append(nil, name, typ, desc) }

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

// What is written reads back, and is laid out as a plain reading of the format says.
func TestWrite(t *testing.T) {
	var cpus []vmi.CPU
	for i := range 3 {
		c := vmi.CPU{
			ID: i, RIP: 100, RFLAGS: 101, CS: 16, SS: 24, FSBase: 104, GSBase: 105,
			CR0: 200, CR2: 202, CR3: 203, CR4: 204, KGSBase: 205, Known: vmi.KnownControl | vmi.KnownKGSBase,
		}
		for r := range c.GPR {
			c.GPR[r] = uint64(1000*i + r)
		}
		cpus = append(cpus, c)
	}
	info := []byte("OSRELEASE=6.1.0\n")
	b := AppendDump(nil, cpus, info)
	require.Zero(t, len(b)%4)
	require.Equal(t, cpus, CPUs(b))
	require.Equal(t, info, VMCoreInfo(b))
	require.Equal(t, "CORE\x00\x00\x00\x00", string(b[12:20]))

	for i := range cpus {
		cpus[i].Known = vmi.KnownControl
		cpus[i].KGSBase = 0
	}
	require.Equal(t, cpus, CPUs(AppendDump(nil, cpus, nil)), "without the base that SWAPGS loads")
	for i := range cpus {
		cpus[i].Known, cpus[i].CR0, cpus[i].CR2, cpus[i].CR3, cpus[i].CR4 = 0, 0, 0, 0, 0
	}
	b = AppendDump(nil, cpus, nil)
	require.Equal(t, cpus, CPUs(b), "without control registers")
	require.NotContains(t, string(b), "QEMU")
	require.Empty(t, AppendDump(nil, nil, nil))
}
