package kernel_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// queueLoad has something in every class of the scheduler, in groups within groups,
// one of which may hardly run, and much that comes and goes.
const queueLoad = `
import ctypes, os, struct, signal
libc = ctypes.CDLL(None, use_errno=True)
def child(f):
    if os.fork() == 0:
        f()
def spin():
    while True: pass
def nap(seconds):
    import time
    while True:
        time.sleep(seconds)
        for i in range(2000): pass
def group(name, f, limit=None):
    def run():
        d = "/tmp/cg"
        for part in name.split("/"):
            with open(d + "/cgroup.subtree_control", "w") as s: s.write("+cpu")
            d += "/" + part
            os.makedirs(d, exist_ok=True)
        if limit:
            with open(d + "/../cpu.max", "w") as s: s.write(limit)
        with open(d + "/cgroup.procs", "w") as s: s.write(str(os.getpid()))
        f()
    return run
def deadline():
    a = struct.pack("IIQiIQQQ", 48, 6, 0, 0, 0, 2000000, 50000000, 100000000)
    if libc.syscall(314, 0, a, 0): raise OSError(ctypes.get_errno(), "sched_setattr")
    nap(0)
def rt(policy, prio):
    def run():
        os.sched_setscheduler(0, policy, os.sched_param(prio))
        nap(0.02)
    return run
def nice(n):
    def run():
        os.nice(n)
        spin()
    return run
os.makedirs("/tmp/cg", exist_ok=True)
libc.mount(b"none", b"/tmp/cg", b"cgroup2", 0, None)
child(deadline)
for i in range(3):
    child(rt(os.SCHED_FIFO, 5 + i)); child(rt(os.SCHED_RR, 50))
    child(nice(19 - i)); child(nice(-i)); child(lambda: nap(0.003))
    child(group("a/b/c%d" % (i % 2), nice(2 * i))); child(group("a/b/c0", lambda: nap(0.001)))
child(group("held/a", spin, "2000 100000")); child(group("held/b", spin))
open("/tmp/load", "w").close()
signal.pause()
`

// patched is memory of which some words are others.
type patched struct {
	vmi.Memory
	words map[vmi.Phys][]byte
}

func (p patched) ReadPhys(b []byte, a vmi.Phys) (int, error) {
	n, err := p.Memory.ReadPhys(b, a)
	for at, w := range p.words {
		for i, v := range w {
			if off := int64(at) + int64(i) - int64(a); off >= 0 && off < int64(n) {
				b[off] = v
			}
		}
	}
	return n, err
}

// TestCheckRunQueues checks the queues of a busy guest, at many moments, and then those
// of a guest that differs from it in one word.
func TestCheckRunQueues(t *testing.T) {
	kernels := []string{"bookworm-cloud", "trixie-cloud"}
	if os.Getenv("OVM_KERNELS") == "all" {
		kernels = []string{"bullseye-cloud", "bookworm-cloud", "bookworm-rt", "trixie-cloud", "sid-generic"}
	}
	for _, name := range kernels {
		t.Run(name, func(t *testing.T) {
			vm := testvm.Start(t, testvm.Config{Kernel: name, CPUs: 2})
			startQueueLoad(t, vm)
			mem, err := vmi.Open(t.Context(), "qmp:"+vm.QMPSocket(), nil)
			require.NoError(t, err)
			defer mem.Close()
			p := patched{struct{ vmi.Memory }{mem}, make(map[vmi.Phys][]byte)}
			k, err := kernel.Open(t.Context(), p, nil)
			require.NoError(t, err)
			checkMoments(t, mem.(vmi.Pauser), k)
			changed := 0
			for end := time.Now().Add(time.Minute); changed == 0; time.Sleep(10 * time.Millisecond) {
				require.True(t, time.Now().Before(end), "there was never enough on the queues")
				changed = changeWords(t, mem.(vmi.Pauser), k, p)
			}
			t.Logf("%d words were changed, and each was noticed", changed)
			l := &liar{Memory: p, r: rand.New(rand.NewPCG(1, 1))}
			k, err = kernel.Open(t.Context(), l, nil)
			require.NoError(t, err)
			l.on = true
			wrong := 0
			for _, l.one = range []int{2000, 200, 20} {
				for range 20 {
					if _, err := k.CheckRunQueues(); err != nil {
						wrong++
					}
				}
			}
			require.Greater(t, wrong, 40, "memory that lies")
			vm.CheckKernel(t)
		})
	}
}

