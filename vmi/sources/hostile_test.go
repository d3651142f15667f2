package sources

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/snappy"
	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/elfcore"
	"github.com/ovmigrate/ovmigrate/vmi/kdump"
	"github.com/ovmigrate/ovmigrate/vmi/lime"
	"github.com/ovmigrate/ovmigrate/vmi/vmitest"
)

// TestHostileFiles damages a good file of every format.
func TestHostileFiles(t *testing.T) {
	m := vmitest.New(vmi.Range{Start: 0, End: 256 << 10}, vmi.Range{Start: 1 << 32, End: 1<<32 + 64<<10})
	for a := vmi.Phys(0); a < 128<<10; a += 8 {
		m.SetUint64(a, uint64(a)/64*0x9e3779b97f4a7c15)
		m.SetUint64(1<<32+a/2&^7, uint64(a))
	}
	o := vmi.DumpOptions{VMCoreInfo: []byte("OSRELEASE=6.1\n"), CPUs: []vmi.CPU{{RIP: 1, Known: vmi.KnownControl}}}
	write := map[string]func(path string) error{
		"elf":  func(path string) error { return elfcore.Write(t.Context(), path, m, &o) },
		"lime": func(path string) error { return lime.Write(t.Context(), path, m, &o) },
		"zlib": func(path string) error {
			return kdump.Write(t.Context(), path, m, &kdump.WriteOptions{DumpOptions: o})
		},
		"zstd": func(path string) error {
			return kdump.Write(t.Context(), path, m, &kdump.WriteOptions{DumpOptions: o, Compression: kdump.Zstd})
		},
	}
	for name, f := range write {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "good")
			require.NoError(t, f(path))
			good, err := os.ReadFile(path)
			require.NoError(t, err)
			vmitest.Damaged(t, t.TempDir(), "dump", good)
		})
	}
	t.Run("AVML", func(t *testing.T) { vmitest.Damaged(t, t.TempDir(), "dump", avmlDump(m)) })

	t.Run("Cloud Hypervisor", func(t *testing.T) {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "memory-ranges"), make([]byte, 2<<20), 0o600))
		state := `{"snapshots":{"memory-manager":{"snapshots":{},"snapshot_data":{"state":` +
			`"{\"memory_ranges\":{\"data\":[{\"gpa\":0,\"length\":1048576},{\"gpa\":4294967296,\"length\":1048576}]}}"}}}}`
		damagedBeside(t, dir, "state.json", []byte(state), dir)
	})
	t.Run("Firecracker", func(t *testing.T) {
		dir := t.TempDir()
		f, err := os.Create(filepath.Join(dir, "mem"))
		require.NoError(t, err)
		require.NoError(t, f.Truncate(4<<30))
		require.NoError(t, f.Close())
		state := binary.LittleEndian.AppendUint64(nil, 0x0710_1984_8664_0000)
		for _, v := range []uint64{0, 3 << 30, 4 << 30, 1 << 30} {
			state = binary.LittleEndian.AppendUint64(state, v)
		}
		damagedBeside(t, dir, "vmstate", state, dir)
	})
}

// damagedBeside damages a file that says what another one is.
func damagedBeside(t *testing.T, dir, name string, good []byte, guest string) {
	t.Helper()
	path := filepath.Join(dir, name)
	try := func(b []byte) error {
		require.NoError(t, os.WriteFile(path, b, 0o600))
		m, err := vmi.Open(t.Context(), guest, nil)
		if err == nil {
			last := m.Ranges()[len(m.Ranges())-1].End
			_, err := m.ReadPhys(make([]byte, 8), last-8)
			require.NoError(t, err)
			require.NoError(t, m.Close())
		}
		return err
	}
	require.NoError(t, try(good))
	for n := range good {
		require.Error(t, try(good[:n]), "%d bytes", n)
	}
	for i := range 8 * len(good) {
		b := append([]byte(nil), good...)
		b[i/8] ^= 1 << (i % 8)
		_ = try(b)
	}
}

// avmlDump makes an AVML dump of m, one range for each of its own.
func avmlDump(m *vmitest.Mem) (out []byte) {
	le := binary.LittleEndian
	for _, r := range m.Ranges() {
		out = append(out, "AVML\x02\x00\x00\x00"...)
		out = le.AppendUint64(le.AppendUint64(out, uint64(r.Start)), uint64(r.End-1))
		out = le.AppendUint64(out, 0)
		begin := len(out)
		out = append(out, "\xff\x06\x00\x00sNaPpY"...)
		for a := r.Start; a < r.End; a += 65536 {
			p := make([]byte, 65536)
			if _, err := m.ReadPhys(p, a); err != nil {
				panic(err)
			}
			c := snappy.Encode(nil, p)
			out = le.AppendUint32(out, uint32(len(c)+4)<<8)
			sum := crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli))
			out = append(le.AppendUint32(out, (sum>>15|sum<<17)+0xa282ead8), c...)
		}
		out = le.AppendUint64(out, uint64(len(out)-begin))
	}
	return out
}
