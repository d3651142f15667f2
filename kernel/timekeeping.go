package kernel

import "time"

type tkReadBase struct {
	Mult      uint32 `k:"mult"`
	Shift     uint32 `k:"shift"`
	XTimeNsec uint64 `k:"xtime_nsec"`
	Base      int64  `k:"base"`
}

type timekeeper struct {
	Mono     Addr  `k:"&tkr_mono"`
	OffsReal int64 `k:"offs_real"`
	OffsBoot int64 `k:"offs_boot"`
	OffsTAI  int64 `k:"offs_tai"`
}

var (
	tkReadBaseLayout = LayoutOf[tkReadBase]("tk_read_base")
	timekeeperLayout = LayoutOf[timekeeper]("timekeeper")
)

// Clocks are the guest's clocks at one moment.
type Clocks struct {
	Monotonic time.Duration
	// What to add to Monotonic for the others.
	Real, Boot, TAI time.Duration
}

// Clocks returns the guest's clocks as of its last timekeeping update: at most a
// tick ago on a busy CPU, and since the guest last woke on an idle one. The
// cycle counter that would tell the rest cannot be read from outside. Source:
// kernel/time/timekeeping.c:ktime_get.
func (k *Kernel) Clocks() (Clocks, error) {
	a, err := k.timekeeperAddr()
	if err != nil {
		return Clocks{}, err
	}
	tk, err := timekeeperLayout.Load(k, a)
	if err != nil {
		return Clocks{}, err
	}
	r, err := tkReadBaseLayout.Load(k, tk.Mono)
	if err != nil {
		return Clocks{}, err
	}
	if r.Shift > 63 {
		return Clocks{}, corrupt(a, "timekeeper", "shift %d", r.Shift)
	}
	return Clocks{
		Monotonic: time.Duration(r.Base) + time.Duration(r.XTimeNsec>>r.Shift),
		Real:      time.Duration(tk.OffsReal),
		Boot:      time.Duration(tk.OffsBoot),
		TAI:       time.Duration(tk.OffsTAI),
	}, nil
}

// timekeeperAddr finds the core timekeeper, which 6.13 made an array of one per
// clock family and whose wrapper is an anonymous struct that BTF cannot name: it
// begins with a sequence counter, aligned to the cache line after it.
func (k *Kernel) timekeeperAddr() (Addr, error) {
	for _, c := range []struct {
		symbol string
		cname  string
	}{{"timekeeper_data", "tk_data"}, {"tk_core", "tk_data"}} {
		a, err := k.Symbol(c.symbol)
		if err != nil {
			continue
		}
		if off, err := k.offsetOf(c.cname, "timekeeper"); err == nil {
			return a.Add(off), nil
		}
	}
	a, err := k.Symbol("tk_core")
	if err != nil {
		return 0, err
	}
	// struct { seqcount_raw_spinlock_t seq; struct timekeeper timekeeper; } with
	// timekeeper aligned to 8. The counter of a realtime kernel knows its lock.
	seq, err := k.types.Struct("seqcount_raw_spinlock")
	if err != nil {
		return 0, err
	}
	return a.Add((seq.Size + 7) &^ 7), nil
}