func startQueueLoad(t *testing.T, vm *testvm.VM) {
	t.Helper()
	ctx := t.Context()
	_, err := vm.StartProcess(ctx, testvm.Process{Argv: []string{"python3", "-c", queueLoad}, Stderr: "/tmp/load.err"})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		_, err := vm.Exec(ctx, "test", "-e", "/tmp/load")
		return err == nil
	}, time.Minute, 200*time.Millisecond)
	out, err := vm.Exec(ctx, "cat", "/tmp/load.err")
	require.NoError(t, err)
	require.Empty(t, string(out))
	_, err = vm.StartProcess(ctx, testvm.Process{Argv: []string{
		"stress-ng", "--quiet", "--cpu", "2", "--pipe", "2", "--switch", "2", "--timer", "1", "--fork", "1", "--no-rand-seed",
	}})
	require.NoError(t, err)
}

// checkMoments checks the queues of a guest at moments that differ.
func checkMoments(t *testing.T, vm vmi.Pauser, k *kernel.Kernel) {
	t.Helper()
	var most kernel.QueueCheck
	locked := 0
	for n := 0; n < 100; {
		resume, err := vm.Pause(t.Context())
		require.NoError(t, err)
		c, err := k.CheckRunQueues()
		require.NoError(t, resume())
		if errors.Is(err, kernel.ErrLocked) {
			locked++
			require.Less(t, locked, 1000)
			continue
		}
		require.NoError(t, err)
		n++
		most.CPUs, most.PSI = c.CPUs, c.PSI
		most.Queues, most.Queued, most.Tasks = max(most.Queues, c.Queues), max(most.Queued, c.Queued), max(most.Tasks, c.Tasks)
		time.Sleep(7 * time.Millisecond)
	}
	t.Logf("%s: at most %+v; locked %d times", k.Release(), most, locked)
	require.Equal(t, 2, most.CPUs)
	require.True(t, most.PSI)
	require.Greater(t, most.Queues, 6)
	require.Greater(t, most.Queued, 10)
}

// changeWords changes one word after the other at one moment. It returns how many, 0 if
// the moment is not one to do it in.
func changeWords(t *testing.T, vm vmi.Pauser, k *kernel.Kernel, p patched) int {
	t.Helper()
	resume, err := vm.Pause(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, resume()) }()
	if _, err := k.CheckRunQueues(); err != nil {
		require.ErrorIs(t, err, kernel.ErrLocked)
		return 0
	}
	return wrongWords(t, k, p)
}

