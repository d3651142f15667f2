package kernel_test

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/qemu"
)

var (
	//go:embed testdata/schedzoo.py
	schedZooProgram []byte
	//go:embed testdata/scheddump.py
	schedDumpProgram []byte
)

// schedGuests are the guests that the tests of scheduling, stacks, control groups,
// namespaces and mounts run on. The last has cgroup v1 mounted.
var schedGuests = []struct {
	name, arg string
	config    testvm.Config
}{
	{"bullseye", "", testvm.Config{Kernel: "bullseye-cloud"}},
	{"trixie", "", testvm.Config{Suite: "trixie"}},
	{"sid", "", testvm.Config{Kernel: "sid-generic"}},
	{"bookworm-v1", "v1", testvm.Config{Suite: "bookworm"}},
}

// schedZoo is a guest in which testdata/schedzoo.py runs.
type schedZoo struct {
	vm    *testvm.VM
	k     *kernel.Kernel
	image vmi.Image
	gdb   string // socket of a server that can stop it anywhere
}

func eachSchedZoo(t *testing.T, test func(t *testing.T, z *schedZoo)) {
	for _, g := range schedGuests {
		t.Run(g.name, func(t *testing.T) {
			c := g.config
			c.KernelArgs = "ovm.role=sched" + g.arg
			gdb := filepath.Join(t.TempDir(), "gdb")
			c.QEMUArgs = []string{"-gdb", "unix:" + gdb + ",server=on,wait=off"}
			// Not shared: the zoo keeps its processor busy.
			z := startSchedZoo(t, testvm.Start(t, c), g.arg)
			z.gdb = gdb
			test(t, z)
		})
	}
}

func startSchedZoo(t *testing.T, vm *testvm.VM, arg string) *schedZoo {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	out, err := vm.Exec(ctx, "sh", "-c", "cat /root/schedzoo.log 2>/dev/null || true")
	require.NoError(t, err)
	if len(out) == 0 { // the first test with this guest
		for path, b := range map[string][]byte{"/root/schedzoo.py": schedZooProgram, "/root/scheddump.py": schedDumpProgram} {
			require.NoError(t, vm.Put(ctx, path, bytes.NewReader(b), 0o644))
		}
		argv := []string{"python3", "/root/schedzoo.py"}
		if arg != "" {
			argv = append(argv, arg)
		}
		_, err := vm.StartProcess(ctx, testvm.Process{Argv: argv, Stdout: "/root/schedzoo.log", Dir: "/root"})
		require.NoError(t, err)
	}
	err = testvm.Wait(ctx, "the zoo", func() (bool, error) {
		out, err = vm.Exec(ctx, "cat", "/root/schedzoo.log")
		return bytes.Contains(out, []byte("zoo ready")), err
	})
	require.NoErrorf(t, err, "%s", out)
	require.NotRegexp(t, "failed|Error|no v1", string(out))
	z := &schedZoo{vm: vm}
	z.image, err = vmi.Open(ctx, "qmp:"+vm.QMPSocket(), nil)
	require.NoError(t, err)
	t.Cleanup(func() { z.image.Close() })
	z.k, err = kernel.Open(ctx, z.image, nil)
	require.NoError(t, err)
	return z
}

func (z *schedZoo) dump(t *testing.T) *schedDump {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	out, err := z.vm.Exec(ctx, "python3", "/root/scheddump.py")
	require.NoError(t, err)
	d, err := parseSchedDump(out)
	require.NoError(t, err)
	return d
}

// snapshot returns the guest's kernel as it is at one moment between two dumps.
func (z *schedZoo) snapshot(t *testing.T) *kernel.Kernel {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "ram"))
	require.NoError(t, err)
	defer file.Close()
	resume, err := z.image.(vmi.Pauser).Pause(t.Context())
	require.NoError(t, err)
	defer resume()
	buf := make([]byte, 1<<20)
	parts := z.image.Ranges()
	require.NoError(t, file.Truncate(int64(parts[len(parts)-1].End)))
	if s, ok := z.image.(vmi.Sparse); ok {
		parts = s.Data()
	}
	for _, r := range parts {
		for a := r.Start; a < r.End; a += vmi.Phys(len(buf)) {
			b := buf[:min(len(buf), int(r.End-a))]
			_, err := z.image.ReadPhys(b, a)
			require.NoError(t, err)
			_, err = file.WriteAt(b, int64(a))
			require.NoError(t, err)
		}
	}
	mem, err := vmi.Open(t.Context(), file.Name(), nil)
	require.NoError(t, err)
	t.Cleanup(func() { mem.Close() })
	k, err := kernel.Open(t.Context(), mem, nil)
	require.NoError(t, err)
	return k
}

