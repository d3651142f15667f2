package kernel

import (
	"fmt"
	"time"
)

type clocksource struct {
	Mult  uint32 `k:"mult"`
	Shift uint32 `k:"shift"`
}

var clocksourceLayout = LayoutOf[clocksource]("clocksource")

// tick returns the length of a jiffy, 1/CONFIG_HZ seconds. No variable holds HZ;
// the clock source that counts jiffies says how long one is. Source:
// kernel/time/jiffies.c:clocksource_jiffies.
func (k *Kernel) tick() (time.Duration, error) {
	a, err := k.jiffiesClock()
	if err != nil {
		return 0, err
	}
	c, err := clocksourceLayout.Load(k, a)
	if err != nil {
		return 0, err
	}
	if c.Shift > 31 || c.Mult>>c.Shift == 0 {
		return 0, corrupt(a, "clocksource_jiffies", "mult %d, shift %d", c.Mult, c.Shift)
	}
	// HZ is a whole number; TICK_NSEC is rounded.
	ns := time.Duration(c.Mult >> c.Shift)
	hz := (time.Second + ns/2) / ns
	if hz < 1 || hz > 10000 {
		return 0, corrupt(a, "clocksource_jiffies", "%v a jiffy", ns)
	}
	return time.Second / hz, nil
}

// jiffiesClock returns the address of the clock source that counts jiffies. A kernel
// without symbols of variables has it in one list with the clock source in use.
func (k *Kernel) jiffiesClock() (Addr, error) {
	a, missing := k.Symbol("clocksource_jiffies")
	if missing == nil {
		return a, nil
	}
	tk, err := k.timekeeperAddr()
	if err != nil {
		return 0, err
	}
	var at struct{ clock, list, name int }
	for _, m := range []struct {
		cname, path string
		off         *int
	}{{"timekeeper", "tkr_mono.clock", &at.clock}, {"clocksource", "list", &at.list}, {"clocksource", "name", &at.name}} {
		if *m.off, err = k.offsetOf(m.cname, m.path); err != nil {
			return 0, err
		}
	}
	used, err := k.ReadAddr(tk.Add(at.clock))
	if err != nil {
		return 0, err
	}
	// The walk begins in the middle of the list: its head is no clock source, and
	// what would be its name leads nowhere or to another one.
	for node, err := range k.List(used.Add(at.list)) {
		if err != nil {
			return 0, fmt.Errorf("clock sources: %w", err)
		}
		name, err := k.ReadAddr(node.Add(at.name - at.list))
		if err != nil {
			continue
		}
		if s, err := k.CString(name, len("jiffies")+1); err == nil && s == "jiffies" {
			return node.Add(-at.list), nil
		}
	}
	return 0, missing
}

// maxJiffies is MAX_SCHEDULE_TIMEOUT: no limit.
const maxJiffies = 1<<63 - 1

// jiffiesDuration converts a number of jiffies; negative for maxJiffies and more
// than a Duration holds.
func jiffiesDuration(j int64, tick time.Duration) time.Duration {
	if j < 0 || j > int64(maxJiffies/tick) {
		return -1
	}
	return time.Duration(j) * tick
}

// jiffies returns the kernel's count of ticks. Source: kernel/time/timer.c:jiffies_64.
func (k *Kernel) jiffies() (uint64, error) {
	a, err := k.Symbol("jiffies_64")
	if err != nil {
		return 0, err
	}
	return k.ReadU64(a)
}
