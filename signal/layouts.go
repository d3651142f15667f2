package signal

import (
	"fmt"
	"strconv"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// Values that C writes as macros, so that type information does not have them.
const (
	// task_struct.jobctl (include/linux/sched/jobctl.h).
	jobctlStopDequeued = 1 << 16
	jobctlStopPending  = 1 << 17
	jobctlStopConsume  = 1 << 18
	jobctlTrapStop     = 1 << 19
	jobctlTrapNotify   = 1 << 20
	jobctlTrapFreeze   = 1 << 23
	jobctlStopped      = 1 << 26 // since 5.19; unused before

	// signal_struct.flags (include/linux/sched/signal.h).
	signalStopStopped   = 0x01
	signalStopContinued = 0x02
	signalGroupExit     = 0x04
	signalCLDStopped    = 0x10
	signalCLDContinued  = 0x20
	signalUnkillable    = 0x40
	signalStopMask      = signalStopStopped | signalStopContinued | signalCLDStopped | signalCLDContinued

	// __call_single_node.u_flags (include/linux/smp_types.h, irq_work.h).
	csdLock         = 0x01
	irqWorkPending  = 0x01
	irqWorkBusy     = 0x02
	csdTypeIRQWork  = 0x20
	irqWorkInFlight = irqWorkPending | irqWorkBusy

	// timer_list.flags and the timer wheel (include/linux/timer.h, kernel/time/timer.c).
	timerPinned     = 0x00100000
	timerArrayShift = 22
	timerLevelSize  = 64

	// enum pid_type.
	pidTypePID  = 0 // the one thread
	pidTypeTGID = 1 // the whole process
)

// taskWords are the words of a task_struct that signals are made of: values as
// read, and addresses to write to.
type taskWords struct {
	Flags     uint64      `k:"thread_info.flags"`
	FlagsAddr kernel.Addr `k:"&thread_info.flags"`
	StateAddr kernel.Addr `k:"&__state|&state"`
	JobCtl    kernel.Addr `k:"&jobctl"`
	Usage     kernel.Addr `k:"&usage"`
	PILock    uint32      `k:"pi_lock.raw_lock"`
	Saved     uint64      `k:"saved_state,opt"` // what a sleep for a spinlock of PREEMPT_RT interrupted
	Blocked   uint64      `k:"blocked"`
	Waited    uint64      `k:"real_blocked"`         // blocked, but for a sigtimedwait(2) under way
	Delayed   bool        `k:"se.sched_delayed,opt"` // 6.12+: asleep, though still on the run queue

	Pending      uint64      `k:"pending.signal"`
	PendingAddr  kernel.Addr `k:"&pending.signal"`
	PendingFirst kernel.Addr `k:"pending.list.next"`
	PendingHead  kernel.Addr `k:"&pending.list"`

	WakeQ     kernel.Addr `k:"wake_q.next"`
	WakeQAddr kernel.Addr `k:"&wake_q.next"`
}

type signalWords struct {
	Flags         uint32      `k:"flags"`
	FlagsAddr     kernel.Addr `k:"&flags"`
	GroupStop     int32       `k:"group_stop_count"`
	GroupStopAddr kernel.Addr `k:"&group_stop_count"`
	ExitCodeAddr  kernel.Addr `k:"&group_exit_code"`

	Pending      uint64      `k:"shared_pending.signal"`
	PendingAddr  kernel.Addr `k:"&shared_pending.signal"`
	PendingFirst kernel.Addr `k:"shared_pending.list.next"`
	PendingHead  kernel.Addr `k:"&shared_pending.list"`
}

type sighandWords struct {
	SigLock uint64      `k:"siglock.rlock.raw_lock|siglock.lock.owner"`
	SigWait uint32      `k:"siglock.lock.wait_lock.raw_lock,opt"`
	Action  kernel.Addr `k:"&action"`
}

type kSigaction struct {
	Handler uint64 `k:"sa.sa_handler"`
}

// sigqueue is include/linux/signal_types.h:sigqueue, whose first member is its link.
type sigqueue struct {
	Next      kernel.Addr `k:"list.next"`
	Signo     int32       `k:"info.si_signo"`
	SignoAddr kernel.Addr `k:"&info.si_signo"`
}

type rqWords struct {
	Lock uint32      `k:"__lock.raw_lock|lock.raw_lock"`
	Curr kernel.Addr `k:"curr"`
	Idle kernel.Addr `k:"idle"`
}

// sendSignalWork is kernel/trace/bpf_trace.c:send_signal_irq_work.
type sendSignalWork struct {
	Next       kernel.Addr `k:"&irq_work.node.llist.next"`
	Flags      kernel.Addr `k:"&irq_work.node.u_flags"`
	Func       kernel.Addr `k:"irq_work.func"`
	Task       kernel.Addr `k:"&task"`
	Sig        kernel.Addr `k:"&sig"`
	Type       kernel.Addr `k:"&type"`
	HasSiginfo kernel.Addr `k:"&has_siginfo,opt"`
}

type llistHead struct {
	First kernel.Addr `k:"first"`
}

// irqWork is include/linux/irq_work.h:irq_work.
type irqWork struct {
	Next  kernel.Addr `k:"&node.llist.next"`
	Flags kernel.Addr `k:"&node.u_flags"`
	Func  kernel.Addr `k:"&func"`
}

// wakeQHead is include/linux/sched/wake_q.h:wake_q_head.
type wakeQHead struct {
	First kernel.Addr `k:"&first"`
	Last  kernel.Addr `k:"&lastp"`
}

// callSingleData is include/linux/smp.h:__call_single_data.
type callSingleData struct {
	Next  kernel.Addr `k:"&node.llist.next"`
	Flags kernel.Addr `k:"&node.u_flags"`
	Func  kernel.Addr `k:"&func"`
	Info  kernel.Addr `k:"&info"`
}

// processTimer is kernel/time/timer.c:process_timer.
type processTimer struct {
	Next     kernel.Addr `k:"&timer.entry.next"`
	PPrev    kernel.Addr `k:"&timer.entry.pprev"`
	Expires  kernel.Addr `k:"&timer.expires"`
	Function kernel.Addr `k:"&timer.function"`
	Flags    kernel.Addr `k:"&timer.flags"`
	Task     kernel.Addr `k:"&task"`
}

type timerBase struct {
	Lock          uint32      `k:"lock.raw_lock"`
	Running       kernel.Addr `k:"running_timer"`
	CLK           uint64      `k:"clk"`
	NextExpiry    kernel.Addr `k:"&next_expiry"`
	Recalc        kernel.Addr `k:"&next_expiry_recalc"`
	TimersPending kernel.Addr `k:"&timers_pending,opt"`
	PendingMap    kernel.Addr `k:"&pending_map"`
	Vectors       kernel.Addr `k:"&vectors"`
}

var (
	taskLayout      = kernel.LayoutOf[taskWords]("task_struct")
	signalLayout    = kernel.LayoutOf[signalWords]("signal_struct")
	sighandLayout   = kernel.LayoutOf[sighandWords]("sighand_struct")
	sigactionLayout = kernel.LayoutOf[kSigaction]("k_sigaction")
	sigqueueLayout  = kernel.LayoutOf[sigqueue]("sigqueue")
	rqLayout        = kernel.LayoutOf[rqWords]("rq")
	workLayout      = kernel.LayoutOf[sendSignalWork]("send_signal_irq_work")
	llistLayout     = kernel.LayoutOf[llistHead]("llist_head")
	irqWorkLayout   = kernel.LayoutOf[irqWork]("irq_work")
	wakeQLayout     = kernel.LayoutOf[wakeQHead]("wake_q_head")
	csdLayout       = kernel.LayoutOf[callSingleData]("__call_single_data")
	timerLayout     = kernel.LayoutOf[processTimer]("process_timer")
	timerBaseLayout = kernel.LayoutOf[timerBase]("timer_base")
)

// widthOf returns the size in bytes of the first of the members that exists.
func widthOf(k *kernel.Kernel, cname string, members ...string) (int, error) {
	c, err := k.Types().Struct(cname)
	if err != nil {
		return 0, err
	}
	for _, m := range members {
		f, lookupErr := c.Lookup(m)
		if lookupErr != nil {
			err = lookupErr
			continue
		}
		n, err := f.Type.SizeOf()
		if err != nil {
			return 0, err
		}
		if n != 4 && n != 8 {
			return 0, fmt.Errorf("%w: %s.%s has %d bytes", ErrUnsupported, cname, m, n)
		}
		return n, nil
	}
	return 0, err
}

// thread is one thread of the target with the words that may be changed.
type thread struct {
	*kernel.Task
	w taskWords
}

// asleep says whether the thread is off every CPU, in a sleep that a wake-up of
// class mask ends.
func (t *thread) asleep(mask uint64) bool {
	return t.OnCPU == 0 && t.State&mask != 0 && t.State&kernel.TaskWaking == 0 && (t.OnRQ == 0 || t.w.Delayed)
}

// canWake says whether a wake-up of class mask does anything to the thread. It may
// still be on its CPU: past the point where it looks for signals, before the one
// where it has gone to sleep. The kernel's wake-up knows how to wait for that.
func (t *thread) canWake(mask uint64) bool {
	return t.sleep()&mask != 0 && t.State&kernel.TaskWaking == 0
}

// sleep is the thread's state without regard to a spinlock of PREEMPT_RT that it
// sleeps for in between. The kernel's wake-up leaves such a thread asleep and changes
// the state that it returns to (kernel/sched/core.c:ttwu_state_match). Before 5.15 the
// sleep for a spinlock was uninterruptible, and only Saved tells the difference.
func (t *thread) sleep() uint64 {
	if t.State&kernel.TaskRTLockWait != 0 || t.State == kernel.TaskUninterruptible && t.w.Saved != 0 {
		return t.w.Saved
	}
	return t.State
}

// path names a member of the thread for people.
func (t *thread) path(member string) string {
	return memberPath("task_struct(", t.Task, member)
}

// memberPath is made for each word, while the guest stands still: formatting would be a
// quarter of that time.
func memberPath(of string, t *kernel.Task, member string) string {
	return of + strconv.Itoa(int(t.PID)) + " " + t.Comm + ")." + member
}

// maxThreads bounds a process: more than any kernel's default threads-max on the
// guests that this can be asked about.
const maxThreads = 1 << 16

// threadsOf reads all threads of t's process, the leader first. Threads that can
// no longer take a signal are left out.
func threadsOf(t *kernel.Task) ([]*thread, error) {
	var out []*thread
	for u, err := range t.Threads() {
		if err != nil {
			return nil, err
		}
		if len(out) >= maxThreads {
			return nil, fmt.Errorf("threads of pid %d: %w", t.TGID, kernel.ErrLimit)
		}
		if u.ExitState != 0 || u.Flags&kernel.PFExiting != 0 {
			continue
		}
		w, err := taskLayout.Load(t.Kernel(), u.Addr)
		if err != nil {
			return nil, err
		}
		out = append(out, &thread{u, w})
	}
	return out, nil
}
