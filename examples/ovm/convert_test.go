package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/snappy"
	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

// below4g is where RAM of these guests ends below the PCI hole: that of QEMU's pc
// machine with 4 GiB, and of Firecracker and Cloud Hypervisor.
const below4g = 3 << 30

// pcGuest boots a guest whose RAM file is, byte for byte, what Firecracker and Cloud
// Hypervisor write for a machine of 4 GiB.
func pcGuest(t *testing.T) *testvm.VM {
	t.Helper()
	return testvm.Start(t, testvm.Config{Memory: 4 << 30, QEMUArgs: []string{"-machine", "pc"}})
}

// requireSame checks that ps says the same of a file as of the paused guest.
func requireSame(t *testing.T, want []process, guest string) {
	t.Helper()
	require.Equal(t, want, ovmJSON[[]process](t, "-g", guest, "ps"), guest)
}

// TestConvert writes the memory of a guest, paused by somebody else so that it stays
// what it is, in every format there is, and looks at each.
func TestConvert(t *testing.T) {
	vm := pcGuest(t)
	guest := "qmp:" + vm.QMPSocket()
	_, err := vm.QMP(t.Context(), "stop", nil)
	require.NoError(t, err)
	want := ovmJSON[[]process](t, "-g", guest, "ps")
	require.Greater(t, len(want), 40)
	dir := ramDir(t)

	for _, tt := range []struct {
		args []string
		info string
	}{
		{[]string{"out.raw"}, ""},
		{[]string{"out.lime"}, ""},
		{[]string{"out.elf"}, "memory"},
		{[]string{"out.kdump"}, "memory"},
		{[]string{"out", "--format", "kdump", "--compress", "zstd"}, "memory"},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			tt.args[0] = filepath.Join(dir, tt.args[0])
			r := ovmJSON[converted](t, append([]string{"-g", guest, "convert"}, tt.args...)...)
			require.EqualValues(t, 4<<30, r.Memory)
			require.Less(t, r.Stored, uint64(1<<30), "zeros take no room")
			require.Equal(t, tt.info, r.VMCoreInfo)
			require.NotZero(t, r.Pause)
			requireSame(t, want, r.Open)
			if tt.info != "" {
				require.Equal(t, 1, r.CPUs)
				require.Contains(t, string(ovm(t, "-g", r.Open, "info")), "vmcoreinfo: of the dump file")
			}
			requireFails(t, "exists", "-g", guest, "convert", tt.args[0], "--format", r.Format)
		})
	}
	t.Run("one format to the other", func(t *testing.T) {
		kdump := filepath.Join(dir, "out.kdump")
		for _, to := range []string{"again.elf", "again.lime", "again.raw"} {
			path := filepath.Join(dir, to)
			r := ovmJSON[converted](t, "-g", kdump, "convert", path)
			requireSame(t, want, r.Open)
			require.NoError(t, os.Remove(path))
		}
	})

	// LiME's "padded" format is memory as it lies.
	t.Run("padded", func(t *testing.T) {
		requireSame(t, want, filepath.Join(dir, "out.raw")+"?layout=identity")
		requireFails(t, "PCI hole", "-g", filepath.Join(dir, "out.raw"), "ps")
	})

	t.Run("AVML", func(t *testing.T) {
		path := filepath.Join(dir, "avml")
		writeAVML(t, path, vm.RAMPath())
		requireSame(t, want, path)
	})

	t.Run("snapshots", func(t *testing.T) { convertSnapshots(t, vm.RAMPath(), dir, want) })

	t.Run("interrupted", func(t *testing.T) {
		left, err := os.ReadDir(dir)
		require.NoError(t, err)
		path := filepath.Join(dir, "interrupted.elf")
		interrupt(t, "interrupted", "-g", guest, "--progress", "convert", path)
		now, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Len(t, now, len(left))
	})

	_, err = vm.QMP(t.Context(), "cont", nil)
	require.NoError(t, err)
	vm.CheckKernel(t)
}

