package checkpoint

import (
	"fmt"

	core_x86 "github.com/checkpoint-restore/go-criu/v8/crit/images/core-x86"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/rlimit"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/rseq"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// Task states of CRIU (include/pstree.h).
const (
	taskAlive   = 1
	taskStopped = 3
)

// Scheduling policies that the restorer takes.
const (
	schedOther    = 0
	schedFIFO     = 1
	schedRR       = 2
	schedBatch    = 3
	schedIdle     = 5
	schedDeadline = 6
)

const robustListLen = 24 // sizeof(struct robust_list_head)

// threadCore encodes one thread. Leader-only parts are added by taskCore.
func (c *collector) threadCore(t *kernel.Task, acts *[kernel.NSig]kernel.SigAction, shared []kernel.PendingSignal) (*criu_core.CoreEntry, error) {
	attr, err := t.Attr()
	if err != nil {
		return nil, err
	}
	masks, err := t.SigMasks()
	if err != nil {
		return nil, err
	}
	private, err := t.PendingThread()
	if err != nil {
		return nil, err
	}
	var info *core_x86.ThreadInfoX86
	if c.held { // else the registers may be in the processor
		if info, err = c.threadInfo(t, attr, deliverable(masks.Mask(), acts, private, shared)); err != nil {
			return nil, err
		}
	}
	cr, err := c.creds(t, attr)
	if err != nil {
		return nil, err
	}
	tc := &criu_core.ThreadCoreEntry{
		Sas: &criu_core.ThreadSasEntry{
			SsSp: new(uint64(masks.AltStackSP)), SsSize: &masks.AltStackSize, SsFlags: &masks.AltStackFlags,
		},
		SignalsP: sigqueue(private),
		Creds:    cr,
		Comm:     &t.Comm,
		FutexRla: new(uint64(attr.RobustList)), FutexRlaLen: new(uint32(0)),
	}
	if attr.RobustList != 0 {
		*tc.FutexRlaLen = robustListLen
	}
	if attr.PDeathSignal != 0 {
		tc.PdeathSig = new(uint32(attr.PDeathSignal))
	}
	if t.PID != t.TGID {
		tc.BlkSigset = new(masks.Mask())
	}
	c.sched(t, attr, tc)
	if err := c.threadLosses(t, attr, cr); err != nil {
		return nil, err
	}
	if err := c.rseq(attr, tc, info); err != nil {
		return nil, err
	}
	if err := c.seccomp(t, tc); err != nil {
		return nil, err
	}
	if c.cgSet != 0 {
		tc.CgSet = new(c.cgSet)
	}
	return &criu_core.CoreEntry{
		Mtype: criu_core.CoreEntry_X86_64.Enum(), ThreadInfo: info, ThreadCore: tc,
	}, nil
}

// threadInfo encodes registers and FPU of a held thread.
func (c *collector) threadInfo(t *kernel.Task, attr *kernel.TaskAttr, signaled bool) (*core_x86.ThreadInfoX86, error) {
	regs, err := t.UserRegs()
	if err != nil {
		return nil, err
	}
	if regs.Compat() {
		c.issues.refuse(thread(t), "runs 32-bit code")
	}
	if regs.InSyscall() && int64(regs.AX) == enosys {
		c.issues.refuse(thread(t), "is still in system call %d", regs.OrigAX)
	}
	restart(regs, signaled)
	state, err := t.ThreadState()
	if err != nil {
		return nil, err
	}
	x, err := t.XState()
	if err != nil {
		return nil, err
	}
	if x.Components[kernel.XFeatureTile] != nil {
		c.issues.refuse(thread(t), "has AMX tiles in use, which CRIU cannot restore")
	}
	return &core_x86.ThreadInfoX86{
		ClearTidAddr: new(uint64(attr.ClearChildTID)),
		Gpregs:       gpregs(regs, state),
		Fpregs:       fpregs(x),
		Tls:          tlsEntries(state.TLS),
	}, nil
}

func thread(t *kernel.Task) string { return fmt.Sprintf("thread %d", t.PID) }

func (c *collector) sched(t *kernel.Task, a *kernel.TaskAttr, tc *criu_core.ThreadCoreEntry) {
	policy, prio := a.Policy, uint32(0)
	switch policy {
	case schedOther, schedBatch, schedIdle:
	case schedFIFO, schedRR:
		prio = a.RTPriority
	default:
		name := "a scheduling policy CRIU does not know"
		if policy == schedDeadline {
			name = "SCHED_DEADLINE"
		}
		c.issues.approximate(thread(t), "has %s; restored with SCHED_OTHER", name)
		policy = schedOther
	}
	if a.ResetOnFork {
		c.issues.approximate(thread(t), "has SCHED_RESET_ON_FORK, which CRIU before 4 refuses; dropped")
	}
	tc.SchedPolicy, tc.SchedPrio = &policy, &prio
	tc.SchedNice = new(a.StaticPrio - 120)
}

// rseq encodes the restartable-sequences area and leaves a critical section in
// which the thread was held, as the kernel would have on a preemption. Source:
// kernel/rseq.c:rseq_ip_fixup, criu/cr-dump.c:fixup_thread_rseq.
func (c *collector) rseq(a *kernel.TaskAttr, tc *criu_core.ThreadCoreEntry, info *core_x86.ThreadInfoX86) error {
	if a.Rseq == 0 || info == nil {
		return nil
	}
	size := a.RseqLen
	if size == 0 {
		size = 32 // kernels before 6.3 do not say, and take no other
	}
	tc.RseqEntry = &rseq.RseqEntry{
		RseqAbiPointer: new(uint64(a.Rseq)), RseqAbiSize: &size, Signature: &a.RseqSig,
	}
	const csField = 8 // struct rseq: cpu_id_start, cpu_id, rseq_cs
	cs, err := c.userU64(a.Rseq + csField)
	if err != nil || cs == 0 {
		return err
	}
	const startIP, postCommit, abortIP = 8, 16, 24 // struct rseq_cs
	start, err := c.userU64(kernel.UserAddr(cs) + startIP)
	if err != nil {
		return err
	}
	length, err := c.userU64(kernel.UserAddr(cs) + postCommit)
	if err != nil {
		return err
	}
	abort, err := c.userU64(kernel.UserAddr(cs) + abortIP)
	if err != nil {
		return err
	}
	if ip := info.Gpregs.Ip; *ip-start < length {
		*ip = abort
	}
	return nil
}

// taskCore completes the leader's core entry with what the process has once.
func (c *collector) taskCore(e *criu_core.CoreEntry, acts *[kernel.NSig]kernel.SigAction, shared []kernel.PendingSignal) error {
	t := c.leader
	sa, err := t.SignalAttr()
	if err != nil {
		return err
	}
	masks, err := t.SigMasks()
	if err != nil {
		return err
	}
	attr, err := t.Attr()
	if err != nil {
		return err
	}
	timers, err := c.timers(t)
	if err != nil {
		return err
	}
	tc := &criu_core.TaskCoreEntry{
		TaskState: new(uint32(taskAlive)), ExitCode: new(uint32(0)),
		Personality: &t.Personality, Flags: &t.Flags, Comm: &t.Comm,
		BlkSigset:   new(masks.Mask()),
		Timers:      timers,
		Rlimits:     rlimits(sa),
		SignalsS:    sigqueue(shared),
		OomScoreAdj: new(int32(sa.OOMScoreAdj)),
		Sigactions:  sigactions(acts),
		Loginuid:    &attr.LoginUID,
	}
	if mask := membarriers(c.mm.Membarrier); mask != 0 {
		tc.MembarrierRegistrationMask = &mask
	}
	if sa.ChildSubreaper {
		tc.ChildSubreaper = new(true)
	}
	if c.wasStopped {
		tc.TaskState = new(uint32(taskStopped))
	}
	if c.cgSet != 0 {
		tc.CgSet = new(c.cgSet)
	}
	e.Tc, e.ThreadCore.Comm = tc, nil
	c.processLosses()
	return nil
}

func rlimits(sa *kernel.SignalAttr) *criu_core.TaskRlimitsEntry {
	e := &criu_core.TaskRlimitsEntry{}
	for i := range kernel.NumRlimits {
		l := sa.Rlimit(i)
		e.Rlimits = append(e.Rlimits, &rlimit.RlimitEntry{Cur: &l.Cur, Max: &l.Max})
	}
	return e
}
