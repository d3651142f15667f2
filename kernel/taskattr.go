package kernel

// TaskAttr are the attributes of a thread that programs set for themselves and
// that little else in the kernel depends on.
type TaskAttr struct {
	RobustList       UserAddr `k:"robust_list|futex.robust_list"`
	CompatRobustList UserAddr `k:"compat_robust_list|futex.compat_robust_list,opt"`
	SetChildTID      UserAddr `k:"set_child_tid"`
	ClearChildTID    UserAddr `k:"clear_child_tid"`
	Policy           uint32   `k:"policy"`
	StaticPrio       int32    `k:"static_prio"` // 120 + nice
	RTPriority       uint32   `k:"rt_priority"`
	ResetOnFork      bool     `k:"sched_reset_on_fork"`
	NrCPUsAllowed    int32    `k:"nr_cpus_allowed"`
	PDeathSignal     int32    `k:"pdeath_signal"`
	LoginUID         uint32   `k:"loginuid.val,opt"`
	AtomicFlags      uint64   `k:"atomic_flags"` // PFA_*
	TimerSlack       uint64   `k:"timer_slack_ns"`
	Rseq             UserAddr `k:"rseq.usrptr|rseq,opt"`
	RseqLen          uint32   `k:"rseq.len|rseq_len,opt"`
	RseqSig          uint32   `k:"rseq.sig|rseq_sig,opt"`
	IOContext        Addr     `k:"io_context"`
	IOUring          Addr     `k:"io_uring,opt"`
	PerfEvents       Addr     `k:"perf_event_ctxp[0]|perf_event_ctxp,opt"`
	UTask            Addr     `k:"utask,opt"`
	VforkDone        Addr     `k:"vfork_done"`
	SavedFutexFlags  uint32   `k:"futex_state|futex.state,opt"`
}

var taskAttrLayout = LayoutOf[TaskAttr]("task_struct")

// Attr reads t's attributes.
func (t *Task) Attr() (*TaskAttr, error) {
	a, err := taskAttrLayout.Load(t.k, t.Addr)
	if err != nil {
		return nil, err
	}
	return &a, nil
}

// NoNewPrivs says whether the thread gave up gaining privileges by execve.
func (a *TaskAttr) NoNewPrivs() bool { return a.AtomicFlags&1 != 0 }

type ioContext struct {
	IOPrio uint16 `k:"ioprio"`
}

var ioContextLayout = LayoutOf[ioContext]("io_context")

// IOPriority returns the priority that t set with ioprio_set(2), 0 for none.
func (t *Task) IOPriority() (uint16, error) {
	a, err := t.Attr()
	if err != nil || a.IOContext == 0 {
		return 0, err
	}
	c, err := ioContextLayout.Load(t.k, a.IOContext)
	return c.IOPrio, err
}

// Rlimit is a resource limit; ^uint64(0) is RLIM_INFINITY.
type Rlimit struct{ Cur, Max uint64 }

// NumRlimits is the number of resource limits (RLIM_NLIMITS).
const NumRlimits = 16

// SignalAttr are the attributes of a process that all its threads share
// (signal_struct).
type SignalAttr struct {
	Rlim           [2 * NumRlimits]uint64 `k:"rlim"`
	OOMScoreAdj    int16                  `k:"oom_score_adj"`
	OOMScoreAdjMin int16                  `k:"oom_score_adj_min"`
	ChildSubreaper bool                   `k:"is_child_subreaper"`
	Flags          uint32                 `k:"flags"` // SIGNAL_*
	GroupStopCount int32                  `k:"group_stop_count"`
	NrThreads      int32                  `k:"nr_threads"`
	TTY            Addr                   `k:"tty"` // controlling terminal
	Leader         bool                   `k:"leader"`
}

var signalAttrLayout = LayoutOf[SignalAttr]("signal_struct")

// SignalAttr reads the attributes of t's process.
func (t *Task) SignalAttr() (*SignalAttr, error) {
	a, err := signalAttrLayout.Load(t.k, t.Signal)
	if err != nil {
		return nil, err
	}
	return &a, nil
}

// Rlimit returns limit i (RLIMIT_*), which must be below NumRlimits.
func (s *SignalAttr) Rlimit(i int) Rlimit { return Rlimit{s.Rlim[2*i], s.Rlim[2*i+1]} }