// TestForeignDumps looks at what QEMU and makedumpfile write. QEMU's dumps with paging
// hold the same page once for each virtual address that it has.
func TestForeignDumps(t *testing.T) {
	vm := testvm.Start(t, testvm.Config{Memory: 384 << 20})
	guest := "qmp:" + vm.QMPSocket()
	_, err := vm.QMP(t.Context(), "stop", nil)
	require.NoError(t, err)
	want := ovmJSON[[]process](t, "-g", guest, "ps")
	require.Greater(t, len(want), 40)
	dir := ramDir(t)
	elf := filepath.Join(dir, "out.elf")
	for _, paging := range []bool{false, true} {
		t.Run(fmt.Sprintf("QEMU, paging %v", paging), func(t *testing.T) {
			path := filepath.Join(dir, "dump")
			_, err := vm.QMP(t.Context(), "dump-guest-memory", map[string]any{"paging": paging, "protocol": "file:" + path})
			require.NoError(t, err)
			requireSame(t, want, path)
			require.NoError(t, os.RemoveAll(elf))
			requireSame(t, want, ovmJSON[converted](t, "-g", path, "convert", elf).Open)
			require.NoError(t, os.Remove(path))
		})
	}
	// What a filter left out stays left out, and raw RAM cannot say so.
	t.Run("filtered", func(t *testing.T) {
		if _, err := exec.LookPath("makedumpfile"); err != nil {
			t.Fatal("this test needs makedumpfile (Debian package makedumpfile)")
		}
		filtered := filepath.Join(dir, "filtered")
		out, err := exec.CommandContext(t.Context(), "makedumpfile", "-c", "-d", "8", elf, filtered).CombinedOutput()
		require.NoErrorf(t, err, "%s", out)
		ps := func(guest string) string {
			var stdout, stderr bytes.Buffer
			run([]string{"-g", guest, "ps", "--json"}, &stdout, &stderr)
			return stdout.String() + stderr.String()
		}
		before := ps(filtered)
		const none = `"cmdline": []` // they are in user memory
		without := strings.Count(before, none)
		require.Greater(t, without, strings.Count(ps(elf), none))
		for _, to := range []string{"f.elf", "f.lime", "f.kdump"} {
			path := filepath.Join(dir, to)
			ovm(t, "-g", filtered, "convert", path)
			after := ps(path)
			require.Equal(t, strings.Count(before, `"pid"`), strings.Count(after, `"pid"`))
			require.Equal(t, without, strings.Count(after, none))
			require.NoError(t, os.Remove(path))
		}
		requireFails(t, "left out", "-g", filtered, "convert", filepath.Join(dir, "f.raw"))
		require.NoFileExists(t, filepath.Join(dir, "f.raw"))

		// And makedumpfile reads what we write.
		out, err = exec.CommandContext(t.Context(), "makedumpfile", "-E", "-d", "0", elf, filepath.Join(dir, "m.elf")).CombinedOutput()
		require.NoErrorf(t, err, "%s", out)
		requireSame(t, want, filepath.Join(dir, "m.elf"))
	})
}

