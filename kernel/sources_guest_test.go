package kernel_test

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/support"
	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/elfcore"
	"github.com/ovmigrate/ovmigrate/vmi/kdump"
	"github.com/ovmigrate/ovmigrate/vmi/lime"
	_ "github.com/ovmigrate/ovmigrate/vmi/sources"
)

// source is one way to a guest's memory.
type source struct {
	name string
	ram  string // kind of RAM that the guest must have: a key of ramKinds
	// open returns what vmi.Open takes. Files go into dir.
	open func(t *testing.T, vm *testvm.VM, dir string) string
	// noARM64 says why there is none of an arm64 guest.
	noARM64 string
}

// ramKinds are the machines that the sources need.
var ramKinds = map[string]testvm.Config{
	"":          {},
	"large":     {Memory: 3 << 30},
	"anonymous": {AnonymousRAM: true},
	"memfd":     {MemFD: true},
	"NUMA":      {NUMA: true},
}

// sources are the rows of the table: all of one kind of RAM look at one guest that is
// stopped, and must list the same processes.
var sources = []source{
	{name: "live, shared file (qmp)", open: liveQMP},
	{name: "live, shared file (pid)", open: livePID},
	{name: "RAM file", open: rawFile},
	{name: "RAM file, sparse copy", open: sparseCopy},
	{name: "ELF of QEMU, paging off", open: qemuDump("elf", false)},
	{name: "ELF of QEMU, paging on", open: qemuDump("elf", true), noARM64: "QEMU does not follow the page tables of arm64"},
	// Debian's QEMU is built without lzo and snappy.
	{name: "kdump of QEMU, zlib", open: qemuDump("kdump-zlib", false)},
	{name: "ELF of ours", open: written(elfcore.Write)},
	{name: "LiME of ours", open: written(lime.Write)},
	{name: "kdump of ours, zstd", open: written(zstdKdump)},
	{name: "live, 3 GiB (qmp)", ram: "large", open: liveQMP},
	{name: "live, 3 GiB (pid)", ram: "large", open: livePID},
	{name: "RAM file of 3 GiB with PCI hole", ram: "large", open: rawFile, noARM64: "RAM of QEMU's virt is in one piece"},
	{name: "live, anonymous (qmp)", ram: "anonymous", open: liveQMP},
	{name: "live, anonymous (pid)", ram: "anonymous", open: livePID},
	{name: "live, memfd (qmp)", ram: "memfd", open: liveQMP},
	{name: "live, memfd (pid)", ram: "memfd", open: livePID},
	{name: "live, NUMA (qmp)", ram: "NUMA", open: liveQMP},
}

func liveQMP(_ *testing.T, vm *testvm.VM, _ string) string { return "qmp:" + vm.QMPSocket() }

func livePID(_ *testing.T, vm *testvm.VM, _ string) string { return fmt.Sprintf("pid:%d", vm.PID()) }

func rawFile(_ *testing.T, vm *testvm.VM, _ string) string { return inRAM(vm, vm.RAMPath()) }

// inRAM is the RAM of that guest in a file.
func inRAM(vm *testvm.VM, path string) string {
	switch {
	case isARM64(vm.Config().Kernel):
		return path + "?base=1G"
	case vm.Config().Memory > 2<<30:
		return path + "?below4g=2G"
	}
	return path + "?below4g=256M"
}

func isARM64(kernel string) bool { return strings.HasSuffix(kernel, "-arm64") }

// sparseCopy copies RAM, leaving out what is zero.
func sparseCopy(t *testing.T, vm *testvm.VM, dir string) string {
	t.Helper()
	from, err := os.Open(vm.RAMPath())
	require.NoError(t, err)
	defer from.Close()
	to, err := os.Create(filepath.Join(dir, "copy"))
	require.NoError(t, err)
	defer to.Close()
	require.NoError(t, to.Truncate(vm.Config().Memory))
	b, zero := make([]byte, 4096), make([]byte, 4096)
	for off := int64(0); off < vm.Config().Memory; off += int64(len(b)) {
		_, err := io.ReadFull(from, b)
		require.NoError(t, err)
		if !slices.Equal(b, zero) {
			_, err := to.WriteAt(b, off)
			require.NoError(t, err)
		}
	}
	return inRAM(vm, to.Name())
}

// qemuDump has QEMU write a dump.
func qemuDump(format string, paging bool) func(t *testing.T, vm *testvm.VM, dir string) string {
	return func(t *testing.T, vm *testvm.VM, dir string) string {
		t.Helper()
		path := filepath.Join(dir, "dump")
		args := map[string]any{"paging": paging, "protocol": "file:" + path}
		if format != "elf" {
			args["format"] = format
		}
		_, err := vm.QMP(t.Context(), "dump-guest-memory", args)
		require.NoError(t, err)
		return path
	}
}

// written has this module write a dump.
func written(write func(context.Context, string, vmi.Memory, *vmi.DumpOptions) error) func(t *testing.T, vm *testvm.VM, dir string) string {
	return func(t *testing.T, vm *testvm.VM, dir string) string {
		t.Helper()
		mem, err := vmi.Open(t.Context(), inRAM(vm, vm.RAMPath()), nil)
		require.NoError(t, err)
		defer mem.Close()
		k, err := kernel.Open(t.Context(), mem, nil)
		require.NoError(t, err)
		path := filepath.Join(dir, "written")
		o := vmi.DumpOptions{VMCoreInfo: []byte(k.Guest().VMCoreInfo.Text())}
		if k.Arch() == paging.ARM64 {
			o.Machine = "aarch64"
		}
		require.NoError(t, write(t.Context(), path, mem, &o))
		return path
	}
}

