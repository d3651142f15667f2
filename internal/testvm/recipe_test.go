package testvm

import (
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
)

func TestImageKey(t *testing.T) {
	s := Suite{Name: "x", Packages: []string{"b", "a"}, Modules: []string{"m"}}
	files := func(name, content string) fstest.MapFS {
		return fstest.MapFS{"agent/main.go": {Data: []byte("package main")}, name: {Data: []byte(content)}}
	}
	key := s.imageKeyOf(files("programs/p.c", "1"))
	require.Equal(t, key, s.imageKeyOf(files("programs/p.c", "1")), "the same recipe")

	changed := map[string]string{
		"file content":   s.imageKeyOf(files("programs/p.c", "2")),
		"file name":      s.imageKeyOf(files("programs/q.c", "1")),
		"name/content":   s.imageKeyOf(files("programs/p.c1", "")),
		"modules":        Suite{Name: "x", Packages: s.Packages, Modules: []string{"m", "n"}}.imageKeyOf(files("programs/p.c", "1")),
		"packages":       Suite{Name: "x", Packages: []string{"a"}, Modules: s.Modules}.imageKeyOf(files("programs/p.c", "1")),
		"package border": Suite{Name: "x", Packages: []string{"ba"}, Modules: s.Modules}.imageKeyOf(files("programs/p.c", "1")),
		"suite":          Suite{Name: "y", Packages: s.Packages, Modules: s.Modules}.imageKeyOf(files("programs/p.c", "1")),
	}
	for what, k := range changed {
		require.NotEqual(t, key, k, what)
	}

	withTest := files("programs/p.c", "1")
	withTest["agent/main_test.go"] = &fstest.MapFile{Data: []byte("package main")}
	require.Equal(t, key, s.imageKeyOf(withTest), "tests do not reach the image")

	sorted := Suite{Name: "x", Packages: []string{"a", "b"}, Modules: s.Modules}
	require.Equal(t, s.baseKey(), sorted.baseKey(), "order of packages does not matter")
	require.NotEqual(t, s.baseKey(), Suite{Name: "y", Packages: s.Packages}.baseKey())
}

func TestSuitesAreKnown(t *testing.T) {
	for _, name := range Suites() {
		s, err := findSuite(name)
		require.NoError(t, err)
		require.Contains(t, s.Packages, "criu")
	}
	_, err := findSuite("potato")
	require.EqualError(t, err, `guest "potato": unknown; there are bookworm, trixie`)
}

func TestMissingImageSaysWhatToDo(t *testing.T) {
	t.Setenv("OVM_CACHE", t.TempDir())
	_, err := FindImage("bookworm")
	require.ErrorIs(t, err, ErrNoImage)
	require.EqualError(t, err, "bookworm: guest image is not built; run 'make guests'")
	_, err = Boot(t.Context(), Config{})
	require.ErrorIs(t, err, ErrNoImage)
}

func TestLoadOrder(t *testing.T) {
	const deps = "kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/virtio_lib.ko.xz kernel/drivers/virtio/virtio.ko.xz\n" +
		"kernel/drivers/virtio/virtio_lib.ko.xz: kernel/drivers/virtio/virtio.ko.xz\n" +
		"kernel/drivers/virtio/virtio.ko.xz:\n" +
		"kernel/drivers/block/virtio-blk.ko.xz: kernel/drivers/virtio/virtio.ko.xz\n"
	got, err := loadOrder(deps, "kernel/fs/ext4/ext4.ko\n", []string{"virtio_blk", "ext4", "virtio_pci"})
	require.NoError(t, err)
	require.Equal(t, []string{
		"kernel/drivers/virtio/virtio.ko.xz",
		"kernel/drivers/block/virtio-blk.ko.xz",
		"kernel/drivers/virtio/virtio_lib.ko.xz",
		"kernel/drivers/virtio/virtio_pci.ko.xz",
	}, got)
	_, err = loadOrder(deps, "", []string{"ext4"})
	require.ErrorContains(t, err, "no module ext4")
}

func TestComplaints(t *testing.T) {
	log := "[ 1.0] Linux version 6.1.0\n" +
		"[ 2.0] WARNING: CPU: 0 PID: 1 at kernel/sched/core.c:1 x+0x1/0x2\n" +
		"[ 3.0] installed fine\n" +
		"[ 4.0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\n" +
		"[ 5.0] INFO: task x:12 blocked for more than 60 seconds.\n" +
		"[ 6.0] BUG: unable to handle page fault for address: ffff\n"
	require.Len(t, complaints(log), 4)
	require.Empty(t, complaints("[ 1.0] clocksource: tsc marked unstable\n"))
}

func TestQemuArgs(t *testing.T) {
	c := Config{Memory: 5 << 30, QEMUArgs: []string{"-device", "vmcoreinfo"}}.withDefaults()
	args := qemuArgs(c, &Image{Disk: "/a,b"}, files{dir: "/d", ram: "/r"})
	require.Contains(t, args, "memory-backend-file,id=ram,share=on,mem-path=/r,size=5368709120")
	require.Contains(t, args, "5242880K")
	require.Contains(t, args, "if=none,id=root,format=raw,snapshot=on,cache=unsafe,file=/a,,b")
	require.Equal(t, "vmcoreinfo", args[len(args)-1])
	c.AnonymousRAM = true
	require.Contains(t, qemuArgs(c, &Image{}, files{}), "memory-backend-ram,id=ram,size=5368709120")
}
