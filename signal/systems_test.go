package signal_test

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/sources"
)

// repetitions of each thing that is measured. OVM_SIGNAL_REPS=200 is the
// acceptance run.
func repetitions(t *testing.T) int {
	s := os.Getenv("OVM_SIGNAL_REPS")
	if s == "" {
		return 5
	}
	n, err := strconv.Atoi(s)
	require.NoError(t, err)
	return n
}

// acceptance says that OVM_SIGNAL_REPS is given, and time is of no matter.
func acceptance() bool { return os.Getenv("OVM_SIGNAL_REPS") != "" }

// systems are names of suites, of kernels, or paths of kernel images: OVM_SIGNAL_KERNELS,
// or else the suites, with other kernels if time is of no matter.
var systems = sync.OnceValue(func() []string {
	if s := strings.Fields(os.Getenv("OVM_SIGNAL_KERNELS")); len(s) > 0 {
		return s
	}
	s := []string{"bookworm", "trixie"}
	if acceptance() || testvm.AllKernels() {
		s = append(s, "bullseye-cloud", "sid-cloud", "bookworm-rt")
	}
	return s
})

// configOf returns the guest of that name.
func configOf(name string) testvm.Config {
	// On a busy host a kernel may miss the ticks of the timer that it tests.
	const args = "no_timer_check"
	if strings.Contains(name, "/") {
		return testvm.Config{KernelImage: name, KernelArgs: args}
	}
	if slices.ContainsFunc(testvm.Kernels(), func(k testvm.Kernel) bool { return k.Name == name }) {
		return testvm.Config{Kernel: name, KernelArgs: args}
	}
	return testvm.Config{Suite: name}
}

// eachGuest runs f on a guest of every system, and sees to it that the guest's kernel
// had nothing to complain about in the end.
func eachGuest(t *testing.T, cpus int, f func(t *testing.T, g *guest)) {
	guests(t, systems(), cpus, f)
}

// oneGuest is eachGuest for what takes long: a guest of one system, by its place among
// them, but of every one in the acceptance run.
func oneGuest(t *testing.T, i, cpus int, f func(t *testing.T, g *guest)) {
	if acceptance() || testvm.AllKernels() {
		eachGuest(t, cpus, f)
		return
	}
	guests(t, []string{systems()[i%len(systems())]}, cpus, f)
}

func guests(t *testing.T, names []string, cpus int, f func(t *testing.T, g *guest)) {
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			c := configOf(name)
			c.CPUs = cpus
			vm := testvm.StartShared(t, c)
			mem, err := vmi.Open(t.Context(), "qmp:"+vm.QMPSocket(), &vmi.Options{Writable: true})
			require.NoError(t, err)
			defer mem.Close()
			k, err := kernel.Open(t.Context(), mem, nil)
			require.NoError(t, err)
			g := &guest{vm, k, name}
			defer g.checkLog(t)
			f(t, g)
		})
	}
}
