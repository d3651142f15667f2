package kernel_test

import (
	"flag"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

var update = flag.Bool("update", false, "rewrite the table of tested kernels in docs/kernel-support.md")

// features are the rows of the matrix: each is run on every kernel, on a guest that
// all of them share, in this order. They must leave nothing behind that matters to
// those that follow. A feature that a kernel has not calls t.Skip, which says why.
var features = []struct {
	name string
	test func(t *testing.T, z *zoo)
}{
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
}

// machine is a column of the matrix.
type machine struct {
	name   string
	config testvm.Config
}

// machines are all kernels, and some of them once more on other machines.
func machines() []machine {
	var all []machine
	for _, k := range testvm.Kernels() {
		if k.Arch == "amd64" {
			all = append(all, machine{k.Name, testvm.Config{Kernel: k.Name}})
		}
	}
	return append(
		all,
		machine{"bookworm-cloud nokaslr", testvm.Config{Kernel: "bookworm-cloud", KernelArgs: "nokaslr"}},
		machine{"sid-generic nokaslr", testvm.Config{Kernel: "sid-generic", KernelArgs: "nokaslr"}},
		machine{"bullseye-generic 5 levels", testvm.Config{Kernel: "bullseye-generic", CPU: "max,-cx16"}},
		machine{"trixie-rt 5 levels", testvm.Config{Kernel: "trixie-rt", CPU: "max,-cx16"}},
	)
}

// matrix collects what came of each feature on each machine.
type matrix struct {
	mu       sync.Mutex
	releases map[string]string    // by machine
	cells    map[[2]string]string // by machine and feature
}

const (
	cellPassed  = "✓"
	cellFailed  = "✗"
	cellSkipped = "–" // the kernel does not have it
)

// set stores what a test came to.
func (m *matrix) set(machine, feature string, t *testing.T) {
	m.mu.Lock()
	defer m.mu.Unlock()
	cell := cellPassed
	switch {
	case t.Failed():
		cell = cellFailed
	case t.Skipped():
		cell = cellSkipped
	}
	m.cells[[2]string{machine, feature}] = cell
}

// TestMatrix compares what package kernel says with what the guest says, on every
// kernel that Debian ships. What came of it is the table in docs/kernel-support.md.
func TestMatrix(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests; -short is set")
	}
	m := &matrix{releases: map[string]string{}, cells: map[[2]string]string{}}
	t.Cleanup(func() { m.compareDocs(t) })
	for _, c := range machines() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // as many guests at once as there are processors
			vm := testvm.Start(t, c.config)
			opened := false
			defer func() {
				for _, f := range features {
					if !opened {
						m.set(c.name, f.name, t)
					}
				}
			}()
			z := startZoo(t, vm)
			opened = true
			m.mu.Lock()
			m.releases[c.name] = z.k.Release()
			m.mu.Unlock()
			for _, f := range features {
				t.Run(f.name, func(t *testing.T) {
					defer m.set(c.name, f.name, t)
					f.test(t, z)
				})
			}
			vm.CheckKernel(t)
		})
	}
}

func TestMachinesAreOfKernels(t *testing.T) {
	names := map[string]bool{}
	for _, m := range machines() {
		require.False(t, names[m.name], "two are called %s", m.name)
		names[m.name] = true
	}
	require.GreaterOrEqual(t, len(names), 14)
}
