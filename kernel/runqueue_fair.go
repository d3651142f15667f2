package kernel

import "github.com/ovmigrate/ovmigrate/kernel/types"

// cfsRQ is the queue of one group of the fair class on one CPU.
type cfsRQ struct {
	Curr      Addr `k:"curr"` // sched_entity that runs, which is not in the tree
	Timeline  Addr `k:"&tasks_timeline"`
	TaskGroup Addr `k:"tg,opt"`
	Throttled bool `k:"throttled,opt"`
	// Tasks of a throttled group that wait outside the tree: since 6.18.
	Limbo Addr `k:"&throttled_limbo_list,opt"`
}

type schedEntity struct {
	OnRQ    uint32 `k:"on_rq"`
	Delayed uint32 `k:"sched_delayed,opt"` // since 6.12
	MyQ     Addr   `k:"my_q,opt"`          // queue of a group, 0 for a task
}

type taskGroupQueues struct {
	CFS Addr `k:"cfs_rq,opt"` // an array of pointers, one a CPU; since 7.1 per-CPU memory
}

var (
	cfsRQLayout           = LayoutOf[cfsRQ]("cfs_rq")
	schedEntityLayout     = LayoutOf[schedEntity]("sched_entity")
	taskGroupQueuesLayout = LayoutOf[taskGroupQueues]("task_group")
)

// fairQueue walks a queue and those of the groups in it. Groups that are throttled
// are not in the queue of the group above. Kernels since 7.3 keep all tasks in the
// CPU's own queue.
func (w *queueWalk) fairQueue(rq Addr, throttled bool, depth int) {
	if w.done {
		return
	}
	q, err := cfsRQLayout.Load(w.k, rq)
	if err == nil && depth > maxGroupDepth {
		err = &PathError{Path: "cfs_rq", Addr: rq, Err: ErrLimit}
	}
	if err != nil {
		w.fail(err)
		return
	}
	if q.Curr != 0 {
		w.entity(q.Curr, &q, throttled, depth)
	}
	for node, err := range w.k.RBTree(q.Timeline) {
		if w.done {
			return
		}
		if err != nil {
			w.fail(err)
			return
		}
		se, ok := w.container(node, "sched_entity", "run_node")
		if !ok {
			return
		}
		if se != q.Curr {
			w.entity(se, &q, throttled, depth)
		}
	}
}

func (w *queueWalk) entity(se Addr, q *cfsRQ, throttled bool, depth int) {
	if w.step(); w.done {
		return
	}
	e, err := schedEntityLayout.Load(w.k, se)
	if err != nil {
		w.fail(err)
		return
	}
	if e.MyQ != 0 {
		w.fairQueue(e.MyQ, throttled, depth+1)
		return
	}
	if e.OnRQ == 0 {
		return // runs its last moments
	}
	if a, ok := w.container(se, "task_struct", "se"); ok {
		group := q.TaskGroup
		if t, err := taskSchedLayout.Load(w.k, a); err == nil && t.Group != 0 {
			group = t.Group
		}
		w.task(a, QueuedTask{Class: ClassFair, Group: group, Throttled: throttled, Delayed: e.Delayed != 0})
	}
}

// throttled walks the queues of the groups that may not run for now. Source:
// kernel/sched/fair.c:throttle_cfs_rq.
func (w *queueWalk) throttled() {
	head, err := w.k.taskGroups()
	if err != nil || w.done || !cfsRQLayout.Has(w.k, "Throttled") || !taskGroupQueuesLayout.Has(w.k, "CFS") {
		return // built without groups, or without limits
	}
	for node, err := range w.k.List(head) {
		if w.step(); w.done {
			return
		}
		if err != nil {
			w.fail(err)
			return
		}
		tg, ok := w.container(node, "task_group", "list")
		if !ok {
			return
		}
		if err := w.throttledGroup(tg); err != nil {
			w.fail(err)
			return
		}
	}
}

// taskGroups returns the head of the list of scheduling groups; that of the idle task
// is the first of them. Source: kernel/sched/core.c:task_groups.
func (k *Kernel) taskGroups() (Addr, error) {
	a, missing := k.Symbol("task_groups")
	if missing == nil {
		return a, nil
	}
	swapper, err := k.Symbol("init_task")
	if err != nil {
		return 0, err
	}
	t, err := taskSchedLayout.Load(k, swapper)
	if err != nil || t.Group == 0 {
		return 0, missing
	}
	off, err := k.offsetOf("task_group", "list")
	if err != nil {
		return 0, err
	}
	return k.headOf(t.Group.Add(off), missing)
}

func (w *queueWalk) throttledGroup(tg Addr) error {
	g, err := taskGroupQueuesLayout.Load(w.k, tg)
	if err != nil {
		return err
	}
	rq, err := w.groupQueue(g.CFS)
	if err != nil {
		return err
	}
	q, err := cfsRQLayout.Load(w.k, rq)
	if err != nil {
		return err
	}
	if cfsRQLayout.Has(w.k, "Limbo") {
		// Those that were not switched away from yet are in the tree, and counted.
		for node, err := range w.k.List(q.Limbo) {
			if err != nil {
				return err
			}
			if a, ok := w.container(node, "task_struct", "throttle_node"); ok {
				w.task(a, QueuedTask{Class: ClassFair, Group: tg, Throttled: true})
			}
			if w.done {
				return nil
			}
		}
		return nil
	}
	if q.Throttled {
		w.fairQueue(rq, true, 0)
	}
	return nil
}

// groupQueue returns the CPU's queue of a group, given task_group.cfs_rq.
func (w *queueWalk) groupQueue(p Addr) (Addr, error) {
	if w.k.pointsTo("task_group", "cfs_rq", types.Pointer) {
		return w.k.ReadAddr(p.Add(8 * w.r.CPU))
	}
	return w.k.perCPUPtr(p, w.r.CPU)
}

// pointsTo says whether a member is a pointer to something of a kind.
func (k *Kernel) pointsTo(cname, member string, kind types.Kind) bool {
	c, err := k.types.Struct(cname)
	if err != nil {
		return false
	}
	f, err := c.Lookup(member)
	if err != nil {
		return false
	}
	u, err := f.Type.Underlying()
	if err != nil || u.Kind != types.Pointer {
		return false
	}
	e, err := u.Elem()
	return err == nil && e.Kind == kind
}
