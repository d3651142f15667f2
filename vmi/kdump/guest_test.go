package kdump_test

import (
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/kdump"
	_ "github.com/ovmigrate/ovmigrate/vmi/ramfile"
)

// makedumpfile runs it in dir and returns what it wrote to its standard output.
func makedumpfile(t *testing.T, dir string, args ...string) []byte {
	cmd := exec.CommandContext(t.Context(), "makedumpfile", args...)
	cmd.Dir = dir
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "makedumpfile %v: %s (is the package makedumpfile installed?)", args, &stderr)
	return out
}

// guestDump pauses a guest and dumps it to "qemu" in dir, in the first kdump format,
// and in the others of which QEMU says that it has them.
func guestDump(t *testing.T, vm *testvm.VM, dir string) (names []string) {
	for _, format := range []string{"kdump-zlib", "kdump-lzo", "kdump-snappy", "kdump-raw-zlib", "kdump-raw-lzo", "kdump-raw-snappy"} {
		path := filepath.Join(dir, format)
		_, err := vm.QMP(t.Context(), "dump-guest-memory", map[string]any{"paging": false, "protocol": "file:" + path, "format": format})
		if err != nil && format != "kdump-zlib" {
			t.Logf("%s: %v", format, err)
			continue
		}
		require.NoError(t, err)
		names = append(names, format)
	}
	return names
}

// A paused guest's memory, page by page: that of every dump that QEMU, makedumpfile and
// Write make is that of the RAM file, or said to be left out.
func TestGuest(t *testing.T) {
	vm := testvm.Start(t, testvm.Config{CPUs: 2, Memory: 320 << 20, QEMUArgs: []string{"-device", "vmcoreinfo"}})
	_, err := vm.Exec(t.Context(), "modprobe", "qemu_fw_cfg") // hands VMCOREINFO to QEMU
	require.NoError(t, err)
	_, err = vm.QMP(t.Context(), "stop", nil)
	require.NoError(t, err)
	ram := open(t, vm.RAMPath())
	dir := t.TempDir()
	d := &dumps{t: t, dir: dir, ram: ram, pages: int(vm.Config().Memory / page)}

	for _, name := range guestDump(t, vm, dir) {
		require.Zero(t, d.check(name))
	}
	qemu := open(t, filepath.Join(dir, "kdump-zlib"))
	info := qemu.(vmi.Notes).VMCoreInfo()
	require.Contains(t, string(info), "OSRELEASE=")
	cpus, err := qemu.(vmi.CPUs).CPUs(t.Context())
	require.NoError(t, err)
	require.Len(t, cpus, 2)
	require.Equal(t, vmi.KnownControl|vmi.KnownKGSBase, cpus[0].Known)

	for name, c := range map[string]kdump.Compression{"zlib": kdump.Zlib, "zstd": kdump.Zstd, "none": kdump.None} {
		require.NoError(t, kdump.Write(t.Context(), filepath.Join(dir, name), ram, &kdump.WriteOptions{
			Compression: c, DumpOptions: vmi.DumpOptions{VMCoreInfo: info, CPUs: cpus},
		}))
		require.Zero(t, d.check(name))
	}
	ours := open(t, filepath.Join(dir, "zlib"))
	require.Equal(t, info, ours.(vmi.Notes).VMCoreInfo())
	got, err := ours.(vmi.CPUs).CPUs(t.Context())
	require.NoError(t, err)
	require.Equal(t, cpus, got)

	// makedumpfile reads what Write wrote, finds the kernel in it and filters it. In
	// QEMU's own it does not find the kernel; it can only put its pieces in order.
	makedumpfile(t, dir, "--dump-dmesg", "zlib", "dmesg")
	dmesg, err := os.ReadFile(filepath.Join(dir, "dmesg"))
	require.NoError(t, err)
	require.Contains(t, string(dmesg), "Linux version")
	d.rearrange("kdump-zlib", "ordered")
	require.Zero(t, d.check("ordered"))
	left := 0
	for _, from := range []string{"zlib", "none"} {
		makedumpfile(t, dir, "-c", "-d", "31", from, from+"-31")
		n := d.check(from + "-31")
		require.NotZero(t, n)
		require.True(t, left == 0 || left == n, "%d pages left out of %s, %d of another", n, from, left)
		left = n
	}
	makedumpfile(t, dir, "-l", "-d", "0", "zlib", "lzo")
	require.Zero(t, d.check("lzo"))
	makedumpfile(t, dir, "-d", "31", "none", "plain-31")
	require.Equal(t, left, d.check("plain-31"))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "flat-31"), makedumpfile(t, dir, "-F", "-l", "-d", "31", "zlib"), 0o600))
	require.Equal(t, left, d.check("flat-31"))
	makedumpfile(t, dir, "--split", "-l", "-d", "1", "zlib", "split-1", "split-2", "split-3")
	require.Zero(t, d.check("split-1?"+url.Values{"part": {"split-3", filepath.Join(dir, "split-2")}}.Encode()))
	// makedumpfile cuts only every GiB or so: the first part may have all pages.
	for _, parts := range []string{"split-1?part=split-1", "split-1?part=zlib", "zlib?part=split-1"} {
		_, err = vmi.Open(t.Context(), filepath.Join(dir, parts), nil)
		require.ErrorIs(t, err, kdump.ErrSplit, parts)
	}
}

type dumps struct {
	t     *testing.T
	dir   string
	ram   vmi.Memory
	pages int
}

// check compares a dump with RAM and returns how many pages it leaves out.
func (d *dumps) check(name string) (excluded int) {
	d.t.Helper()
	m, err := vmi.Open(d.t.Context(), filepath.Join(d.dir, name), nil)
	require.NoError(d.t, err, name)
	defer m.Close()
	want, got := make([]byte, page), make([]byte, page)
	seen := 0
	for _, r := range m.Ranges() {
		for a := r.Start; a < r.End; a += page {
			if a >= vmi.Phys(d.pages)*page {
				continue // firmware
			}
			seen++
			_, err := m.ReadPhys(got, a)
			if errors.Is(err, vmi.ErrExcluded) {
				excluded++
				continue
			}
			require.NoError(d.t, err, name)
			_, err = d.ram.ReadPhys(want, a)
			require.NoError(d.t, err)
			if string(want) != string(got) {
				d.t.Fatalf("%s: page %#x differs", name, a)
			}
		}
	}
	require.Equal(d.t, d.pages, seen, name)
	return excluded
}

// rearrange makes an ordinary dump of a flattened one.
func (d *dumps) rearrange(from, to string) {
	f, err := os.Open(filepath.Join(d.dir, from))
	require.NoError(d.t, err)
	defer f.Close()
	cmd := exec.CommandContext(d.t.Context(), "makedumpfile", "-R", to)
	cmd.Dir, cmd.Stdin = d.dir, f
	out, err := cmd.CombinedOutput()
	require.NoError(d.t, err, "%s", out)
}
