package kernel

import "math/bits"

type rtCounts struct {
	Bitmap  [2]uint64 `k:"active.bitmap"`
	Queue   Addr      `k:"&active.queue"`
	Tasks   uint32    `k:"rt_nr_running"`
	RR      uint32    `k:"rr_nr_running"`
	Highest int32     `k:"highest_prio.curr"`
	Queued  int32     `k:"rt_queued"` // counted in that of the CPU
}

type rtFlags struct {
	OnRQ   uint16 `k:"on_rq"`
	OnList uint16 `k:"on_list"`
	MyQ    Addr   `k:"my_q,opt"`
}

type dlCounts struct {
	Root     Addr   `k:"&root"`
	Entities uint64 `k:"dl_nr_running"`
	Earliest uint64 `k:"earliest_dl.curr"`
}

type dlOrder struct {
	Deadline uint64 `k:"deadline"`
	Server   bool   `k:"dl_server,opt"`
}

var (
	rtCountsLayout = LayoutOf[rtCounts]("rt_rq")
	rtFlagsLayout  = LayoutOf[rtFlags]("sched_rt_entity")
	dlCountsLayout = LayoutOf[dlCounts]("dl_rq")
	dlOrderLayout  = LayoutOf[dlOrder]("sched_dl_entity")
)

const maxRTPrio = 100 // MAX_RT_PRIO, and the bit that ends the bitmap

// realtime checks the lists of real-time tasks and returns how many of them the CPU
// counts.
func (c *runQueueCheck) realtime(rq Addr, depth int) uint32 {
	q, err := rtCountsLayout.Load(c.k, rq)
	if err == nil && depth > maxGroupDepth {
		err = &PathError{Path: "rt_rq", Addr: rq, Err: ErrLimit}
	}
	if err != nil {
		c.fail(err)
		return 0
	}
	if !c.enter(rq) {
		return 0
	}
	var tasks, rr uint32
	for prio := range maxRTPrio {
		set := q.Bitmap[prio/64]>>(prio%64)&1 != 0
		nodes := c.list(q.Queue.Add(16 * prio))
		c.must(set == (len(nodes) > 0), rq, "rt_rq.active.bitmap", "priority %d is %v, but it has %d tasks", prio, set, len(nodes))
		for _, node := range nodes {
			n, robin := c.realtimeEntity(node, depth)
			tasks += n
			rr += robin
		}
	}
	c.must(q.Bitmap[1]>>(maxRTPrio-64)&1 == 1, rq, "rt_rq.active.bitmap", "has no end")
	c.must(q.Tasks == tasks, rq, "rt_rq.rt_nr_running", "%d, but %d are there", q.Tasks, tasks)
	c.must(q.RR == rr, rq, "rt_rq.rr_nr_running", "%d, but %d are there", q.RR, rr)
	highest := bits.TrailingZeros64(q.Bitmap[0])
	if highest == 64 {
		highest += bits.TrailingZeros64(q.Bitmap[1])
	}
	c.must(int(q.Highest) == highest || highest == maxRTPrio && q.Highest == maxRTPrio-1, rq, "rt_rq.highest_prio.curr", "%d instead of %d", q.Highest, highest)
	if q.Queued == 0 {
		return 0
	}
	return tasks
}

// realtimeEntity checks what is in a list, and returns how many tasks it stands for and
// how many of them take turns.
func (c *runQueueCheck) realtimeEntity(node Addr, depth int) (tasks, rr uint32) {
	se, err := c.k.ContainerOf(node, "sched_rt_entity", "run_list")
	if err != nil {
		c.fail(err)
		return 0, 0
	}
	e, err := rtFlagsLayout.Load(c.k, se)
	if err != nil {
		c.fail(err)
		return 0, 0
	}
	c.must(e.OnRQ == 1 && e.OnList == 1, se, "sched_rt_entity", "on_rq %d, on_list %d, but it is in a list", e.OnRQ, e.OnList)
	if e.MyQ != 0 {
		c.realtime(e.MyQ, depth+1)
		q, err := rtCountsLayout.Load(c.k, e.MyQ)
		c.fail(err)
		return q.Tasks, q.RR
	}
	t, err := c.k.ContainerOf(se, "task_struct", "rt")
	if err != nil {
		c.fail(err)
		return 0, 0
	}
	c.found(t, QueuedTask{Class: ClassRealtime})
	if s, err := taskSchedLayout.Load(c.k, t); err != nil {
		c.fail(err)
	} else if s.Policy == SchedRR {
		rr = 1
	}
	return 1, rr
}

// deadline checks the tree of deadline tasks and returns how many they are, and how
// many servers, which stand for the tasks of another class.
func (c *runQueueCheck) deadline(rq Addr) (tasks, servers uint32) {
	q, err := dlCountsLayout.Load(c.k, rq)
	if err != nil {
		c.fail(err)
		return 0, 0
	}
	nodes, err := c.k.checkRBTree(q.Root)
	if err != nil {
		c.fail(err)
		return 0, 0
	}
	var last, earliest uint64
	for i, n := range nodes {
		se, err := c.k.ContainerOf(n.node, "sched_dl_entity", "rb_node")
		if err != nil {
			c.fail(err)
			return tasks, servers
		}
		e, err := dlOrderLayout.Load(c.k, se)
		if err != nil {
			c.fail(err)
			return tasks, servers
		}
		if i == 0 {
			earliest = e.Deadline
		} else {
			c.must(int64(e.Deadline-last) >= 0, se, "dl_rq.root", "deadlines out of order: %d after %d", e.Deadline, last)
		}
		last = e.Deadline
		if e.Server {
			servers++
			continue
		}
		t, err := c.k.ContainerOf(se, "task_struct", "dl")
		if err != nil {
			c.fail(err)
			return tasks, servers
		}
		tasks++
		c.found(t, QueuedTask{Class: ClassDeadline})
	}
	c.must(q.Entities == uint64(len(nodes)), rq, "dl_rq.dl_nr_running", "%d, but %d are there", q.Entities, len(nodes))
	c.must(q.Earliest == earliest, rq, "dl_rq.earliest_dl.curr", "%d instead of %d", q.Earliest, earliest)
	return tasks, servers
}
