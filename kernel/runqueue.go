package kernel

import (
	"errors"
	"fmt"
	"iter"
)

// RunQueue is what the scheduler knows about one CPU: a struct rq, as it was when it
// was read.
type RunQueue struct {
	k    *Kernel
	CPU  int
	Addr Addr // of the struct rq
	runQueueFields
}

type runQueueFields struct {
	NrRunning  uint32 `k:"nr_running"` // runnable tasks, the current one included, the idle task not
	NrSwitches uint64 `k:"nr_switches"`
	// NrUninterruptible may be negative: tasks that went to sleep on one CPU and woke
	// on another are counted up here and down there.
	NrUninterruptible int64  `k:"nr_uninterruptible"`
	Curr              Addr   `k:"curr"` // task_struct that the CPU runs
	Idle              Addr   `k:"idle"`
	Stop              Addr   `k:"stop"`
	Clock             uint64 `k:"clock"`      // ns; as of the scheduler's last look
	ClockTask         uint64 `k:"clock_task"` // without time in interrupts and stolen time
	CFS               Addr   `k:"&cfs"`
	RT                Addr   `k:"&rt"`
	DL                Addr   `k:"&dl"`
	SCX               Addr   `k:"&scx,opt"` // since 6.12, if built in
}

var runQueueLayout = LayoutOf[runQueueFields]("rq")

// RunQueue returns the run queue of a CPU. Errors: ErrNoSymbol for a CPU that is not
// there, *PathError. Source: kernel/sched/sched.h:cpu_rq.
func (k *Kernel) RunQueue(cpu int) (*RunQueue, error) {
	a, err := k.runQueueAddr(cpu)
	if err != nil {
		return nil, err
	}
	r := &RunQueue{k: k, CPU: cpu, Addr: a}
	if err := runQueueLayout.LoadInto(k, a, &r.runQueueFields); err != nil {
		return nil, err
	}
	if !r.Curr.IsKernel() || !r.Idle.IsKernel() {
		return nil, corrupt(a, "rq", "current task %s, idle task %s", r.Curr, r.Idle)
	}
	return r, nil
}

func (k *Kernel) runQueueAddr(cpu int) (Addr, error) {
	a, err := k.PerCPU("runqueues", cpu)
	if errors.Is(err, ErrNoSymbol) {
		return k.runQueueOfTask(cpu, err)
	}
	return a, err
}

// runQueueOfTask finds the run queue of a CPU by any task that last ran there, for arm64
// kernels that keep no names of variables: each CPU has threads of the kernel's that are
// bound to it. missing is the error if there is none. Source: kernel/sched/sched.h:
// set_task_rq.
func (k *Kernel) runQueueOfTask(cpu int, missing error) (Addr, error) {
	var offsets [3]int
	for i, m := range []offsetKey{{"task_struct", "se.cfs_rq"}, {"cfs_rq", "rq"}, {"rq", "cpu"}} {
		var err error
		if offsets[i], err = k.offsetOf(m.cname, m.path); err != nil {
			return 0, missing // a kernel without groups in the fair class
		}
	}
	for t, err := range k.Tasks() {
		if err != nil {
			return 0, err
		}
		if int(t.CPU) != cpu {
			continue
		}
		// A task that moves or ends meanwhile leads nowhere, or elsewhere.
		cfs, err := k.ReadAddr(t.Addr.Add(offsets[0]))
		if err != nil || !cfs.IsKernel() {
			continue
		}
		rq, err := k.ReadAddr(cfs.Add(offsets[1]))
		if err != nil || !rq.IsKernel() {
			continue
		}
		if n, err := k.ReadU32(rq.Add(offsets[2])); err == nil && int(n) == cpu {
			return rq, nil
		}
	}
	return 0, missing
}

// RunQueues yields the run queues of the CPUs that are online.
func (k *Kernel) RunQueues() iter.Seq2[*RunQueue, error] {
	return func(yield func(*RunQueue, error) bool) {
		cpus, err := k.OnlineCPUs()
		if err != nil {
			yield(nil, err)
			return
		}
		for _, cpu := range cpus {
			if !yield(k.RunQueue(cpu)) {
				return
			}
		}
	}
}

// Current returns the task that the CPU runs, which is the idle task if it has
// nothing to do.
func (r *RunQueue) Current() (*Task, error) { return r.k.TaskAt(r.Curr) }

// IsIdle says whether the CPU has nothing to do.
func (r *RunQueue) IsIdle() bool { return r.Curr == r.Idle }

// SchedClass is the queue that a task waits in, by which CPUs choose between tasks.
type SchedClass string

// The scheduler's classes, the most urgent first.
const (
	ClassStop     SchedClass = "stop"
	ClassDeadline SchedClass = "deadline"
	ClassRealtime SchedClass = "rt"
	ClassFair     SchedClass = "fair"
	ClassExt      SchedClass = "ext" // sched_ext, a scheduler made of BPF programs
	ClassIdle     SchedClass = "idle"
)

// QueuedTask is a task on a run queue.
type QueuedTask struct {
	*Task
	Class SchedClass
	// Group is the task_group whose queue the task is in, 0 outside the fair class.
	Group Addr
	// Throttled: the task could run, but its group has used up its CPU time
	// (cpu.max), so that it is not counted in NrRunning.
	Throttled bool
	// Delayed: the task sleeps, but is kept in the queue until it has paid for the
	// time that it was ahead of others (6.12).
	Delayed bool
}

