package kernel

import "time"

// TimerFD is the state of a file of KindTimerFD.
type TimerFD struct {
	Clock        int32  // CLOCK_*
	Ticks        uint64 // expirations that nobody has read
	SettimeFlags uint32 // of timerfd_settime: 1 is TFD_TIMER_ABSTIME
	Interval     time.Duration
	Value        time.Duration // time left; 0 if not armed
}

type timerfdCtx struct {
	Timer    Addr   `k:"&t"` // union of hrtimer and alarm
	Interval int64  `k:"tintv"`
	Ticks    uint64 `k:"ticks"`
	Clock    int32  `k:"clockid"`
	Expired  bool   `k:"expired"`
	Flags    uint16 `k:"settime_flags"`
}

type alarm struct {
	Expires int64  `k:"node.expires"`
	Type    uint32 `k:"type"`
	State   uint32 `k:"state"`
}

type hrtimerBase struct {
	Base Addr `k:"base"`
}

type hrtimerClockBase struct {
	Clock int32 `k:"clockid"`
}

var (
	timerfdLayout          = LayoutOf[timerfdCtx]("timerfd_ctx")
	alarmLayout            = LayoutOf[alarm]("alarm")
	hrtimerBaseLayout      = LayoutOf[hrtimerBase]("hrtimer")
	hrtimerClockBaseLayout = LayoutOf[hrtimerClockBase]("hrtimer_clock_base")
)

const (
	clockRealtimeAlarm = 8
	clockBoottimeAlarm = 9
)

// TimerFD returns the state of a timerfd as of the moment now, as timerfd_gettime
// would leave it: of an interval timer that fired and was not read, the missed
// expirations are in Ticks and Value leads to the next one. Errors: ErrWrongKind,
// *PathError. Source: fs/timerfd.c:do_timerfd_gettime.
func (f *File) TimerFD(now Clocks) (*TimerFD, error) {
	if f.Kind != KindTimerFD {
		return nil, f.wrongKind("timerfd")
	}
	c, err := timerfdLayout.Load(f.k, f.Private)
	if err != nil {
		return nil, err
	}
	t := &TimerFD{Clock: c.Clock, Ticks: c.Ticks, SettimeFlags: uint32(c.Flags), Interval: time.Duration(c.Interval)}
	var expires, at time.Duration
	var armed bool
	if c.Clock == clockRealtimeAlarm || c.Clock == clockBoottimeAlarm {
		expires, at, armed, err = f.k.alarmState(c.Timer, now)
	} else {
		expires, at, armed, err = f.k.hrtimerState(c.Timer, now)
	}
	switch {
	case err != nil:
		return nil, err
	case armed:
		t.Value = atLeastDue(expires - at)
	case c.Expired && t.Interval > 0 && at >= expires:
		missed := (at - expires) / t.Interval
		t.Ticks += uint64(missed)
		t.Value = atLeastDue(expires + (missed+1)*t.Interval - at)
	}
	return t, nil
}

// hrtimerState returns when the hrtimer at a expires, what its clock shows now, and
// whether it is queued. The clock is that of its base: relative timers of
// CLOCK_REALTIME run by CLOCK_MONOTONIC. Source: kernel/time/hrtimer.c:
// __hrtimer_init.
func (k *Kernel) hrtimerState(a Addr, now Clocks) (expires, at time.Duration, armed bool, err error) {
	h, err := hrtimerLayout.Load(k, a)
	if err != nil {
		return 0, 0, false, err
	}
	b, err := hrtimerBaseLayout.Load(k, a)
	if err != nil || b.Base == 0 {
		return 0, 0, false, err // never set up
	}
	c, err := hrtimerClockBaseLayout.Load(k, b.Base)
	if err != nil {
		return 0, 0, false, err
	}
	at = now.Monotonic
	switch c.Clock {
	case clockMonotonic:
	case clockRealtime:
		at += now.Real
	case clockBoottime:
		at += now.Boot
	case clockTAI:
		at += now.TAI
	default:
		return 0, 0, false, corrupt(b.Base, "hrtimer_clock_base", "clock %d", c.Clock)
	}
	return time.Duration(h.Expires), at, h.armed(), nil
}

// alarmState is hrtimerState for a struct alarm. Source: kernel/time/alarmtimer.c:
// alarm_expires_remaining.
func (k *Kernel) alarmState(a Addr, now Clocks) (expires, at time.Duration, armed bool, err error) {
	al, err := alarmLayout.Load(k, a)
	if err != nil {
		return 0, 0, false, err
	}
	at = now.Monotonic + now.Real
	if al.Type == 1 { // ALARM_BOOTTIME
		at = now.Monotonic + now.Boot
	}
	return time.Duration(al.Expires), at, al.State&1 != 0, nil
}
