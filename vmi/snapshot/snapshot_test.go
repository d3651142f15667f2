package snapshot

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// These files are made as the sources of the two monitors say, not by them: they
// need KVM.

const size = 4 << 30 // of memory: 3 GiB, then 1 GiB above the gap

// chJSON is a state.json of Cloud Hypervisor with the given ranges: address, length.
func chJSON(ranges ...[2]uint64) []byte {
	type r struct {
		GPA    uint64 `json:"gpa"`
		Length uint64 `json:"length"`
	}
	data := []r{}
	for _, x := range ranges {
		data = append(data, r{x[0], x[1]})
	}
	inner, _ := json.Marshal(map[string]any{
		"memory_ranges": map[string]any{"data": data}, "guest_ram_mappings": []any{}, "boot_ram": 1 << 30,
	})
	leaf := map[string]any{"snapshots": map[string]any{}, "snapshot_data": map[string]any{"state": string(inner)}}
	b, _ := json.Marshal(map[string]any{
		"snapshots":     map[string]any{"cpu-manager": map[string]any{"snapshots": map[string]any{}, "snapshot_data": nil}, "memory-manager": leaf},
		"snapshot_data": map[string]any{"state": "{}"},
	})
	return b
}

// fcState is the beginning of a state file of Firecracker in the format of versions
// 1.6 to 1.14 (bincode): a magic number, a version, what the machine is, regions of
// memory. entry is what follows address and size of a region.
func fcState(entry int, regions ...[2]uint64) []byte {
	le := binary.LittleEndian
	b := le.AppendUint64(nil, 0x0710_1984_8664_0000)
	str := func(s string) { b = append(le.AppendUint64(b, uint64(len(s))), s...) }
	str("5.0.0")
	b = le.AppendUint64(b, size>>20)
	b = append(b, 0)          // smt
	b = append(b, 2, 0, 0, 0) // CPU template
	str("/boot/vmlinux")
	b = append(b, 0, 0)
	b = le.AppendUint64(b, uint64(len(regions)))
	for _, r := range regions {
		b = le.AppendUint64(b, r[0])
		b = le.AppendUint64(b, r[1])
		b = append(b, make([]byte, entry)...)
	}
	return append(b, make([]byte, 300)...)
}

// sparse makes a file of n bytes, with content at some offsets.
func sparse(t testing.TB, path string, n int64, at map[int64][]byte) {
	t.Helper()
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.Truncate(n))
	for off, b := range at {
		_, err := f.WriteAt(b, off)
		require.NoError(t, err)
	}
}

// zeroPage is the part of boot_params that says which memory is RAM.
func zeroPage(below, above uint64) []byte {
	b := make([]byte, 4096)
	le := binary.LittleEndian
	le.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x202:], "HdrS")
	b[0x1e8] = 3
	for i, e := range [][2]uint64{{0, 0x9fc00}, {1 << 20, below - 1<<20}, {4 << 30, above}} {
		le.PutUint64(b[0x2d0+20*i:], e[0])
		le.PutUint64(b[0x2d8+20*i:], e[1])
		le.PutUint32(b[0x2e0+20*i:], 1)
	}
	return b
}

var wantRanges = []vmi.Range{{Start: 0, End: 3 << 30}, {Start: 4 << 30, End: 5 << 30}}

func requireOpens(t *testing.T, arg string, want []vmi.Range) {
	t.Helper()
	m, err := vmi.Open(t.Context(), arg, nil)
	require.NoError(t, err)
	defer m.Close()
	require.Equal(t, want, m.Ranges())
	var p [4]byte
	_, err = m.ReadPhys(p[:], want[len(want)-1].End-4)
	require.NoError(t, err)
	require.Equal(t, "last", string(p[:]))
}

func TestCloudHypervisor(t *testing.T) {
	dir := t.TempDir()
	memory, state := filepath.Join(dir, "memory-ranges"), filepath.Join(dir, "state.json")
	sparse(t, memory, size, map[int64][]byte{size - 4: []byte("last")})
	put := func(b []byte) { require.NoError(t, os.WriteFile(state, b, 0o600)) }
	put(chJSON([2]uint64{0, 3 << 30}, [2]uint64{4 << 30, 1 << 30}))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), []byte("{}"), 0o600))
	requireOpens(t, dir, wantRanges)
	requireOpens(t, memory, wantRanges)
	requireOpens(t, dir+"?below4g=2G", []vmi.Range{{Start: 0, End: 2 << 30}, {Start: 4 << 30, End: 6 << 30}})

	for name, tt := range map[string]struct {
		b    []byte
		want error
	}{
		"no JSON":          {[]byte("{"), ErrLayout},
		"something else":   {[]byte(`{"snapshots":{}}`), ErrLayout},
		"before 39":        {[]byte(`{"snapshots":{"memory-manager":{"snapshot_data":{"state":[1,2]}}}}`), ErrLayout},
		"inner":            {[]byte(`{"snapshots":{"memory-manager":{"snapshot_data":{"state":"{"}}}}`), ErrLayout},
		"no ranges":        {chJSON(), ErrLayout},
		"negative":         {[]byte(`{"snapshots":{"memory-manager":{"snapshot_data":{"state":"{\"memory_ranges\":{\"data\":[{\"gpa\":-1,\"length\":1}]}}"}}}}`), ErrLayout},
		"overflow":         {chJSON([2]uint64{0, 1 << 55}, [2]uint64{1 << 56, 1 << 63}), ErrLayout},
		"more than memory": {chJSON([2]uint64{0, 3 << 30}, [2]uint64{4 << 30, 2 << 30}), vmi.ErrTruncated},
		"twice":            {chJSON([2]uint64{0, 3 << 30}, [2]uint64{0, 1 << 30}), nil},
	} {
		put(tt.b)
		_, err := vmi.Open(t.Context(), dir, nil)
		require.Error(t, err, name)
		require.NotContains(t, err.Error(), "\n", name)
		if tt.want != nil {
			require.ErrorIs(t, err, tt.want, name)
		}
	}
}

