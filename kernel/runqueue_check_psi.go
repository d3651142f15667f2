package kernel

// psiCounts are how many tasks of a CPU wait for I/O, are short of memory, can run,
// and, of these, run (until 5.15) or are short of memory (since then).
type psiCounts [4]uint32

type psiGroupCPU struct {
	Tasks psiCounts `k:"tasks"`
}

type taskPSI struct {
	Flags   uint32 `k:"psi_flags"`
	Delayed bool   `k:"se.sched_delayed,opt"`
}

var (
	psiGroupCPULayout = LayoutOf[psiGroupCPU]("psi_group_cpu")
	taskPSILayout     = LayoutOf[taskPSI]("task_struct")
)

const psiRunning = 2 // NR_RUNNING, of which TSK_RUNNING is the bit

// psi compares what pressure stall information counts for the whole system with what
// the tasks say that they were counted as, and that with where they are. The counts are
// all 0 if psi=0 was on the command line. Source: kernel/sched/psi.c:psi_group_change.
func (c *runQueueCheck) psi(queues []*RunQueue) {
	if !taskPSILayout.Has(c.k, "Flags") {
		return // built without
	}
	for a, q := range c.at {
		c.all[a] = q.Task // an exiting one is in no list of tasks
	}
	counted := make(map[int]psiCounts)
	var any uint32
	var unlike []error
	for a, t := range c.all {
		p, err := taskPSILayout.Load(c.k, a)
		if err != nil {
			c.fail(err)
			return
		}
		any |= p.Flags
		n := counted[int(t.CPU)]
		for i := range n {
			n[i] += p.Flags >> i & 1
		}
		counted[int(t.CPU)] = n
		// One that goes to sleep is counted so when its CPU has found another to run,
		// for which it gives up the lock of the queue.
		if runs := t.OnRQ == 1 && !p.Delayed; t.OnRQ < 2 && t.OnCPU == 0 && runs != (p.Flags>>psiRunning&1 != 0) {
			unlike = append(unlike, corrupt(a, "task_struct.psi_flags", "%#x, but pid %d (%s) has on_rq %d", p.Flags, t.PID, t.Comm, t.OnRQ))
		}
	}
	if any == 0 {
		return
	}
	for _, err := range unlike {
		c.fail(err)
	}
	for _, r := range queues {
		a, err := c.k.PerCPU("system_group_pcpu", r.CPU)
		if err != nil {
			return // a kernel without names of variables
		}
		g, err := psiGroupCPULayout.Load(c.k, a)
		if err != nil {
			c.fail(err)
			return
		}
		c.must(g.Tasks == counted[r.CPU], a, "psi_group_cpu.tasks", "CPU %d has %d, but its tasks are %d", r.CPU, g.Tasks, counted[r.CPU])
		c.PSI = true
	}
}
