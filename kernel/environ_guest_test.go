package kernel_test

import (
	"bytes"
	"context"
	_ "embed"
	"maps"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/ramfile"
)

var (
	//go:embed testdata/zoo.py
	zooProgram []byte
	//go:embed testdata/dump.py
	dumpProgram []byte
)

// zoo is a guest with a process for each thing that the tests look at.
type zoo struct {
	vm   *testvm.VM
	k    *kernel.Kernel
	pids map[string]kernel.PID // by function of zoo.py
}

// only is the zoo that eachZoo is about, if it is not nil.
var only *zoo

func eachZoo(t *testing.T, test func(t *testing.T, z *zoo)) {
	if only != nil {
		test(t, only)
		return
	}
	for _, suite := range []string{"bookworm", "trixie"} {
		t.Run(suite, func(t *testing.T) {
			vm := testvm.StartShared(t, testvm.Config{Suite: suite, KernelArgs: "ovm.role=environ"})
			test(t, startZoo(t, vm))
		})
	}
}

// TestKernels runs the tests of the zoo on all further kernels, one guest at a time.
func TestKernels(t *testing.T) {
	for _, k := range testvm.Kernels() {
		if k.Arch != "amd64" || k.Release == k.Suite && strings.HasSuffix(k.Name, "-cloud") {
			continue // the tests themselves boot the kernels of the suites
		}
		t.Run(k.Name, func(t *testing.T) {
			only = startZoo(t, testvm.Start(t, testvm.Config{Kernel: k.Name}))
			defer func() { only = nil }()
			for name, test := range map[string]func(*testing.T){
				"environment": TestEnvironment, "pipes": TestPipes, "ttys": TestTTYs, "pagecache": TestPageCache,
				"shmem": TestShmem, "sockets": TestSockets, "more": TestMoreOfTheZoo, "hostile": TestHostileMemory,
			} {
				t.Run(name, test)
			}
			only.vm.CheckKernel(t)
		})
	}
}

func startZoo(t *testing.T, vm *testvm.VM) *zoo {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	z := &zoo{vm: vm, pids: map[string]kernel.PID{}}
	out, err := vm.Exec(ctx, "sh", "-c", "cat /root/zoo.log 2>/dev/null || true")
	if err != nil {
		t.Fatal(err)
	}
	if len(out) == 0 { // the first test with this guest
		for path, b := range map[string][]byte{"/root/zoo.py": zooProgram, "/root/dump.py": dumpProgram} {
			if err := vm.Put(ctx, path, bytes.NewReader(b), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		// The counters write to a file that all of them share.
		if out, err := vm.Exec(ctx, "sh", "-c", "/opt/ovm/busy.sh && pkill -STOP -x counter"); err != nil {
			t.Fatalf("busy.sh: %v\n%s", err, out)
		}
		if _, err := vm.StartProcess(ctx, testvm.Process{Argv: []string{"python3", "/root/zoo.py"}, Stdout: "/root/zoo.log", Dir: "/root"}); err != nil {
			t.Fatal(err)
		}
	}
	err = testvm.Wait(ctx, "the zoo", func() (bool, error) {
		out, err = vm.Exec(ctx, "cat", "/root/zoo.log")
		return bytes.Contains(out, []byte("zoo ready")), err
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if bytes.Contains(out, []byte("failed")) || bytes.Contains(out, []byte("Error")) {
		t.Fatalf("zoo.py: %s", out)
	}
	for _, m := range regexp.MustCompile(`\('(\w+)', (\d+)\)`).FindAllSubmatch(out, -1) {
		pid, _ := strconv.Atoi(string(m[2]))
		z.pids[string(m[1])] = kernel.PID(pid)
	}
	mem, err := vmi.Open(ctx, vm.RAMPath(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	if z.k, err = kernel.Open(ctx, mem, nil); err != nil {
		t.Fatal(err)
	}
	return z
}

func (z *zoo) dump(t *testing.T) *procDump {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	out, err := z.vm.Exec(ctx, "python3", "/root/dump.py")
	if err != nil {
		t.Fatal(err)
	}
	d, err := parseDump(out)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestEnvironment compares files, paths, mounts, credentials, namespaces, cgroups,
// mappings and strings of every process of a busy guest with the guest's own /proc,
// field by field. The guest runs meanwhile: a process that differs is looked at
// again, and fails if it differs every time.
func TestEnvironment(t *testing.T) {
	eachZoo(t, func(t *testing.T, z *zoo) {
		var compared int
		failing := map[kernel.PID]differences{}
		for round := range 4 {
			dump := z.dump(t)
			if round == 0 {
				compared = len(dump.Tasks)
				for pid := range dump.Tasks {
					failing[pid] = nil
				}
			}
			for pid := range failing {
				delete(failing, pid)
				p := dump.Tasks[pid]
				if p == nil {
					continue // has exited
				}
				if p.Comm == "agent\n" {
					p.FDs = nil // differ while the dump is being made
				}
				if d := compareProcess(z.k, pid, p, dump); len(d) > 0 {
					failing[pid] = d
				}
			}
			if len(failing) == 0 {
				break
			}
			time.Sleep(300 * time.Millisecond)
		}
		for pid := range maps.Keys(failing) {
			failing[pid].report(t)
		}
		if compared < 150 {
			t.Errorf("the guest has only %d processes", compared)
		}
		t.Logf("%d processes of %s", compared, z.k.Release())
	})
}
