package kernel_test

import (
	"bytes"
	"context"
	_ "embed"
	"maps"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/ramfile"
)

var (
	//go:embed testdata/zoo.py
	zooProgram []byte
	//go:embed testdata/dump.py
	dumpProgram []byte
)

// guestTime bounds what a guest is asked to do; most of it takes seconds.
const guestTime = 10 * time.Minute

// zoo is a guest with a process for each thing that the tests look at.
type zoo struct {
	vm   *testvm.VM
	k    *kernel.Kernel
	pids map[string]kernel.PID // by function of zoo.py
	gdb  string                // socket of a server that can stop it anywhere

	differ   areas // what environment has found
	compared int   // processes

	sched *schedView // nil until it is asked for
}

func eachZoo(t *testing.T, test func(t *testing.T, z *zoo)) {
	for _, suite := range []string{"bookworm", "trixie"} {
		t.Run(suite, func(t *testing.T) {
			vm := testvm.StartShared(t, testvm.Config{Suite: suite, KernelArgs: "ovm.role=environ"})
			test(t, startZoo(t, vm))
		})
	}
}

func startZoo(t *testing.T, vm *testvm.VM) *zoo {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), guestTime)
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
		// The counters write to a file that all of them share. A guest of another
		// architecture has none of these programs.
		if out, err := vm.Exec(ctx, "sh", "-c", "[ ! -e /opt/ovm/counter ] || /opt/ovm/busy.sh && pkill -STOP -x counter || [ ! -e /opt/ovm/counter ]"); err != nil {
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
	mem, err := vmi.Open(ctx, vm.RAMTarget(), nil)
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
	ctx, cancel := context.WithTimeout(t.Context(), guestTime)
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

// environment compares every process of a busy guest with the guest's own /proc,
// field by field, and returns what differs by what it is about. The guest runs
// meanwhile: a process that differs is looked at again, and counts if it differs
// every time. The comparison is made once a guest.
func (z *zoo) environment(t *testing.T) areas {
	t.Helper()
	if z.differ != nil {
		return z.differ
	}
	failing := map[kernel.PID]areas{}
	var extra map[kernel.PID]bool // found, but not by the guest
	for round := range 4 {
		dump := z.dump(t)
		if round == 0 {
			z.compared = len(dump.Tasks)
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
				p.FDs, p.Threads = nil, nil // differ while the dump is being made
			}
			if a := compareProcess(z.k, pid, p, dump); a.drop() {
				failing[pid] = a
			}
		}
		if extra = z.extra(t, dump, extra); len(failing)+len(extra) == 0 {
			break
		}
		time.Sleep(300 * time.Millisecond)
	}
	z.differ = areas{}
	for _, a := range failing {
		for name, d := range a {
			maps.Copy(z.differ.of(name), d)
		}
	}
	for pid := range extra {
		z.differ.of("tasks").add("pid %d: the guest has it not", pid)
	}
	return z.differ
}

// extra returns the processes that are listed, but not by the guest; with those of
// an earlier call, only what was so then, too.
func (z *zoo) extra(t *testing.T, dump *procDump, before map[kernel.PID]bool) map[kernel.PID]bool {
	t.Helper()
	now := map[kernel.PID]bool{}
	for task, err := range z.k.Tasks() {
		require.NoError(t, err)
		if dump.Tasks[task.PID] == nil && (before == nil || before[task.PID]) {
			now[task.PID] = true
		}
	}
	return now
}

// environ makes a row of the matrix of one area of the comparison.
func environ(area string) func(t *testing.T, z *zoo) {
	return func(t *testing.T, z *zoo) {
		z.environment(t).of(area).report(t)
		least := 150
		if z.k.Arch() != paging.X86_64 {
			least = 60 // it runs the zoo, but none of the busy programs
		}
		if z.compared < least {
			t.Errorf("the guest has only %d processes", z.compared)
		}
	}
}
