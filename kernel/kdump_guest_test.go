package kernel_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/kdump"
)

// TestKdumpTasks lists the threads of a paused guest in its RAM, and in dumps of it:
// QEMU's, ours, and ours without all that makedumpfile can do without.
func TestKdumpTasks(t *testing.T) {
	vm := testvm.Start(t, testvm.Config{CPUs: 2, Memory: 320 << 20, QEMUArgs: []string{"-device", "vmcoreinfo"}})
	_, err := vm.Exec(t.Context(), "modprobe", "qemu_fw_cfg")
	require.NoError(t, err)
	_, err = vm.QMP(t.Context(), "stop", nil)
	require.NoError(t, err)
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }

	type thread struct {
		tgid, pid kernel.PID
		comm      string
	}
	list := func(path string) (all []thread) {
		m, err := vmi.Open(t.Context(), path, nil)
		require.NoError(t, err)
		defer m.Close()
		k, err := kernel.Open(t.Context(), m, nil)
		require.NoError(t, err, path)
		for p, err := range k.Tasks() {
			require.NoError(t, err)
			for u, err := range p.Threads() {
				require.NoError(t, err)
				all = append(all, thread{u.TGID, u.PID, u.Comm})
			}
		}
		return all
	}
	want := list(vm.RAMPath())
	require.Greater(t, len(want), 30)

	_, err = vm.QMP(t.Context(), "dump-guest-memory", map[string]any{"paging": false, "protocol": "file:" + path("qemu"), "format": "kdump-zlib"})
	require.NoError(t, err)
	require.Equal(t, want, list(path("qemu")))

	ram, err := vmi.Open(t.Context(), vm.RAMPath(), nil)
	require.NoError(t, err)
	defer ram.Close()
	qemu, err := vmi.Open(t.Context(), path("qemu"), nil)
	require.NoError(t, err)
	defer qemu.Close()
	info := qemu.(vmi.Notes).VMCoreInfo()
	for name, c := range map[string]kdump.Compression{"zlib": kdump.Zlib, "zstd": kdump.Zstd} {
		require.NoError(t, kdump.Write(t.Context(), path(name), ram, &kdump.WriteOptions{
			Compression: c, DumpOptions: vmi.DumpOptions{VMCoreInfo: info},
		}))
		require.Equal(t, want, list(path(name)))
	}

	run := func(args ...string) []byte {
		cmd := exec.CommandContext(t.Context(), "makedumpfile", args...)
		cmd.Dir = dir
		out, err := cmd.Output()
		require.NoError(t, err, "makedumpfile %v (Debian package makedumpfile)", args)
		return out
	}
	run("-l", "-d", "31", "zlib", "filtered")
	require.NoError(t, os.WriteFile(path("flat"), run("-F", "-c", "-d", "31", "zlib"), 0o600))
	run("--split", "-c", "-d", "31", "zlib", "part1", "part2")
	for _, name := range []string{"filtered", "flat", "part1?part=part2"} {
		require.Equal(t, want, list(path(name)), name)
	}
}
