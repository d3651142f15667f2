package kernel

import (
	"errors"
	"fmt"
)

// QueueCheck says what CheckRunQueues has looked at.
type QueueCheck struct {
	CPUs   int  // that are online
	Queues int  // of the fair class, one for each group that has something to run on a CPU
	Tasks  int  // threads there are
	Queued int  // tasks that were found on a queue
	PSI    bool // counts of pressure stall information were compared: not if all are 0
}

// CheckRunQueues checks whether the run queues of all CPUs that are online are what the
// scheduler relies on: that trees are red-black trees in the right order, with the
// right sums, minima and leftmost nodes, that lists and bitmaps hold the same tasks as
// the counters say, and that each thread is on as many queues as it says, which is one
// at most. It finds what a bug, a bit error or a careless writer has done to a guest
// before the guest's kernel falls over it.
//
// The guest must stand still, or be a dump. The error is ErrLocked if it was stopped
// while it changed a queue: let it go on for a moment. Otherwise it joins all that is
// wrong, up to a hundred *PathErrors, of ErrCorrupt or of what could not be read. It is
// errors.ErrUnsupported for kernels from 7.3 on, which keep the tasks of all groups in
// one tree.
//
// Sources: kernel/sched/fair.c:account_entity_enqueue, __enqueue_entity;
// rt.c:__enqueue_rt_entity; deadline.c:__enqueue_dl_entity; psi.c:psi_group_change.
func (k *Kernel) CheckRunQueues() (QueueCheck, error) {
	c := &runQueueCheck{k: k, at: make(map[Addr]*QueuedTask), all: make(map[Addr]*Task), seen: make(map[Addr]bool), left: maxWalk}
	if _, err := k.offsetOf("sched_entity", "h_load"); err == nil {
		return c.QueueCheck, fmt.Errorf("run queues of this kernel: %w", errors.ErrUnsupported)
	}
	var queues []*RunQueue
	for r, err := range k.RunQueues() {
		if err != nil {
			return c.QueueCheck, err
		}
		l, err := rqLockLayout.Load(k, r.Addr)
		if err != nil {
			return c.QueueCheck, err
		}
		if l.Lock != 0 {
			return c.QueueCheck, fmt.Errorf("run queue of CPU %d: %w", r.CPU, ErrLocked)
		}
		queues = append(queues, r)
	}
	for _, r := range queues {
		c.queue(r)
	}
	c.tasks()
	c.psi(queues)
	c.Queued = len(c.at)
	return c.QueueCheck, errors.Join(c.faults...)
}

type rqLock struct {
	Lock uint32 `k:"__lock.raw_lock.val.counter|lock.raw_lock.val.counter"` // a qspinlock; 0 if nobody has it
}

type rqLists struct {
	Tasks Addr   `k:"&cfs_tasks"`
	Leafs Addr   `k:"&leaf_cfs_rq_list,opt"`
	SCX   uint32 `k:"scx.nr_running,opt"`
}

var (
	rqLockLayout  = LayoutOf[rqLock]("rq")
	rqListsLayout = LayoutOf[rqLists]("rq")
)

// maxFaults bounds what is reported of a guest that is all wrong.
const maxFaults = 100

// runQueueCheck is one check of all run queues.
type runQueueCheck struct {
	QueueCheck
	k      *Kernel
	faults []error
	at     map[Addr]*QueuedTask // every task that was found on a queue
	all    map[Addr]*Task       // threads

	left int           // steps that the check may still take
	seen map[Addr]bool // queues of groups: one is entered once

	// Of the CPU that is being looked at.
	r     *RunQueue
	fair  map[Addr]bool // tasks found in trees of the fair class
	leafs map[Addr]bool // queues of groups in the CPU's list of them
}

func (c *runQueueCheck) fail(err error) {
	if err != nil && len(c.faults) < maxFaults {
		if c.r != nil {
			err = fmt.Errorf("CPU %d: %w", c.r.CPU, err)
		}
		c.faults = append(c.faults, err)
	}
}

// must reports a fault unless ok.
func (c *runQueueCheck) must(ok bool, a Addr, path, format string, args ...any) {
	if !ok {
		c.fail(corrupt(a, path, format, args...))
	}
}

// step says whether the check may go on; a guest may have links that lead in circles of
// circles.
func (c *runQueueCheck) step(a Addr) bool {
	if c.left--; c.left == 0 {
		c.fail(&PathError{Path: "rq", Addr: a, Err: ErrLimit})
	}
	return c.left > 0
}

// enter says whether the queue of a group was not looked at yet.
func (c *runQueueCheck) enter(rq Addr) bool {
	c.must(!c.seen[rq], rq, "rq", "the queue of a group is in two queues")
	fresh := !c.seen[rq]
	c.seen[rq] = true
	return fresh && c.step(rq)
}

