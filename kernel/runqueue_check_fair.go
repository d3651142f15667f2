package kernel

// cfsCounts are the numbers that a queue of the fair class keeps of what is in it.
type cfsCounts struct {
	Curr      Addr   `k:"curr"`
	Timeline  Addr   `k:"&tasks_timeline"`
	Weight    uint64 `k:"load.weight"`
	Entities  uint32 `k:"nr_queued|nr_running"`     // in this queue
	Tasks     uint32 `k:"h_nr_queued|h_nr_running"` // here and in the queues of groups below
	Runnable  uint32 `k:"h_nr_runnable,opt"`        // without those that are kept though they sleep
	Delayed   uint32 `k:"h_nr_delayed,opt"`
	OnList    uint32 `k:"on_list,opt"`
	Throttled uint32 `k:"throttle_count,opt"` // groups above, and this, that may not run

	// Sums over the tree, since 6.6: of weights, and of vruntime by weight, relative
	// to that of the queue.
	Zero        uint64 `k:"zero_vruntime|min_vruntime"`
	SumWeight   uint64 `k:"sum_weight|avg_load,opt"`
	SumVRuntime uint64 `k:"sum_w_vruntime|avg_vruntime,opt"`
	Shift       uint32 `k:"sum_shift,opt"` // since 7.1; before, weights were scaled down
}

type fairEntity struct {
	Weight   uint64 `k:"load.weight"`
	OnRQ     uint32 `k:"on_rq"`
	Delayed  uint32 `k:"sched_delayed,opt"`
	VRuntime uint64 `k:"vruntime"`
	CFS      Addr   `k:"cfs_rq,opt"`
	Parent   Addr   `k:"parent,opt"`
	MyQ      Addr   `k:"my_q,opt"`

	// Since 6.6. Minima and maxima are of the entity and all below it in the tree.
	Deadline uint64 `k:"deadline,opt"`
	Slice    uint64 `k:"slice,opt"`
	MinV     uint64 `k:"min_vruntime,opt"`
	MinSlice uint64 `k:"min_slice,opt"` // since 6.8
	MaxSlice uint64 `k:"max_slice,opt"` // since 6.17
}

var (
	cfsCountsLayout  = LayoutOf[cfsCounts]("cfs_rq")
	fairEntityLayout = LayoutOf[fairEntity]("sched_entity")
)

// fairSum is what was found in a queue, and in those below it.
type fairSum struct {
	tasks, delayed int
	entities       uint32 // in the queue itself
}

// fairQueue checks the queue of a group; group is the entity that it is in the queue
// above, 0 for the CPU's own.
func (c *runQueueCheck) fairQueue(rq, group Addr, throttled bool, depth int) (sum fairSum) {
	q, err := cfsCountsLayout.Load(c.k, rq)
	if err == nil && depth > maxGroupDepth {
		err = &PathError{Path: "cfs_rq", Addr: rq, Err: ErrLimit}
	}
	if err != nil {
		c.fail(err)
		return sum
	}
	if !c.enter(rq) {
		return sum
	}
	c.Queues++
	var weight uint64
	add := func(se Addr, e *fairEntity) {
		sum.entities++
		weight += e.Weight
		s := c.fairEntity(rq, group, se, e, throttled, depth)
		sum.tasks += s.tasks
		sum.delayed += s.delayed
	}
	if q.Curr != 0 {
		e, err := fairEntityLayout.Load(c.k, q.Curr)
		if err != nil {
			c.fail(err)
		} else if e.OnRQ != 0 {
			add(q.Curr, &e)
		}
	}
	for _, n := range c.fairTree(rq, &q) {
		c.must(n.se != q.Curr, n.se, "cfs_rq.curr", "in the tree")
		add(n.se, &n.fairEntity)
	}
	c.must(q.Entities == sum.entities, rq, "cfs_rq.nr_queued", "%d, but %d are there", q.Entities, sum.entities)
	c.must(q.Weight == weight, rq, "cfs_rq.load.weight", "%d, but what is there has %d", q.Weight, weight)
	c.must(int(q.Tasks) == sum.tasks, rq, "cfs_rq.h_nr_queued", "%d, but %d are there", q.Tasks, sum.tasks)
	if cfsCountsLayout.Has(c.k, "Runnable") {
		c.must(int(q.Runnable) == sum.tasks-sum.delayed, rq, "cfs_rq.h_nr_runnable", "%d, but %d of %d sleep", q.Runnable, sum.delayed, sum.tasks)
	}
	if cfsCountsLayout.Has(c.k, "Delayed") {
		c.must(int(q.Delayed) == sum.delayed, rq, "cfs_rq.h_nr_delayed", "%d, but %d sleep", q.Delayed, sum.delayed)
	}
	c.onLeafList(rq, &q)
	return sum
}

