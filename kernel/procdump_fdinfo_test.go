package kernel_test

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// compareFDInfo compares what fdinfo tells of special files.
func compareFDInfo(d differences, at func(string) string, f *kernel.File, info string) {
	hex := func(key string) uint64 {
		v, err := strconv.ParseUint(field(info, key), 16, 64)
		if err != nil {
			d.add("%s: the guest says %q", at(key), field(info, key))
		}
		return v
	}
	switch f.Kind {
	case kernel.KindEventFD:
		e, err := f.EventFD()
		if err != nil {
			d.add("%s: %v", at("eventfd"), err)
			return
		}
		d.equal(at("eventfd-count"), e.Count, hex("eventfd-count"))
		d.equal(at("eventfd-id"), e.ID, field(info, "eventfd-id"))
	case kernel.KindSignalFD:
		mask, err := f.SignalFD()
		if err != nil {
			d.add("%s: %v", at("signalfd"), err)
		}
		d.equal(at("sigmask"), mask, hex("sigmask"))
	case kernel.KindEpoll:
		items, err := f.Epoll()
		if err != nil {
			d.add("%s: %v", at("epoll"), err)
		}
		var got, want []string
		for _, it := range items {
			got = append(got, fmt.Sprintf("%d %x %x", it.FD, it.Events, it.Data))
		}
		for line := range strings.Lines(info) {
			if f := strings.Fields(line); f[0] == "tfd:" {
				want = append(want, fmt.Sprintf("%s %s %s", f[1], f[3], f[5]))
			}
		}
		d.equal(at("tfd"), got, want)
	case kernel.KindTimerFD:
		compareTimerFD(d, at, f, info)
	}
}

func compareTimerFD(d differences, at func(string) string, f *kernel.File, info string) {
	now, err := f.Kernel().Clocks()
	if err != nil {
		d.add("%s: %v", at("clocks"), err)
	}
	t, err := f.TimerFD(now)
	if err != nil {
		d.add("%s: %v", at("timerfd"), err)
		return
	}
	d.equal(at("clockid"), t.Clock, field(info, "clockid"))
	d.equal(at("ticks"), t.Ticks, field(info, "ticks"))
	d.equal(at("settime flags"), fmt.Sprintf("0%o", t.SettimeFlags), field(info, "settime flags"))
	seconds := func(key string) float64 {
		var sec, nsec float64
		if _, err := fmt.Sscanf(field(info, key), "(%f, %f)", &sec, &nsec); err != nil {
			d.add("%s: the guest says %q", at(key), field(info, key))
		}
		return sec + nsec/1e9
	}
	d.equal(at("it_interval"), t.Interval.Seconds(), seconds("it_interval"))
	// The dump was made before; time goes on.
	if was, is := seconds("it_value"), t.Value.Seconds(); is > was+1 || is < was-timerSlack || was > 0 != (is > 0) {
		d.add("%s: %v s left, the guest said %v s", at("it_value"), is, was)
	}
}

// timerSlack is how long ago a dump may have been made, in seconds. The timers of
// the zoo run longer.
const timerSlack = 900