func zstdKdump(ctx context.Context, path string, mem vmi.Memory, o *vmi.DumpOptions) error {
	return kdump.Write(ctx, path, mem, &kdump.WriteOptions{DumpOptions: *o, Compression: kdump.Zstd})
}

// sourceMachines are the kernels whose memory is looked at from every source, only one
// of them if only a few are tested.
func sourceMachines() []machine {
	var all []machine
	for _, k := range []string{"bullseye-cloud", "bookworm-cloud", "trixie-cloud", "sid-generic", "sid-arm64"} {
		all = append(all, machine{k, testvm.Config{Kernel: k}, k == "bookworm-cloud"})
	}
	return all
}

// TestSources lists the processes of stopped guests from each source of memory and
// compares the lists with one another and with the guest's own. What came of it is a
// table in docs/kernel-support.md.
func TestSources(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests; -short is set")
	}
	var rows, kinds []string
	for _, s := range sources {
		rows = append(rows, s.name)
		if !slices.Contains(kinds, s.ram) {
			kinds = append(kinds, s.ram)
		}
	}
	g := support.New(supportDoc, "sources", "source", machineNames(sourceMachines()), rows)
	t.Cleanup(func() { g.CompareDocs(t) })
	for _, m := range sourceMachines() {
		if !m.chosen() {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			defer g.Fill(m.name, t)
			for _, kind := range kinds {
				c := ramKinds[kind]
				c.Kernel = m.config.Kernel
				if kind == "" && !isARM64(c.Kernel) {
					// A small hole below 4 GiB has a small guest's RAM in two stretches.
					c.QEMUArgs = []string{"-machine", "max-ram-below-4g=256M"}
				}
				t.Run(cmp.Or(kind, "file"), func(t *testing.T) { compareSources(t, g, m.name, kind, testvm.Start(t, c)) })
			}
		})
	}
}

func compareSources(t *testing.T, g *support.Grid, machine, kind string, vm *testvm.VM) {
	told := stopAtRest(t, vm)
	for _, s := range sources {
		if s.ram != kind {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			defer g.Set(machine, s.name, t)
			if s.noARM64 != "" && isARM64(vm.Config().Kernel) {
				t.Skip(s.noARM64)
			}
			dir, err := os.MkdirTemp(filepath.Dir(cmp.Or(vm.RAMPath(), os.TempDir()+"/x")), "source")
			require.NoError(t, err)
			defer os.RemoveAll(dir)
			mem, err := vmi.Open(t.Context(), s.open(t, vm, dir), nil)
			require.NoError(t, err)
			defer mem.Close()
			k, err := kernel.Open(t.Context(), mem, nil)
			require.NoError(t, err)
			g.Booted(machine, k.Release())
			require.Equal(t, told, taskNames(t, k))
		})
	}
}

// stopAtRest stops a guest when its processes are those that it has just told of, and
// returns them.
func stopAtRest(t *testing.T, vm *testvm.VM) (told []string) {
	t.Helper()
	const list = `echo $$; cd /proc; for p in [0-9]*; do read -r c <$p/comm && echo "$p $c"; done 2>/dev/null`
	ctx, cancel := context.WithTimeout(t.Context(), guestTime)
	defer cancel()
	err := testvm.Wait(ctx, "the guest to be at rest", func() (bool, error) {
		out, err := vm.Exec(ctx, "sh", "-c", list)
		if err != nil {
			return false, err
		}
		time.Sleep(100 * time.Millisecond) // the list's own process ends
		if _, err := vm.QMP(ctx, "stop", nil); err != nil {
			return false, err
		}
		mem, err := vmi.Open(ctx, "qmp:"+vm.QMPSocket(), nil)
		if err != nil {
			return false, err
		}
		defer mem.Close()
		k, err := kernel.Open(ctx, mem, nil)
		if err != nil {
			return false, err
		}
		told = taskNames(t, k)
		if saysSame(string(out), told) {
			return true, nil
		}
		_, err = vm.QMP(ctx, "cont", nil)
		return false, err
	})
	require.NoError(t, err)
	require.Greater(t, len(told), 30)
	return told
}

// saysSame says whether the guest's list, which begins with the number of the process
// that made it, is ours. Of kernel threads the guest tells more than the name.
func saysSame(out string, ours []string) bool {
	self, out, _ := strings.Cut(out, "\n")
	var list []string
	for line := range strings.Lines(out) {
		if pid, _, _ := strings.Cut(line, " "); pid != self {
			list = append(list, strings.TrimSuffix(line, "\n"))
		}
	}
	slices.Sort(list)
	return slices.EqualFunc(list, ours, strings.HasPrefix)
}

// taskNames lists the processes that are found: number and name, sorted as text.
func taskNames(t *testing.T, k *kernel.Kernel) (list []string) {
	t.Helper()
	for task, err := range k.Tasks() {
		require.NoError(t, err)
		list = append(list, fmt.Sprintf("%d %s", task.PID, task.Comm))
	}
	slices.Sort(list)
	return list
}