// onLeafList checks that a queue is where the load of queues is looked at. Those of
// groups above should come later there, but 5.10 sees to that only until it throttles one.
func (c *runQueueCheck) onLeafList(rq Addr, q *cfsCounts) {
	if !cfsCountsLayout.Has(c.k, "OnList") {
		return
	}
	listed := c.leafs[rq]
	c.must(listed == (q.OnList != 0), rq, "cfs_rq.on_list", "%d, but is it in the list: %v", q.OnList, listed)
	c.must(listed || q.Entities == 0 || q.Throttled != 0, rq, "cfs_rq.on_list", "0, but it has entities")
}

// fairEntity checks one entity of a queue, and the queue that is behind it.
func (c *runQueueCheck) fairEntity(rq, group, se Addr, e *fairEntity, throttled bool, depth int) (sum fairSum) {
	c.must(e.OnRQ == 1, se, "sched_entity.on_rq", "%d, but it is on a queue", e.OnRQ)
	if fairEntityLayout.Has(c.k, "CFS") {
		c.must(e.CFS == rq, se, "sched_entity.cfs_rq", "%s, but it is in that at %s", e.CFS, rq)
		c.must(e.Parent == group, se, "sched_entity.parent", "%s instead of %s", e.Parent, group)
	}
	if e.MyQ != 0 {
		sum = c.fairQueue(e.MyQ, se, throttled, depth+1)
		// What keeps it may be another group that sleeps and is not let go yet.
		c.must(sum.entities > 0 || e.Delayed != 0, se, "sched_entity", "a group that has nothing in its queue")
		return sum
	}
	t, err := c.k.ContainerOf(se, "task_struct", "se")
	if err != nil {
		c.fail(err)
		return sum
	}
	sum.tasks = 1
	if e.Delayed != 0 {
		sum.delayed = 1
	}
	c.fair[t] = true
	c.found(t, QueuedTask{Class: ClassFair, Throttled: throttled, Delayed: e.Delayed != 0})
	return sum
}

// fairNode is an entity in a tree, and what its children have.
type fairNode struct {
	fairEntity
	se          Addr
	left, right Addr
}

// fairTree checks the tree of a queue, its order and its sums.
func (c *runQueueCheck) fairTree(rq Addr, q *cfsCounts) []*fairNode {
	nodes, err := c.k.checkRBTree(q.Timeline)
	if err != nil {
		c.fail(err)
		return nil
	}
	eevdf := fairEntityLayout.Has(c.k, "Deadline")
	all := make([]*fairNode, 0, len(nodes))
	byNode := make(map[Addr]*fairNode, len(nodes))
	var last *fairNode
	for _, n := range nodes {
		se, err := c.k.ContainerOf(n.node, "sched_entity", "run_node")
		if err != nil || !c.step(rq) {
			c.fail(err)
			return all
		}
		e, err := fairEntityLayout.Load(c.k, se)
		if err != nil {
			c.fail(err)
			return all
		}
		f := &fairNode{e, se, n.left, n.right}
		// Times are compared as the kernel does, so that they may wrap.
		if last != nil && eevdf {
			c.must(int64(f.Deadline-last.Deadline) >= 0, se, "cfs_rq.tasks_timeline", "deadlines out of order: %d after %d", f.Deadline, last.Deadline)
		} else if last != nil {
			c.must(int64(f.VRuntime-last.VRuntime) >= 0, se, "cfs_rq.tasks_timeline", "vruntimes out of order: %d after %d", f.VRuntime, last.VRuntime)
		}
		last = f
		all = append(all, f)
		byNode[n.node] = f
	}
	if eevdf {
		c.fairSums(rq, q, all)
		for _, f := range all {
			c.augmented(f, byNode[f.left], byNode[f.right])
		}
	}
	return all
}

