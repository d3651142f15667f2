package checkpoint

import (
	"fmt"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/timer"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// tenYears stands in for "never again". CRIU before 4.1 drops a timer whose
// interval is 0; with such an interval it is kept, and only getitimer tells.
const tenYears = 10 * 365 * 24 * time.Hour

// timers encodes the interval and POSIX timers of a process with the time they
// have left.
func (c *collector) timers(t *kernel.Task) (*timer.TaskTimersEntry, error) {
	r, v, p, err := t.ITimers(c.now)
	if err != nil {
		return nil, err
	}
	if r.Value == 0 {
		// The kernel starts it again when the program takes its SIGALRM, which is
		// still pending; an interval of 0 says that it is not set at all.
		r.Value = r.Interval
	}
	for _, t := range []*kernel.ITimer{&v, &p} {
		if t.Value == 0 {
			t.Interval = 0 // a disarmed timer; CRIU would arm it with its interval
		}
	}
	e := &timer.TaskTimersEntry{Real: c.itimer("ITIMER_REAL", r), Virt: c.itimer("ITIMER_VIRTUAL", v), Prof: c.itimer("ITIMER_PROF", p)}
	posix, err := t.PosixTimers(c.now)
	if err != nil {
		return nil, err
	}
	for _, p := range posix {
		if p.Unsupported != "" {
			c.issues.refuse(fmt.Sprintf("timer %d", p.ID), "%s", p.Unsupported)
			continue
		}
		isec, insec := split(p.Interval, time.Nanosecond)
		vsec, vnsec := split(p.Value, time.Nanosecond)
		pe := &timer.PosixTimerEntry{
			ItId: new(uint32(p.ID)), ClockId: new(uint32(p.Clock)), SiSigno: new(uint32(p.Signo)),
			ItSigevNotify: new(uint32(p.Notify)), SivalPtr: &p.SigValue, Overrun: new(uint32(p.Overrun)),
			Isec: isec, Insec: insec, Vsec: vsec, Vnsec: vnsec,
		}
		if p.NotifyTID != 0 {
			pe.NotifyThreadId = new(int32(p.NotifyTID))
		}
		e.Posix = append(e.Posix, pe)
	}
	return e, nil
}

func (c *collector) itimer(name string, t kernel.ITimer) *timer.ItimerEntry {
	if t.Value != 0 && t.Interval == 0 && !c.opts.OneShotTimers {
		c.issues.approximate(name, "fires once; given an interval of ten years, as CRIU before 4.1 would drop it")
		t.Interval = tenYears
	}
	isec, iusec := split(t.Interval, time.Microsecond)
	vsec, vusec := split(max(t.Value, 0), time.Microsecond)
	return &timer.ItimerEntry{Isec: isec, Iusec: iusec, Vsec: vsec, Vusec: vusec}
}

// split returns whole seconds and the rest in the given unit.
func split(d, unit time.Duration) (sec, rest *uint64) {
	return new(uint64(d / time.Second)), new(uint64(d % time.Second / unit))
}
