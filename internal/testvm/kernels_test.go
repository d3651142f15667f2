package testvm

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestKernelsAreKnown(t *testing.T) {
	var own []string
	keys := map[string]string{}
	for _, k := range Kernels() {
		found, err := findKernel(k.Name)
		require.NoError(t, err)
		require.Equal(t, k, found, "a name of its own")
		require.True(t, strings.HasPrefix(k.Name, k.Release+"-"))
		key, err := k.key()
		require.NoError(t, err)
		require.Empty(t, keys[key], "%s has the files of another", k.Name)
		keys[key] = k.Name
		if k.own() {
			own = append(own, k.Name)
		}
	}
	require.Equal(t, []string{"bookworm-cloud", "trixie-cloud", "bookworm-arm64"}, own)
	_, err := findKernel("potato-rt")
	require.ErrorContains(t, err, `kernel "potato-rt": unknown; there are bullseye-cloud, `)
	require.NotEqual(t, Kernels()[0].label(), Kernel{Name: "bullseye-cloud", Arch: "arm64"}.label())
}

func TestMissingKernelSaysWhatToDo(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("OVM_CACHE", cache)
	s, err := findSuite("bookworm")
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(s.imageDir(cache), 0o755))
	_, err = FindKernel("sid-rt")
	require.ErrorIs(t, err, ErrNoImage)
	require.EqualError(t, err, "kernel sid-rt: guest image is not built; run 'make guests'")
	_, err = FindKernel("bookworm-cloud")
	require.NoError(t, err, "comes with the suite")
	_, err = Boot(t.Context(), Config{Kernel: "potato"})
	require.ErrorContains(t, err, "unknown")
	_, err = Boot(t.Context(), Config{Kernel: "bookworm-cloud", Suite: "trixie"})
	require.EqualError(t, err, "kernel bookworm-cloud boots bookworm, not trixie")
}

func TestKernelFile(t *testing.T) {
	for from, to := range map[string]string{
		"./boot/vmlinuz-5.10.0-32-rt-amd64":                                     "vmlinuz",
		"./boot/config-6.1.0-50-amd64":                                          "config",
		"./boot/System.map-6.1.0-50-amd64":                                      "",
		"./usr/lib/modules/7.2.13+deb14-amd64/vmlinuz":                          "vmlinuz",
		"./usr/lib/modules/7.2.13+deb14-amd64/config":                           "config",
		"./usr/lib/modules/7.2.13+deb14-amd64/System.map":                       "",
		"./lib/modules/5.10.0-32-amd64/modules.builtin":                         "lib/modules/5.10.0-32-amd64/modules.builtin",
		"./usr/lib/modules/7/kernel/fs/ext4/ext4.ko.xz":                         "lib/modules/7/kernel/fs/ext4/ext4.ko.xz",
		"./lib/modules/6/kernel/drivers/net/veth.ko":                            "lib/modules/6/kernel/drivers/net/veth.ko",
		"./lib/modules/6/kernel/drivers/net/ethernet/intel/e1000/e1000.ko":      "",
		"./lib/modules/6/kernel/drivers/gpu/drm/drm.ko":                         "",
		"./lib/modules/6/kernel/../../../../../etc/passwd":                      "",
		"../../lib/modules/6/kernel/fs/../../../../../../root/.ssh/authorized_": "",
		"./usr/share/doc/linux-image-6.1.0-50-amd64/copyright":                  "",
	} {
		require.Equal(t, to, kernelFile(from), from)
	}
}

func TestUntarKernel(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "./boot/vmlinuz-1", Size: 3, Mode: 0o600},
		{Name: "./lib/modules/1/build", Typeflag: tar.TypeSymlink, Linkname: "/usr/src"},
		{Name: "./lib/modules/1/modules.order", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
		{Name: "./lib/modules/1/kernel/fs/x.ko", Size: 3},
	} {
		require.NoError(t, w.WriteHeader(&h))
		_, err := w.Write([]byte("abc")[:h.Size])
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	dir := t.TempDir()
	require.NoError(t, untarKernel(&b, dir))
	for _, f := range []string{"vmlinuz", "lib/modules/1/kernel/fs/x.ko"} {
		got, err := os.ReadFile(filepath.Join(dir, f))
		require.NoError(t, err)
		require.Equal(t, "abc", string(got))
	}
	require.NoFileExists(t, filepath.Join(dir, "lib/modules/1/modules.order"), "a link leads elsewhere")
	moddir, err := moduleDir(dir)
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, "lib/modules/1"), moddir)
}

func TestPickMirror(t *testing.T) {
	m, err := pickMirror("http://a.example/ bookworm-security main\nhttp://b.example/ bookworm contrib\nhttp://c.example/d/ bookworm main\n")
	require.NoError(t, err)
	require.Equal(t, "http://c.example/d/", m)
	_, err = pickMirror("")
	require.EqualError(t, err, "apt on this machine has no Debian mirror among its sources")
}

// A kernel that the disk has no modules for finds all that a guest loads.
func TestOtherKernels(t *testing.T) {
	for name, release := range map[string]string{"bookworm-rt": "6.1.", "sid-generic": "7."} {
		t.Run(name, func(t *testing.T) {
			vm := Start(t, Config{Kernel: name})
			t.Logf("booted in %v", vm.BootTime())
			out, err := vm.Exec(t.Context(), "sh", "-c", "uname -r; modprobe -a bridge nft_compat netlink_diag fuse btrfs; ls -d /sys/module/btrfs; nft list ruleset")
			require.NoError(t, err)
			lines := strings.Fields(string(out))
			require.True(t, strings.HasPrefix(lines[0], release), "%s", out)
			require.Equal(t, []string{"/sys/module/btrfs"}, lines[1:])
			vm.CheckKernel(t)
		})
	}
}
