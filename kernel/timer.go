package kernel

import (
	"iter"
	"time"
)

type hrtimer struct {
	Expires  int64 `k:"node.expires"`
	State    uint8 `k:"state,opt"`
	IsQueued bool  `k:"is_queued,opt"`
}

var hrtimerLayout = LayoutOf[hrtimer]("hrtimer")

// armed says whether the timer is going to fire (HRTIMER_STATE_ENQUEUED).
func (h hrtimer) armed() bool { return h.State&1 != 0 || h.IsQueued }

// ITimer is one of the three interval timers of a process.
type ITimer struct {
	Value    time.Duration // time left; 0 if the timer is not armed
	Interval time.Duration
}

type itimers struct {
	Real     Addr     `k:"&real_timer"`
	RealIncr int64    `k:"it_real_incr"`
	Prof     [2]int64 `k:"it[0]"` // struct cpu_itimer: expires, incr
	Virt     [2]int64 `k:"it[1]"`
	Utime    int64    `k:"cputimer.cputime_atomic.utime.counter"`
	Stime    int64    `k:"cputimer.cputime_atomic.stime.counter"`
}

var itimersLayout = LayoutOf[itimers]("signal_struct")

// ITimers returns the interval timers of t's process as of the moment now:
// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF. An armed timer that is due has one
// microsecond left. Source: kernel/time/itimer.c:do_getitimer.
func (t *Task) ITimers(now Clocks) (real, virt, prof ITimer, err error) {
	s, err := itimersLayout.Load(t.k, t.Signal)
	if err != nil {
		return real, virt, prof, err
	}
	h, err := hrtimerLayout.Load(t.k, s.Real)
	if err != nil {
		return real, virt, prof, err
	}
	real.Interval = time.Duration(s.RealIncr)
	if h.armed() {
		real.Value = atLeastDue(time.Duration(h.Expires) - now.Monotonic)
	}
	virt.Interval, prof.Interval = time.Duration(s.Virt[1]), time.Duration(s.Prof[1])
	if s.Virt[0] != 0 {
		virt.Value = atLeastDue(time.Duration(s.Virt[0] - s.Utime))
	}
	if s.Prof[0] != 0 {
		prof.Value = atLeastDue(time.Duration(s.Prof[0] - s.Utime - s.Stime))
	}
	return real, virt, prof, nil
}

func atLeastDue(d time.Duration) time.Duration { return max(d, time.Microsecond) }

// PosixTimer is one timer made by timer_create(2).
type PosixTimer struct {
	ID          int32
	Clock       int32 // CLOCK_*; negative for CPU clocks
	Notify      int32 // SIGEV_*
	Signo       int32
	SigValue    uint64
	NotifyTID   PID // of SIGEV_THREAD_ID, in the innermost pid namespace
	Interval    time.Duration
	Value       time.Duration // time left; 0 if not armed
	Overrun     int64
	Unsupported string // why Value is not known, "" if it is
}

type kItimer struct {
	ID       int32 `k:"it_id"`
	Clock    int32 `k:"it_clock"`
	Notify   int32 `k:"it_sigev_notify"`
	Overrun  int64 `k:"it_overrun"`
	Interval int64 `k:"it_interval"`
	PID      Addr  `k:"it_pid"`
	SigQ     Addr  `k:"&sigq"` // of the sigqueue; before 6.13 of the pointer to it
	Real     Addr  `k:"&it.real.timer"`
	Alarm    Addr  `k:"&it.alarm.alarmtimer"`
	CPUNode  int64 `k:"it.cpu.node.expires"`
	CPUPID   Addr  `k:"it.cpu.pid,opt"` // since 5.7
	Signal   Addr  `k:"it_signal"`
}

type sigqueueTimer struct {
	Signo int32  `k:"info.si_signo"`
	Value uint64 `k:"info._sifields._timer._sigval"`
}

var (
	kItimerLayout       = LayoutOf[kItimer]("k_itimer")
	sigqueueTimerLayout = LayoutOf[sigqueueTimer]("sigqueue")
)

const (
	clockRealtime  = 0
	clockMonotonic = 1
	clockBoottime  = 7
	clockTAI       = 11

	sigevNone     = 1
	sigevThreadID = 4

	// maxPosixTimers is above any RLIMIT_SIGPENDING in use.
	maxPosixTimers = 1 << 20
)