// TestSched compares what is said of the scheduler, of kernel stacks, mounts, control
// groups and namespaces with what the guest says before and after. What changes in
// between is left out.
func TestSched(t *testing.T) {
	eachSchedZoo(t, func(t *testing.T, z *schedZoo) {
		before := z.dump(t)
		k := z.snapshot(t)
		after := z.dump(t)
		d := differences{}
		counts := compareAll(d, k, before, after)
		t.Logf("%s: %v", k.Release(), counts)
		for what, least := range map[string]int{
			"tasks": 60, "frames": 150, "mounts": 300, "cgroup files": 120, "namespaces": 30, "queued": 4, "containers": 4,
		} {
			if counts[what] < least {
				d.add("only %d %s were compared", counts[what], what)
			}
		}
		d.report(t)
		z.vm.CheckKernel(t)
		t.Run("on a processor", func(t *testing.T) { checkCPUStack(t, z) })
	})
}

// compareAll compares a moment between two dumps and returns how much was compared.
func compareAll(d differences, k *kernel.Kernel, before, after *schedDump) map[string]int {
	n := map[string]int{}
	for tid, p := range before.Tasks {
		later := after.Tasks[tid]
		if later == nil || p.Comm == "agent\n" {
			continue
		}
		t, err := k.Task(tid)
		if err != nil {
			d.add("thread %d: %v", tid, err)
			continue
		}
		if atRest(p, later) {
			n["tasks"]++
			n["frames"] += compareStack(d, t, p)
			compareSched(d, t, p)
		}
		if tid == p.PID && p.Mountinfo != "" && p.Mountinfo == later.Mountinfo {
			n["mounts"] += compareMountinfo(d, t, p)
		}
	}
	compareKernelStat(d, k, before, after)
	n["cgroup files"] = compareHierarchies(d, k, before, after)
	n["namespaces"] = compareNamespaces(d, k, before)
	n["queued"] = compareRunQueue(d, k)
	n["containers"] = compareContainers(d, k)
	return n
}

// compareRunQueue checks the queue of the only CPU: it has the spinning processes of the
// zoo, and as many others as the kernel counts.
func compareRunQueue(d differences, k *kernel.Kernel) (queued int) {
	rq, err := k.RunQueue(0)
	if err != nil {
		d.add("run queue: %v", err)
		return 0
	}
	running := uint32(0)
	parents := map[kernel.PID]int{}
	throttled := 0
	for q, err := range rq.Tasks() {
		if err != nil {
			d.add("run queue: %v", err)
			continue
		}
		queued++
		if q.Throttled {
			throttled++
		} else if !q.Delayed {
			running++
		}
		ppid, err := q.PPID()
		if err != nil {
			d.add("run queue: %v", err)
		}
		parents[ppid]++
		s, err := q.Sched()
		if err != nil {
			d.add("run queue: %v", err)
			continue
		}
		if want := map[kernel.SchedClass]bool{kernel.ClassRealtime: s.Prio < 100 && s.Prio >= 0, kernel.ClassFair: s.Prio >= 100}; !want[q.Class] {
			d.add("run queue: priority %d in class %s", s.Prio, q.Class)
		}
	}
	delayed := rq.NrRunning - running // counted until 6.13
	if running > rq.NrRunning || delayed > 3 {
		d.add("run queue: %d tasks found, the kernel counts %d", running, rq.NrRunning)
	}
	if throttled != 1 {
		d.add("run queue: %d throttled tasks", throttled)
	}
	most := 0
	for _, n := range parents {
		most = max(most, n)
	}
	if most < 4 {
		d.add("run queue: the zoo's 4 spinning processes are not all there: %v", parents)
	}
	return queued
}

// compareContainers looks for what the zoo made to look like containers.
func compareContainers(d differences, k *kernel.Kernel) (found int) {
	id := strings.Repeat("0123456789abcdef", 4)
	engines := map[string]int{}
	for t, err := range k.Tasks() {
		if err != nil {
			d.add("tasks: %v", err)
			return 0
		}
		c, ok, err := t.Container()
		if err != nil {
			d.add("container of %d: %v", t.PID, err)
		}
		if !ok {
			continue
		}
		found++
		engines[c.Engine]++
		if c.ID != id {
			d.add("container of %d: %+v", t.PID, c)
		}
	}
	d.equal("containers", fmt.Sprint(engines), "map[docker:2 podman:2]")
	return found
}
