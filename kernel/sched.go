package kernel

import "time"

// Scheduling policies (include/uapi/linux/sched.h).
const (
	SchedNormal   = 0
	SchedFIFO     = 1
	SchedRR       = 2
	SchedBatch    = 3
	SchedIdle     = 5
	SchedDeadline = 6
	SchedExt      = 7
)

var policyNames = map[uint32]string{
	SchedNormal: "other", SchedFIFO: "fifo", SchedRR: "rr", SchedBatch: "batch",
	SchedIdle: "idle", SchedDeadline: "deadline", SchedExt: "ext",
}

// Sched is what the scheduler knows about a task.
type Sched struct {
	taskSched
	// Deadline holds the parameters of SCHED_DEADLINE.
	Deadline SchedDeadlineParams
}

type taskSched struct {
	Policy     uint32 `k:"policy"`      // SCHED_*
	Prio       int32  `k:"prio"`        // effective: 0 to 99 real time, 100 to 139 fair, -1 deadline
	StaticPrio int32  `k:"static_prio"` // 120 + nice
	NormalPrio int32  `k:"normal_prio"`
	RTPriority uint32 `k:"rt_priority"` // 1 to 99, 0 unless FIFO or RR

	VRuntime       uint64 `k:"se.vruntime"` // ns, weighted; meaningful within one queue
	VDeadline      uint64 `k:"se.deadline,opt"`
	Slice          uint64 `k:"se.slice,opt"`
	SumExecRuntime uint64 `k:"se.sum_exec_runtime"` // ns on CPUs
	ExecStart      uint64 `k:"se.exec_start"`       // RunQueue.ClockTask when it was last accounted
	NrMigrations   uint64 `k:"se.nr_migrations"`
	Weight         uint64 `k:"se.load.weight"`
	SchedDelayed   uint8  `k:"se.sched_delayed,opt"`
	NrCPUsAllowed  int32  `k:"nr_cpus_allowed"`
	RunDelay       uint64 `k:"sched_info.run_delay,opt"` // ns runnable but not running
	PCount         uint64 `k:"sched_info.pcount,opt"`    // times it was put on a CPU
	Group          Addr   `k:"sched_task_group,opt"`     // struct task_group
	DLRuntime      uint64 `k:"dl.dl_runtime"`
	DLDeadline     uint64 `k:"dl.dl_deadline"`
	DLPeriod       uint64 `k:"dl.dl_period"`
}

var taskSchedLayout = LayoutOf[taskSched]("task_struct")

// SchedDeadlineParams are what sched_setattr(2) gave a task of SCHED_DEADLINE.
type SchedDeadlineParams struct{ Runtime, Deadline, Period time.Duration }

// Sched reads what the scheduler knows about t. Source: kernel/sched/debug.c:proc_sched_show_task.
func (t *Task) Sched() (*Sched, error) {
	s := &Sched{}
	if err := taskSchedLayout.LoadInto(t.k, t.Addr, &s.taskSched); err != nil {
		return nil, err
	}
	s.Deadline = SchedDeadlineParams{
		time.Duration(s.DLRuntime), time.Duration(s.DLDeadline), time.Duration(s.DLPeriod),
	}
	return s, nil
}

// Nice returns the nice value, -20 to 19. Source: include/linux/sched/prio.h:PRIO_TO_NICE.
func (s *Sched) Nice() int { return int(s.StaticPrio) - 120 }

// StatPriority returns the priority as /proc/PID/stat shows it: -100 to 39.
func (s *Sched) StatPriority() int { return int(s.Prio) - 100 }

// PolicyName returns the policy as chrt(1) calls it, without SCHED_.
func (s *Sched) PolicyName() string { return policyNames[s.Policy] }