// fairSums checks the sums over a tree. They are of the kernel's 64 bits, which wrap.
// Source: kernel/sched/fair.c:avg_vruntime_add, sum_w_vruntime_add.
func (c *runQueueCheck) fairSums(rq Addr, q *cfsCounts, all []*fairNode) {
	if !cfsCountsLayout.Has(c.k, "SumWeight") {
		return
	}
	var weights, vruntime uint64
	for _, f := range all {
		w := f.Weight
		if !cfsCountsLayout.Has(c.k, "Shift") {
			w = max(2, w>>10) // SCHED_FIXEDPOINT_SHIFT
		} else if q.Shift != 0 {
			w = max(2, w>>min(q.Shift, 63))
		}
		weights += w
		vruntime += w * (f.VRuntime - q.Zero)
	}
	c.must(q.SumWeight == weights, rq, "cfs_rq.sum_weight", "%d, but the tree has %d", q.SumWeight, weights)
	c.must(q.SumVRuntime == vruntime, rq, "cfs_rq.sum_w_vruntime", "%d, but the tree has %d", int64(q.SumVRuntime), int64(vruntime))
}

// augmented checks what an entity knows of those below it. Source:
// kernel/sched/fair.c:min_vruntime_update.
func (c *runQueueCheck) augmented(f, left, right *fairNode) {
	minV, minSlice, maxSlice := f.VRuntime, f.Slice, f.Slice
	for _, child := range []*fairNode{left, right} {
		if child == nil {
			continue
		}
		if int64(child.MinV-minV) < 0 {
			minV = child.MinV
		}
		minSlice, maxSlice = min(minSlice, child.MinSlice), max(maxSlice, child.MaxSlice)
	}
	c.must(f.MinV == minV, f.se, "sched_entity.min_vruntime", "%d instead of %d", f.MinV, minV)
	if fairEntityLayout.Has(c.k, "MinSlice") {
		c.must(f.MinSlice == minSlice, f.se, "sched_entity.min_slice", "%d instead of %d", f.MinSlice, minSlice)
	}
	if fairEntityLayout.Has(c.k, "MaxSlice") {
		c.must(f.MaxSlice == maxSlice, f.se, "sched_entity.max_slice", "%d instead of %d", f.MaxSlice, maxSlice)
	}
}

// throttled checks the queues of groups that may not run for now, which are in no
// queue of a group above.
func (c *runQueueCheck) throttled() {
	head, err := c.k.taskGroups()
	if err != nil || !cfsRQLayout.Has(c.k, "Throttled") || !taskGroupQueuesLayout.Has(c.k, "CFS") {
		return // built without groups, or without limits
	}
	w := &queueWalk{r: c.r, k: c.k}
	for node, err := range c.k.List(head) {
		if err != nil {
			c.fail(err)
			return
		}
		c.fail(c.throttledGroup(w, node))
	}
}

func (c *runQueueCheck) throttledGroup(w *queueWalk, node Addr) error {
	tg, err := c.k.ContainerOf(node, "task_group", "list")
	if err != nil {
		return err
	}
	g, err := taskGroupQueuesLayout.Load(c.k, tg)
	if err != nil {
		return err
	}
	rq, err := w.groupQueue(g.CFS)
	if err != nil {
		return err
	}
	q, err := cfsRQLayout.Load(c.k, rq)
	if err != nil {
		return err
	}
	if !cfsRQLayout.Has(c.k, "Limbo") {
		if q.Throttled {
			group, err := c.groupEntity(tg)
			if err != nil {
				return err
			}
			c.fairQueue(rq, group, true, 0)
		}
		return nil
	}
	for _, n := range c.list(q.Limbo) {
		t, err := c.k.ContainerOf(n, "task_struct", "throttle_node")
		if err != nil {
			return err
		}
		c.found(t, QueuedTask{Class: ClassFair, Throttled: true})
	}
	return nil
}

type taskGroupEntities struct {
	SE Addr `k:"se,opt"` // an array of pointers, one a CPU; until 7.0
}

var taskGroupEntitiesLayout = LayoutOf[taskGroupEntities]("task_group")

// groupEntity returns what a group is in the queue above it.
func (c *runQueueCheck) groupEntity(tg Addr) (Addr, error) {
	g, err := taskGroupEntitiesLayout.Load(c.k, tg)
	if err != nil {
		return 0, err
	}
	return c.k.ReadAddr(g.SE.Add(8 * c.r.CPU))
}