// PosixTimers returns the POSIX timers of t's process as of the moment now.
// Source: kernel/time/posix-timers.c:common_timer_get.
func (t *Task) PosixTimers(now Clocks) ([]PosixTimer, error) {
	head, err := t.k.offsetOf("signal_struct", "posix_timers")
	if err != nil {
		return nil, err
	}
	link, err := t.k.offsetOf("k_itimer", "list")
	if err != nil {
		return nil, err
	}
	var nodes iter.Seq2[Addr, error]
	if t.k.memberIs("signal_struct", "posix_timers", "hlist_head") {
		nodes = t.k.HList(t.Signal.Add(head))
	} else {
		nodes = t.k.List(t.Signal.Add(head))
	}
	var all []PosixTimer
	for n, err := range nodes {
		if err != nil {
			return nil, err
		}
		if len(all) >= maxPosixTimers {
			return nil, &PathError{Path: "signal_struct.posix_timers", Addr: t.Signal, Err: ErrLimit}
		}
		p, err := t.posixTimer(n-Addr(link), now)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

func (t *Task) posixTimer(a Addr, now Clocks) (PosixTimer, error) {
	raw, err := kItimerLayout.Load(t.k, a)
	if err != nil {
		return PosixTimer{}, err
	}
	if !t.k.memberIs("k_itimer", "sigq", "sigqueue") {
		if raw.SigQ, err = t.k.ReadAddr(raw.SigQ); err != nil {
			return PosixTimer{}, err
		}
	}
	if raw.Signal&^1 != t.Signal {
		return PosixTimer{}, corrupt(a, "k_itimer", "belongs to %s, not %s", raw.Signal, t.Signal)
	}
	p := PosixTimer{
		ID: raw.ID, Clock: raw.Clock, Notify: raw.Notify,
		Interval: time.Duration(raw.Interval), Overrun: raw.Overrun,
	}
	if raw.SigQ != 0 {
		q, err := sigqueueTimerLayout.Load(t.k, raw.SigQ)
		if err != nil {
			return PosixTimer{}, err
		}
		p.Signo, p.SigValue = q.Signo, q.Value
	}
	if raw.Notify&sigevThreadID != 0 && raw.PID != 0 {
		nums, err := t.k.pidNumbers(raw.PID)
		if err != nil {
			return PosixTimer{}, err
		}
		p.NotifyTID = nums[len(nums)-1].PID
	}
	return p, t.posixTimerValue(&p, &raw, now)
}

// posixTimerValue finds the time that is left as timer_gettime would tell it. Timers
// that never signal are not queued, nor are those whose signal waits to be taken:
// they go on from their last expiry.
func (t *Task) posixTimerValue(p *PosixTimer, raw *kItimer, now Clocks) (err error) {
	var expires, at time.Duration
	var armed bool
	switch raw.Clock {
	case clockMonotonic, clockRealtime, clockBoottime, clockTAI:
		expires, at, armed, err = t.k.hrtimerState(raw.Real, now)
	case clockRealtimeAlarm, clockBoottimeAlarm:
		expires, at, armed, err = t.k.alarmState(raw.Alarm, now)
	default:
		return t.cpuTimerValue(p, raw)
	}
	switch {
	case err != nil:
	case armed:
		p.Value = atLeastDue(expires - at)
	case expires == 0: // never set
	case p.Interval > 0:
		p.Value = untilNext(expires, at, p.Interval)
	case raw.Notify&^sigevThreadID == sigevNone:
		p.Value = max(expires-at, 0)
	}
	return err
}

// untilNext returns the time from at to the next expiry of an interval timer.
func untilNext(expires, at, interval time.Duration) time.Duration {
	if at < expires {
		return atLeastDue(expires - at)
	}
	return atLeastDue(interval - (at-expires)%interval)
}

// memberIs says whether a member of a struct is itself a struct called want, and
// not a pointer to one or another struct.
func (k *Kernel) memberIs(cname, member, want string) bool {
	c, err := k.types.Struct(cname)
	if err != nil {
		return false
	}
	f, err := c.Lookup(member)
	if err != nil {
		return false
	}
	u, err := f.Type.Underlying()
	return err == nil && u.Name == want
}