func TestFirecracker(t *testing.T) {
	dir := t.TempDir()
	memory, state := filepath.Join(dir, "mem"), filepath.Join(dir, "vmstate")
	last := map[int64][]byte{size - 4: []byte("last")}
	put := func(b []byte) { require.NoError(t, os.WriteFile(state, b, 0o600)) }
	for name, entry := range map[string]int{"with offsets": 8, "1.12": 0, "1.14": 13} {
		sparse(t, memory, size, last)
		put(fcState(entry, [2]uint64{0, 3 << 30}, [2]uint64{4 << 30, 1 << 30}))
		t.Log(name)
		requireOpens(t, dir, wantRanges)
	}
	_, err := vmi.Open(t.Context(), memory, nil)
	require.ErrorContains(t, err, "?below4g=", "alone it is raw RAM without a map")
	requireOpens(t, memory+"?below4g=3G", wantRanges)

	put(fcState(8, [2]uint64{0, 13 << 28}, [2]uint64{4 << 30, size - 13<<28})) // before 1.13
	requireOpens(t, dir, []vmi.Range{{Start: 0, End: 13 << 28}, {Start: 4 << 30, End: 4<<30 + size - 13<<28}})

	// A state file that does not tell, with the map in memory.
	silent := append([]byte{9, 9, 9}, fcState(8)...)
	put(silent)
	_, err = vmi.Open(t.Context(), dir, nil)
	require.ErrorIs(t, err, ErrLayout)
	requireOpens(t, dir+"?below4g=3G", wantRanges)
	last[0x7000] = zeroPage(3<<30, 1<<30)
	sparse(t, memory, size, last)
	requireOpens(t, dir, wantRanges)
	requireOpens(t, memory, wantRanges)

	// Among other files of whole MiB the map says which is memory.
	disk := filepath.Join(dir, "rootfs.ext4")
	sparse(t, disk, 64<<20, nil)
	requireOpens(t, dir, wantRanges)
	last[0x7000] = make([]byte, 4096)
	sparse(t, memory, size, last)
	_, err = vmi.Open(t.Context(), dir, nil)
	require.Error(t, err)
	require.NoError(t, os.Remove(disk))

	// What contradicts itself is not believed.
	last[0x7000] = zeroPage(2<<30, 2<<30)
	sparse(t, memory, size, last)
	put(fcState(8, [2]uint64{0, 3 << 30}, [2]uint64{4 << 30, 1 << 30}))
	_, err = vmi.Open(t.Context(), dir, nil)
	require.ErrorIs(t, err, ErrLayout)
	put(append(fcState(8, [2]uint64{0, 3 << 30}, [2]uint64{4 << 30, 1 << 30}),
		fcState(8, [2]uint64{0, 13 << 28}, [2]uint64{4 << 30, size - 13<<28})...))
	sparse(t, memory, size, nil)
	_, err = vmi.Open(t.Context(), dir, nil)
	require.ErrorIs(t, err, ErrLayout)

	// Up to 3 GiB there is one answer.
	sparse(t, memory, 1<<30, map[int64][]byte{1<<30 - 4: []byte("last")})
	put(silent)
	requireOpens(t, dir, []vmi.Range{{Start: 0, End: 1 << 30}})
	arm := fcState(8)
	copy(arm[2:], magics["aarch64"])
	put(arm)
	requireOpens(t, dir, []vmi.Range{{Start: armStart, End: armStart + 1<<30}})
}

func TestNoSnapshot(t *testing.T) {
	dir := t.TempDir()
	open := func() error {
		_, err := vmi.Open(t.Context(), dir, nil)
		return err
	}
	require.ErrorContains(t, open(), "is a directory")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "vmstate"), fcState(8), 0o600))
	require.ErrorContains(t, open(), "is a directory")
	for i := range maxEntries + 1 {
		sparse(t, filepath.Join(dir, fmt.Sprint(i)), 1<<20, nil)
	}
	require.ErrorContains(t, open(), "is a directory")
}

func FuzzCloudHypervisor(f *testing.F) {
	f.Add(chJSON([2]uint64{0, 3 << 30}, [2]uint64{4 << 30, 1 << 30}))
	f.Fuzz(func(t *testing.T, b []byte) {
		layout, err := parseCloudHypervisor(b)
		off := uint64(0)
		for _, l := range layout {
			if l.Off != off || off+l.Len < off {
				t.Fatalf("%#x", layout)
			}
			off += l.Len
		}
		if (err == nil) != (len(layout) > 0) {
			t.Fatal(err)
		}
	})
}

func FuzzFirecracker(f *testing.F) {
	f.Add(fcState(8, [2]uint64{0, 3 << 30}, [2]uint64{4 << 30, 1 << 30}), uint64(size))
	f.Add(fcState(0, [2]uint64{0, 13 << 28}, [2]uint64{4 << 30, 3 << 28}), uint64(size))
	f.Fuzz(func(t *testing.T, b []byte, size uint64) {
		s := state{archOf(b), b}
		sum := uint64(0)
		layout := s.layout(size)
		for _, l := range layout {
			sum += l.Len
		}
		if layout != nil && sum != size {
			t.Fatalf("%#x of %#x", layout, size)
		}
	})
}