// queue checks the queue of one CPU.
func (c *runQueueCheck) queue(r *RunQueue) {
	c.CPUs++
	c.r, c.fair, c.leafs = r, make(map[Addr]bool), make(map[Addr]bool)
	defer func() { c.r = nil }()
	lists, err := rqListsLayout.Load(c.k, r.Addr)
	if err != nil {
		c.fail(err)
		return
	}
	for _, node := range c.list(lists.Leafs) {
		if rq, err := c.k.ContainerOf(node, "cfs_rq", "leaf_cfs_rq_list"); err == nil {
			c.leafs[rq] = true
		}
	}
	running := uint32(c.fairQueue(r.CFS, 0, false, 0).tasks)
	tasks, servers := c.deadline(r.DL)
	running += tasks + c.realtime(r.RT, 0) + lists.SCX
	c.throttled()
	if lists.SCX != 0 {
		w := &queueWalk{r: r, k: c.k, yield: func(q QueuedTask, err error) bool {
			if err != nil {
				c.fail(err)
			} else {
				c.found(q.Addr, QueuedTask{Class: ClassExt})
			}
			return true
		}}
		w.ext()
	}
	if stop, err := c.k.TaskAt(r.Stop); err != nil {
		c.fail(err)
	} else if stop.OnRQ == 1 {
		running++
		c.found(r.Stop, QueuedTask{Class: ClassStop})
	}
	// 6.12 counts a server as a task, 7.2 does not.
	c.must(r.NrRunning == running || r.NrRunning == running+servers, r.Addr, "rq.nr_running", "%d, but %d tasks are there", r.NrRunning, running)
	for _, node := range c.list(lists.Tasks) {
		t, err := c.k.ContainerOf(node, "task_struct", "se.group_node")
		c.fail(err)
		c.must(c.fair[t], t, "rq.cfs_tasks", "a task that is in no tree")
		delete(c.fair, t)
	}
	for t := range c.fair {
		c.must(false, t, "rq.cfs_tasks", "a task of a tree is missing")
	}
}

// list returns the nodes of a list whose links lead back, too.
func (c *runQueueCheck) list(head Addr) (nodes []Addr) {
	if head == 0 {
		return nil
	}
	prev := head
	check := func(a Addr) {
		p, err := c.k.ReadAddr(a + 8)
		c.fail(err)
		c.must(p == prev || err != nil, a, "list_head.prev", "%s instead of %s", p, prev)
		prev = a
	}
	for node, err := range c.k.List(head) {
		if err != nil {
			c.fail(err)
			return nodes
		}
		if !c.step(head) {
			return nil
		}
		check(node)
		nodes = append(nodes, node)
	}
	check(head)
	return nodes
}

// found notes a task that is on a queue.
func (c *runQueueCheck) found(a Addr, q QueuedTask) {
	t, err := c.k.TaskAt(a)
	if err != nil {
		c.fail(err)
		return
	}
	c.must(int(t.CPU) == c.r.CPU, a, "task_struct.cpu", "pid %d (%s) says %d", t.PID, t.Comm, t.CPU)
	c.must(t.OnRQ == 1, a, "task_struct.on_rq", "%d, but pid %d (%s) is on a queue", t.OnRQ, t.PID, t.Comm)
	c.must(a != c.r.Idle, a, "rq.idle", "on a queue")
	if other := c.at[a]; other != nil {
		c.must(false, a, "task_struct", "pid %d (%s) is on two queues, %s and %s", t.PID, t.Comm, other.Class, q.Class)
	}
	q.Task = t
	c.at[a] = &q
}

type taskQueued struct {
	PILock      uint32 `k:"pi_lock.raw_lock.val.counter"`
	DLThrottled bool   `k:"dl.dl_throttled"`
	DLYielded   bool   `k:"dl.dl_yielded"`
}

var taskQueuedLayout = LayoutOf[taskQueued]("task_struct")

// tasks checks that threads say of themselves where they were found.
func (c *runQueueCheck) tasks() {
	for p, err := range c.k.Tasks() {
		if err != nil {
			c.fail(err)
			continue
		}
		for t, err := range p.Threads() {
			if err != nil {
				c.fail(err)
				continue
			}
			if !c.step(t.Addr) {
				return
			}
			c.task(t)
		}
	}
}

func (c *runQueueCheck) task(t *Task) {
	c.Tasks++
	q, err := taskQueuedLayout.Load(c.k, t.Addr)
	if err != nil {
		c.fail(err)
		return
	}
	s, err := taskSchedLayout.Load(c.k, t.Addr)
	if err != nil {
		c.fail(err)
		return
	}
	found := c.at[t.Addr]
	c.all[t.Addr] = t
	switch {
	case found != nil:
		delayed := s.SchedDelayed != 0
		c.must(!delayed || t.State != 0 && t.OnCPU == 0, t.Addr, "sched_entity.sched_delayed", "pid %d (%s) runs, or can run", t.PID, t.Comm)
	case t.OnRQ == 1:
		// One that has used up its time runs again when a timer says so.
		c.must(q.DLThrottled || q.DLYielded, t.Addr, "task_struct.on_rq", "1, but pid %d (%s) is on no queue", t.PID, t.Comm)
	case t.OnRQ == 0:
		// Who wakes a task has its pi_lock until it is on a queue.
		c.must(t.State != 0 || t.OnCPU != 0 || t.ExitState != 0 || q.PILock != 0, t.Addr, "task_struct",
			"pid %d (%s) can run and is on no queue", t.PID, t.Comm)
	}
}