// ramDir is a directory for files of the size of guests.
func ramDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "ovm-convert-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// copyRAM copies a RAM file with its holes.
func copyRAM(t *testing.T, from, to string) *os.File {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "cp", "--sparse=always", from, to).CombinedOutput()
	require.NoErrorf(t, err, "%s", out)
	f, err := os.OpenFile(to, os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// convertSnapshots looks at the guest's RAM file as the memory file of a snapshot. The
// monitors themselves need KVM: what stands beside the memory is made after their
// sources.
func convertSnapshots(t *testing.T, ram, dir string, want []process) {
	ch := filepath.Join(dir, "ch")
	require.NoError(t, os.Mkdir(ch, 0o700))
	copyRAM(t, ram, filepath.Join(ch, "memory-ranges"))
	require.NoError(t, os.WriteFile(filepath.Join(ch, "state.json"), []byte(fmt.Sprintf(
		`{"snapshots":{"memory-manager":{"snapshots":{},"snapshot_data":{"state":%q}}},"snapshot_data":null}`,
		fmt.Sprintf(`{"memory_ranges":{"data":[{"gpa":0,"length":%d},{"gpa":%d,"length":%d}]}}`, below4g, 4<<30, 1<<30))), 0o600))
	requireSame(t, want, ch)
	requireSame(t, want, filepath.Join(ch, "memory-ranges"))
	require.NoError(t, os.RemoveAll(ch))

	fc := filepath.Join(dir, "fc")
	require.NoError(t, os.Mkdir(fc, 0o700))
	memory := filepath.Join(fc, "mem")
	f := copyRAM(t, ram, memory)
	requireFails(t, "PCI hole", "-g", memory, "ps")
	requireSame(t, want, memory+"?below4g=3G")
	le := binary.LittleEndian
	state := le.AppendUint64(nil, 0x0710_1984_8664_0000)
	for _, v := range []uint64{0, below4g, 0, 4 << 30, 1 << 30, below4g} { // address, size, offset
		state = le.AppendUint64(state, v)
	}
	require.NoError(t, os.WriteFile(filepath.Join(fc, "vmstate"), state, 0o600))
	requireSame(t, want, fc)

	// The memory map that Firecracker leaves at 0x7000 is enough.
	page := make([]byte, 4096)
	le.PutUint16(page[0x1fe:], 0xaa55)
	copy(page[0x202:], "HdrS")
	page[0x1e8] = 3
	for i, e := range [][2]uint64{{0, 0x9fc00}, {1 << 20, below4g - 1<<20}, {4 << 30, 1 << 30}} {
		le.PutUint64(page[0x2d0+20*i:], e[0])
		le.PutUint64(page[0x2d8+20*i:], e[1])
		le.PutUint32(page[0x2e0+20*i:], 1)
	}
	_, err := f.WriteAt(page, 0x7000)
	require.NoError(t, err)
	requireSame(t, want, fc)
	requireSame(t, want, memory)
	require.NoError(t, os.RemoveAll(fc))
}

// writeAVML writes RAM as avml does: stretches of 16 MiB that are not all zeros, in
// Snappy's framing format. avml itself is not in Debian.
func writeAVML(t *testing.T, to, ram string) {
	t.Helper()
	in, err := os.Open(ram)
	require.NoError(t, err)
	defer in.Close()
	var out bytes.Buffer
	le := binary.LittleEndian
	block, zeros := make([]byte, 16<<20), make([]byte, 16<<20)
	for off := uint64(0); off < 4<<30; off += uint64(len(block)) {
		_, err := io.ReadFull(io.NewSectionReader(in, int64(off), int64(len(block))), block)
		require.NoError(t, err)
		if bytes.Equal(block, zeros) {
			continue
		}
		phys := off
		if off >= below4g {
			phys += 1 << 30
		}
		h := append([]byte("AVML"), 2, 0, 0, 0)
		h = le.AppendUint64(le.AppendUint64(h, phys), phys+uint64(len(block))-1)
		out.Write(le.AppendUint64(h, 0))
		begin := out.Len()
		out.WriteString("\xff\x06\x00\x00sNaPpY")
		for part := block; len(part) > 0; part = part[65536:] {
			typ, body := uint32(1), part[:65536]
			sum := crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli))
			if c := snappy.Encode(nil, body); len(c) < len(body)-len(body)/8 {
				typ, body = 0, c
			}
			h := le.AppendUint32(nil, uint32(len(body)+4)<<8|typ)
			out.Write(le.AppendUint32(h, (sum>>15|sum<<17)+0xa282ead8))
			out.Write(body)
		}
		out.Write(le.AppendUint64(nil, uint64(out.Len()-begin)))
	}
	require.NoError(t, os.WriteFile(to, out.Bytes(), 0o600))
}

// TestKcore runs ovm inside a guest, on the kernel that it runs on, with the view from
// outside as oracle.
func TestKcore(t *testing.T) {
	vm := sharedGuest(t, "bookworm")
	bin := filepath.Join(t.TempDir(), "ovm")
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-s -w", "-o", bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoErrorf(t, err, "%s", out)
	f, err := os.Open(bin)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, vm.Put(t.Context(), "/root/ovm", f, 0o755))

	outside := func() map[string]process {
		all := map[string]process{}
		for _, p := range ovmJSON[[]process](t, "-g", vm.RAMPath(), "ps") {
			all[fmt.Sprintf("%d started %d", p.PID, p.StartNS)] = p
		}
		return all
	}
	before := outside()
	out, err = vm.Exec(t.Context(), "/root/ovm", "-g", "/proc/kcore", "ps", "--json")
	require.NoError(t, err)
	after := outside()
	var inside []process
	require.NoError(t, json.Unmarshal(out, &inside))
	compared := 0
	for _, p := range inside {
		key := fmt.Sprintf("%d started %d", p.PID, p.StartNS)
		a, ok := after[key]
		if _, was := before[key]; !ok || !was {
			continue // started or ended meanwhile
		}
		require.Equal(t, []any{a.PPID, a.PGID, a.SID, a.UID, a.Cmdline, a.Cgroup, a.NS}, []any{p.PPID, p.PGID, p.SID, p.UID, p.Cmdline, p.Cgroup, p.NS})
		compared++
	}
	for key := range before {
		if _, ok := after[key]; !ok {
			delete(before, key)
		}
	}
	require.Equal(t, len(before), compared, "each that was there all the time is seen from within")
	require.Greater(t, compared, 40)

	_, err = vm.Exec(t.Context(), "/root/ovm", "-g", "/proc/kcore", "convert", "/root/x.elf")
	require.ErrorContains(t, err, "add --live")
	_, err = vm.Exec(t.Context(), "/root/ovm", "-g", "/proc/kcore", "stop", "1")
	require.ErrorContains(t, err, "cannot be written to")
	vm.CheckKernel(t)
}
