package kernel

import (
	"encoding/binary"
	"time"
)

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
		return k.searchTimekeeper(err)
	}
	// struct { seqcount_raw_spinlock_t seq; struct timekeeper timekeeper; } with
	// timekeeper aligned to 8. The counter of a realtime kernel knows its lock.
	seq, err := k.types.Struct("seqcount_raw_spinlock")
	if err != nil {
		return 0, err
	}
	return a.Add((seq.Size + 7) &^ 7), nil
}

// searchTimekeeper finds the timekeeper of a kernel without symbols of variables by
// its content: the same clock source twice, which has the mask that is kept beside it,
// and a time of day. There is a copy of it, which is not initialised in the image and
// comes later; it says the same. missing is the error if there is none.
func (k *Kernel) searchTimekeeper(missing error) (a Addr, err error) {
	if a, ok := k.lazy.timekeeper.Load().(Addr); ok {
		return a, nil
	}
	var at tkClock
	for path, off := range map[string]*int{
		"tkr_mono.clock": &at.mono, "tkr_mono.mask": &at.mask, "tkr_raw.clock": &at.raw, "xtime_sec": &at.seconds,
	} {
		if *off, err = k.offsetOf("timekeeper", path); err != nil {
			return 0, err
		}
	}
	if at.clock, err = k.offsetOf("clocksource", "mask"); err != nil {
		return 0, err
	}
	const chunk = 1 << 20
	image := k.linear[len(k.linear)-1]
	distance := at.raw - at.mono
	for begin := image.start; begin < image.end; begin += chunk {
		b, err := k.bytesAt(begin, int(min(chunk+Addr(distance)+8, image.end-begin)), nil)
		if err != nil {
			continue // initialisation code that is gone
		}
		for i := 0; i+distance+8 <= len(b) && i < chunk; i += 8 {
			w := Addr(binary.LittleEndian.Uint64(b[i:]))
			if !w.IsKernel() || w != Addr(binary.LittleEndian.Uint64(b[i+distance:])) {
				continue
			}
			if a := begin.Add(i - at.mono); k.isTimekeeper(a, &at) {
				k.lazy.timekeeper.Store(a)
				return a, nil
			}
		}
	}
	return 0, missing
}

// tkClock are the offsets in struct timekeeper of what one is known by, and that of
// the mask in struct clocksource.
type tkClock struct{ mono, mask, raw, seconds, clock int }

// isTimekeeper says whether what is at a makes sense as one: its two clock sources are
// known to be equal.
func (k *Kernel) isTimekeeper(a Addr, at *tkClock) bool {
	const least, most = 946_684_800, 4_102_444_800 // 2000, 2100
	now, err := k.ReadU64(a.Add(at.seconds))
	if err != nil || now < least || now > most {
		return false
	}
	clock, err := k.ReadAddr(a.Add(at.mono))
	if err != nil {
		return false
	}
	mask, err := k.ReadU64(a.Add(at.mask))
	if err != nil || mask&(mask+1) != 0 || mask>>16 == 0 {
		return false
	}
	its, err := k.ReadU64(clock.Add(at.clock))
	return err == nil && its == mask
}
