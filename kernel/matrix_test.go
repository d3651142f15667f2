package kernel_test

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/support"
	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

const supportDoc = "../docs/kernel-support.md"

// feature is a row of the matrix.
type feature struct {
	name string
	test func(t *testing.T, z *zoo)
	// kernels are those that it is tested on if only a few are, nil for all of these.
	kernels []string
}

// features are the rows of the matrix: each is run on every kernel, on a guest that
// all of them share, in this order. They must leave nothing behind that matters to
// those that follow. A feature that a kernel has not calls t.Skip, which says why.
var features = []feature{
	{name: "open", test: checkOpen},
	{name: "tasks", test: environ("tasks")},
	{name: "process tree", test: environ("process tree")},
	{name: "credentials", test: environ("credentials")},
	{name: "signals", test: environ("signals")},
	{name: "timers", test: checkTimers},
	{name: "paths", test: environ("paths")},
	{name: "files", test: environ("files")},
	{name: "maps", test: environ("maps")},
	{name: "namespaces", test: environ("namespaces")},
	{name: "mounts", test: environ("mounts")},
	{name: "cgroups", test: environ("cgroups")},
	{name: "seccomp", test: environ("seccomp")},
	{name: "pipes", test: checkPipes},
	{name: "terminals", test: checkTTYs},
	{name: "sockets", test: checkSockets},
	{name: "shared memory", test: checkShmem},
	{name: "page cache", test: checkPageCache},
	{name: "other", test: checkMoreOfTheZoo},
	{name: "modules and log", test: checkModules},
	{name: "socket tables", test: network("namespaces", "tables")},
	{name: "socket queues", test: network("options", "queues", "peers", "TCP")},
	{name: "network devices", test: network("devices", "routes")},
	{name: "slab caches", test: checkSlabs},
	{name: "memory zones", test: checkZones},
	{name: "ipc objects", test: checkIPC},
	// The rest keeps the guest's processor busy from here on.
	{"scheduling", scheduled("scheduling"), schedKernels},
	{"run queues", scheduled("run queues"), schedKernels},
	{"stacks", scheduled("stacks"), schedKernels},
	{"mount options", scheduled("mount options"), schedKernels},
	{"cgroup settings", scheduled("cgroup settings"), schedKernels},
	{"namespace list", scheduled("namespace list"), schedKernels},
	{"containers", scheduled("containers"), schedKernels},
	{"stack of a processor", checkCPUStack, []string{"trixie-cloud"}},
}

// machine is a column of the matrix.
type machine struct {
	name   string
	config testvm.Config
	always bool // tested even if only a few are: see testvm.Kernel.Chosen
}

func (m machine) chosen() bool {
	return m.always && testvm.Chosen(m.config.Kernel) || testvm.AllKernels()
}

func machineNames(machines []machine) (all []string) {
	for _, m := range machines {
		all = append(all, m.name)
	}
	return all
}

// machines are all kernels, and some of them once more on other machines.
func machines() []machine {
	var all []machine
	for _, k := range testvm.Kernels() {
		all = append(all, machine{k.Name, testvm.Config{Kernel: k.Name}, true})
	}
	return append(
		all,
		machine{"bookworm-cloud nokaslr", testvm.Config{Kernel: "bookworm-cloud", KernelArgs: "nokaslr"}, false},
		machine{"sid-generic nokaslr", testvm.Config{Kernel: "sid-generic", KernelArgs: "nokaslr"}, false},
		machine{"bullseye-generic 5 levels", testvm.Config{Kernel: "bullseye-generic", CPU: "max,-cx16"}, false},
		machine{"trixie-rt 5 levels", testvm.Config{Kernel: "trixie-rt", CPU: "max,-cx16"}, false},
		machine{"trixie-arm64 52 bits", testvm.Config{Kernel: "trixie-arm64", CPU: "max,pauth-impdef=on"}, false},
	)
}

// TestMatrix compares what package kernel says with what the guest says, on every
// kernel that Debian ships, or on a few of them: see testvm.Kernel.Chosen. What came of
// it is the table in docs/kernel-support.md.
func TestMatrix(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests; -short is set")
	}
	m := support.New(supportDoc, "matrix", "feature", machineNames(machines()), names(features))
	t.Cleanup(func() { m.CompareDocs(t) })
	for _, c := range machines() {
		if !c.chosen() {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // as many guests at once as there are processors
			defer m.Fill(c.name, t)
			gdb := filepath.Join(t.TempDir(), "gdb")
			c.config.QEMUArgs = []string{"-gdb", "unix:" + gdb + ",server=on,wait=off"}
			z := startZoo(t, testvm.Start(t, c.config))
			z.gdb = gdb
			m.Booted(c.name, z.k.Release())
			for _, f := range features {
				if f.kernels != nil && !slices.Contains(f.kernels, c.config.Kernel) && !testvm.AllKernels() {
					continue
				}
				t.Run(f.name, func(t *testing.T) {
					defer m.Set(c.name, f.name, t)
					f.test(t, z)
				})
			}
			z.vm.CheckKernel(t)
		})
	}
}

func names(features []feature) (all []string) {
	for _, f := range features {
		all = append(all, f.name)
	}
	return all
}

func TestMachinesAreOfKernels(t *testing.T) {
	names := map[string]bool{}
	for _, m := range machines() {
		require.False(t, names[m.name], "two are called %s", m.name)
		names[m.name] = true
	}
	require.GreaterOrEqual(t, len(names), 14)
}