// wrongWords changes words where there is enough on the queues.
func wrongWords(t *testing.T, k *kernel.Kernel, p patched) (changed int) {
	t.Helper()
	var queued []kernel.QueuedTask
	var rq *kernel.RunQueue
	for r, err := range k.RunQueues() {
		require.NoError(t, err)
		queued = queued[:0]
		rt := false
		for q, err := range r.Tasks() {
			require.NoError(t, err)
			if rt = rt || q.Class == kernel.ClassRealtime; q.Class == kernel.ClassFair && !q.Throttled && !q.Delayed && q.Addr != r.Curr {
				queued = append(queued, q)
			}
		}
		if len(queued) > 4 && rt {
			rq = r
			break
		}
	}
	if rq == nil {
		return 0
	}
	object := func(cname string, a kernel.Addr) kernel.Object {
		o, err := k.Object(cname, a)
		require.NoError(t, err)
		return o
	}
	root := object("cfs_rq", rq.CFS)
	node, err := member(root, "tasks_timeline.rb_root.rb_node")
	require.NoError(t, err)
	top, err := node.Deref()
	require.NoError(t, err)
	off, err := k.ContainerOf(top.Addr(), "sched_entity", "run_node")
	require.NoError(t, err)
	entity := object("sched_entity", off)
	left, err := member(object("rb_node", top.Addr()), "rb_left")
	require.NoError(t, err)
	if a, err := left.Uint(); err != nil || a == 0 {
		return 0
	}
	init, err := k.Task(1)
	require.NoError(t, err)
	asleep := init.OnRQ == 0 && init.State != 0
	if !asleep {
		return 0
	}
	psi, err := k.PerCPU("system_group_pcpu", rq.CPU)
	require.NoError(t, err)
	one := queued[len(queued)-1]

	plus := func(n uint64) func(uint64) uint64 { return func(v uint64) uint64 { return v + n } }
	to := func(n uint64) func(uint64) uint64 { return func(uint64) uint64 { return n } }
	for _, c := range []struct {
		o      kernel.Object
		path   string // of which the first that exists is changed; "?" before: there may be none
		change func(uint64) uint64
		want   string
	}{
		{root, "h_nr_queued|h_nr_running", plus(1), "cfs_rq.h_nr_queued"},
		{root, "nr_queued|nr_running", plus(1), "cfs_rq.nr_queued"},
		{root, "load.weight", plus(1), "cfs_rq.load.weight"},
		{root, "?h_nr_runnable", plus(1), "cfs_rq.h_nr_runnable"},
		{root, "?h_nr_delayed", plus(1), "cfs_rq.h_nr_delayed"},
		{root, "?sum_weight|avg_load", plus(1), "cfs_rq.sum_weight"},
		{root, "?sum_w_vruntime|avg_vruntime", plus(1), "cfs_rq.sum_w_vruntime"},
		{root, "tasks_timeline.rb_leftmost", to(uint64(top.Addr())), "rb_root_cached"},
		{root, "curr", to(uint64(entity.Addr())), "cfs_rq.curr"},
		{root, "on_list", to(0), "cfs_rq.on_list"},
		{entity, "run_node.__rb_parent_color", func(v uint64) uint64 { return v ^ 1 }, "rb_node"},
		{entity, "run_node.rb_right", to(0), "rb_|cfs_rq.nr_queued"},
		{entity, "vruntime", plus(1 << 40), "cfs_rq.sum_w_vruntime|vruntimes out of order"},
		{entity, "?deadline", plus(1 << 50), "deadlines out of order"},
		{entity, "?min_vruntime", plus(1), "sched_entity.min_vruntime"},
		{entity, "?min_slice", plus(1), "sched_entity.min_slice"},
		{entity, "?max_slice", plus(1), "sched_entity.max_slice"},
		{entity, "on_rq", to(0), "sched_entity.on_rq"},
		{entity, "cfs_rq", plus(64), "sched_entity.cfs_rq"},
		{object("task_struct", one.Addr), "on_rq", to(0), "task_struct.on_rq"},
		{object("task_struct", one.Addr), "se.group_node.prev", plus(8), "list_head.prev"},
		{object("task_struct", init.Addr), "on_rq", to(1), "task_struct.on_rq"},
		{object("task_struct", init.Addr), "__state|state", to(0), "can run and is on no queue"},
		{object("rq", rq.Addr), "nr_running", plus(1), "rq.nr_running"},
		{object("rt_rq", rq.RT), "rt_nr_running", plus(1), "rt_rq.rt_nr_running"},
		{object("rt_rq", rq.RT), "active.bitmap[0]", func(v uint64) uint64 { return v ^ 1<<20 }, "rt_rq.active.bitmap"},
		{object("dl_rq", rq.DL), "dl_nr_running", plus(1), "dl_rq.dl_nr_running"},
		{object("psi_group_cpu", psi), "tasks[2]", plus(1), "psi_group_cpu.tasks"},
	} {
		path, optional := strings.CutPrefix(c.path, "?")
		f, err := member(c.o, path)
		if optional && errors.Is(err, kernel.ErrNoType) {
			continue
		}
		require.NoError(t, err)
		v, err := f.Uint()
		require.NoError(t, err)
		size, err := f.Type().SizeOf()
		require.NoError(t, err)
		phys, err := k.Phys(f.Addr())
		require.NoError(t, err)
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], c.change(v))
		p.words[phys] = word[:size]
		_, err = k.CheckRunQueues()
		delete(p.words, phys)
		require.ErrorIs(t, err, kernel.ErrCorrupt, "%s changed from %#x", f.Path(), v)
		require.Regexp(t, strings.ReplaceAll(c.want, ".", `\.`), err.Error(), "%s changed from %#x", f.Path(), v)
		changed++
	}
	_, err = k.CheckRunQueues()
	require.NoError(t, err)
	return changed
}

// member returns the first of the members, separated by |, that there is.
func member(o kernel.Object, paths string) (f kernel.Object, err error) {
	for path := range strings.SplitSeq(paths, "|") {
		if f, err = o.Field(path); err == nil {
			return f, nil
		}
	}
	return f, fmt.Errorf("%s: %w", paths, err)
}