// Tasks yields the tasks that can run on the CPU, the current one included, the idle
// task not: class by class, and within the fair class in the order of its trees,
// group by group; then those whose group is throttled. A task that cannot be read is
// yielded as an error and the walk goes on; a broken queue ends the walk of its
// class. Sources: kernel/sched/fair.c:__pick_next_entity, rt.c:pick_next_rt_entity,
// deadline.c:pick_next_dl_entity.
func (r *RunQueue) Tasks() iter.Seq2[QueuedTask, error] {
	return func(yield func(QueuedTask, error) bool) {
		w := &queueWalk{r: r, k: r.k, yield: yield}
		if r.Stop == r.Curr {
			w.task(r.Stop, QueuedTask{Class: ClassStop})
		}
		w.deadline()
		w.realtime()
		w.fairQueue(r.CFS, false, 0)
		w.ext()
		w.throttled()
	}
}

// queueWalk is one walk over a run queue.
type queueWalk struct {
	r     *RunQueue
	k     *Kernel
	yield func(QueuedTask, error) bool
	done  bool // the caller wants no more
	steps int
}

func (w *queueWalk) task(a Addr, q QueuedTask) {
	if w.step(); w.done {
		return
	}
	t, err := w.k.TaskAt(a)
	if err == nil && int(t.CPU) != w.r.CPU {
		err = corrupt(a, "task_struct", "pid %d is on the queue of CPU %d and says %d", t.PID, w.r.CPU, t.CPU)
	}
	q.Task = t
	w.done = !w.yield(q, err) || w.done
}

func (w *queueWalk) fail(err error) {
	if !w.done {
		w.done = !w.yield(QueuedTask{}, fmt.Errorf("run queue of CPU %d: %w", w.r.CPU, err))
	}
}

// step bounds the whole walk, which groups that contain each other would make endless.
func (w *queueWalk) step() {
	if w.steps++; w.steps > maxWalk {
		w.fail(&PathError{Path: "rq", Addr: w.r.Addr, Err: ErrLimit})
		w.done = true
	}
}

// container is ContainerOf, or a failure.
func (w *queueWalk) container(a Addr, cname, member string) (Addr, bool) {
	c, err := w.k.ContainerOf(a, cname, member)
	if err != nil {
		w.fail(err)
	}
	return c, err == nil
}

type dlRQ struct {
	Root Addr `k:"&root"`
}

type rtRQ struct {
	Bitmap [2]uint64 `k:"active.bitmap"`
	Queue  Addr      `k:"&active.queue"`
}

type schedDLEntity struct {
	Server bool `k:"dl_server,opt"` // since 6.8: stands for a class, not for a task
}

type schedRTEntity struct {
	MyQ Addr `k:"my_q,opt"` // of a group
}

var (
	dlRQLayout          = LayoutOf[dlRQ]("dl_rq")
	rtRQLayout          = LayoutOf[rtRQ]("rt_rq")
	schedDLEntityLayout = LayoutOf[schedDLEntity]("sched_dl_entity")
	schedRTEntityLayout = LayoutOf[schedRTEntity]("sched_rt_entity")
)

func (w *queueWalk) deadline() {
	q, err := dlRQLayout.Load(w.k, w.r.DL)
	if err != nil {
		w.fail(err)
		return
	}
	for node, err := range w.k.RBTree(q.Root) {
		if err != nil {
			w.fail(err)
			return
		}
		se, ok := w.container(node, "sched_dl_entity", "rb_node")
		if !ok {
			return
		}
		e, err := schedDLEntityLayout.Load(w.k, se)
		if err != nil {
			w.fail(err)
			return
		}
		if e.Server {
			continue
		}
		if a, ok := w.container(se, "task_struct", "dl"); ok {
			w.task(a, QueuedTask{Class: ClassDeadline})
		}
		if w.done {
			return
		}
	}
}

func (w *queueWalk) realtime() { w.realtimeQueue(w.r.RT, 0) }

// maxGroupDepth bounds groups in groups.
const maxGroupDepth = 64

func (w *queueWalk) realtimeQueue(rq Addr, depth int) {
	q, err := rtRQLayout.Load(w.k, rq)
	if err == nil && depth > maxGroupDepth {
		err = &PathError{Path: "rt_rq", Addr: rq, Err: ErrLimit}
	}
	if err != nil {
		w.fail(err)
		return
	}
	for prio := range 100 { // MAX_RT_PRIO
		if q.Bitmap[prio/64]>>(prio%64)&1 == 0 {
			continue
		}
		for node, err := range w.k.List(q.Queue.Add(16 * prio)) {
			if err != nil {
				w.fail(err)
				break
			}
			se, ok := w.container(node, "sched_rt_entity", "run_list")
			if !ok {
				return
			}
			e, err := schedRTEntityLayout.Load(w.k, se)
			if err != nil {
				w.fail(err)
				break
			}
			if e.MyQ != 0 {
				w.realtimeQueue(e.MyQ, depth+1)
			} else if a, ok := w.container(se, "task_struct", "rt"); ok {
				w.task(a, QueuedTask{Class: ClassRealtime})
			}
			if w.done {
				return
			}
		}
	}
}

// ext walks the tasks of a sched_ext scheduler. Source: kernel/sched/ext.c:set_task_runnable.
func (w *queueWalk) ext() {
	off, err := w.k.offsetOf("scx_rq", "runnable_list")
	if err != nil || w.r.SCX == 0 || w.done {
		return // not built in
	}
	for node, err := range w.k.List(w.r.SCX.Add(off)) {
		if err != nil {
			w.fail(err)
			return
		}
		if a, ok := w.container(node, "task_struct", "scx.runnable_node"); ok {
			w.task(a, QueuedTask{Class: ClassExt})
		}
		if w.done {
			return
		}
	}
}
