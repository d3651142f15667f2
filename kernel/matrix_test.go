package kernel_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

// feature is a row of the matrix.
type feature struct {
	name string
	test func(t *testing.T, z *zoo)
}

// features are the rows of the matrix: each is run on every kernel, on a guest that
// all of them share, in this order. They must leave nothing behind that matters to
// those that follow. A feature that a kernel has not calls t.Skip, which says why.
var features = []feature{
	{"open", checkOpen},
	{"tasks", environ("tasks")},
	{"process tree", environ("process tree")},
	{"credentials", environ("credentials")},
	{"signals", environ("signals")},
	{"timers", checkTimers},
	{"paths", environ("paths")},
	{"files", environ("files")},
	{"maps", environ("maps")},
	{"namespaces", environ("namespaces")},
	{"mounts", environ("mounts")},
	{"cgroups", environ("cgroups")},
	{"seccomp", environ("seccomp")},
	{"pipes", checkPipes},
	{"terminals", checkTTYs},
	{"sockets", checkSockets},
	{"shared memory", checkShmem},
	{"page cache", checkPageCache},
	{"other", checkMoreOfTheZoo},
	{"modules and log", checkModules},
	{"socket tables", network("namespaces", "tables")},
	{"socket queues", network("options", "queues", "peers", "TCP")},
	{"network devices", network("devices", "routes")},
	{"slab caches", checkSlabs},
	{"memory zones", checkZones},
	{"ipc objects", checkIPC},
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
	m := newGrid("matrix", "feature", machines(), names(features))
	t.Cleanup(func() { m.compareDocs(t) })
	for _, c := range machines() {
		if !c.chosen() {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // as many guests at once as there are processors
			defer m.fill(c.name, t)
			z := startZoo(t, testvm.Start(t, c.config))
			m.booted(c.name, z.k.Release())
			for _, f := range features {
				t.Run(f.name, func(t *testing.T) {
					defer m.set(c.name, f.name, t)
					f.test(t, z)
				})
			}
			t.Run("kernel stacks", func(t *testing.T) { checkKernelStacks(t, z) })
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
