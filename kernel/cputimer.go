package kernel

import "time"

// CPU clocks: the bits of a clock number below the (negated) process number, and
// the fixed numbers of a caller's own clocks (include/linux/posix-timers.h).
const (
	clockProcessCPU = 2
	clockThreadCPU  = 3

	cpuclockProf      = 0
	cpuclockVirt      = 1
	cpuclockSched     = 2
	cpuclockPerThread = 4
)

type processCPU struct {
	Utime int64 `k:"cputimer.cputime_atomic.utime.counter"`
	Stime int64 `k:"cputimer.cputime_atomic.stime.counter"`
	Exec  int64 `k:"cputimer.cputime_atomic.sum_exec_runtime.counter"`
}

type threadCPU struct {
	Utime int64 `k:"utime"`
	Stime int64 `k:"stime"`
	Exec  int64 `k:"se.sum_exec_runtime"`
}

var (
	processCPULayout = LayoutOf[processCPU]("signal_struct")
	threadCPULayout  = LayoutOf[threadCPU]("task_struct")
)

// cpuTimerValue finds the CPU time that is left of a timer of a CPU clock, as of
// the kernel's last accounting of its process or thread. A timer by the clock of
// another process, or of a thread that a restored process could not name, is
// unsupported. Source: kernel/time/posix-cpu-timers.c:__posix_cpu_timer_get.
func (t *Task) cpuTimerValue(p *PosixTimer, raw *kItimer) error {
	perThread, which, ok := cpuClock(raw.Clock)
	if !ok {
		p.Unsupported = "the clock of the timer is a device"
		return nil
	}
	whose, err := t.k.PIDNumber(raw.CPUPID)
	if err != nil {
		return err
	}
	thread, err := t.threadOf(whose)
	switch {
	case err != nil:
		return err
	case thread == nil:
		p.Unsupported = "the timer runs by the CPU time of another process"
		return nil
	case perThread && ownClock(raw.Clock) && whose != t.TGID:
		p.Unsupported = "the timer runs by the CPU time of a thread that is not the first"
		return nil
	case raw.CPUNode == 0:
		return nil
	}
	var c threadCPU
	if perThread {
		c, err = threadCPULayout.Load(t.k, thread.Addr)
	} else {
		var all processCPU
		all, err = processCPULayout.Load(t.k, t.Signal)
		c = threadCPU(all)
	}
	if err != nil {
		return err
	}
	at := c.Exec
	switch which {
	case cpuclockProf:
		at = c.Utime + c.Stime
	case cpuclockVirt:
		at = c.Utime
	}
	p.Value = atLeastDue(time.Duration(raw.CPUNode - at))
	if p.Interval > 0 {
		p.Value = untilNext(time.Duration(raw.CPUNode), time.Duration(at), p.Interval)
	}
	return nil
}

// cpuClock says what a clock number measures.
func cpuClock(clock int32) (perThread bool, which int32, ok bool) {
	switch {
	case clock == clockProcessCPU:
		return false, cpuclockSched, true
	case clock == clockThreadCPU:
		return true, cpuclockSched, true
	case clock < 0:
		return clock&cpuclockPerThread != 0, clock & 3, clock&3 <= cpuclockSched
	}
	return false, 0, false
}

// ownClock says whether a CPU clock is that of whoever asks.
func ownClock(clock int32) bool { return clock >= 0 || ^(clock>>3) == 0 }

// threadOf returns the thread of t's process that has a number in the initial pid
// namespace, nil if none has.
func (t *Task) threadOf(tid PID) (*Task, error) {
	for u, err := range t.Threads() {
		if err != nil {
			return nil, err
		}
		if u.PID == tid {
			return u, nil
		}
	}
	return nil, nil
}
