package kernel

import (
	"errors"
	"math"
	"time"
)

// CPUTimes is what a CPU has spent its time on since the guest booted.
type CPUTimes struct {
	User, Nice, System  time.Duration
	Idle, IOWait        time.Duration
	IRQ, SoftIRQ, Steal time.Duration
	Guest, GuestNice    time.Duration // also in User and Nice
}

type kernelCPUStat struct {
	Stat [10]uint64 `k:"cpustat"` // enum cpu_usage_stat, ns
}

type tickSched struct {
	IdleSleeptime   int64  `k:"idle_sleeptime,opt"`
	IOWaitSleeptime int64  `k:"iowait_sleeptime,opt"`
	IdleEntry       int64  `k:"idle_entrytime,opt"`
	IdleActive      bool   `k:"idle_active,opt"`
	Flags           uint64 `k:"flags,opt"` // since 6.9
}

var (
	kernelCPUStatLayout = LayoutOf[kernelCPUStat]("kernel_cpustat")
	tickSchedLayout     = LayoutOf[tickSched]("tick_sched")
)

// CPUTimes returns what a CPU has spent its time on: its line of /proc/stat, not
// rounded to ticks. Of a CPU that is idle at the moment, the time since the clock was
// last updated is missing (see Clocks). Source: fs/proc/stat.c:show_stat.
func (k *Kernel) CPUTimes(cpu int) (CPUTimes, error) {
	a, err := k.PerCPU("kernel_cpustat", cpu)
	if err != nil {
		return CPUTimes{}, err
	}
	s, err := kernelCPUStatLayout.Load(k, a)
	if err != nil {
		return CPUTimes{}, err
	}
	d := func(i int) time.Duration { return time.Duration(s.Stat[i]) }
	c := CPUTimes{
		User: d(0), Nice: d(1), System: d(2), SoftIRQ: d(3), IRQ: d(4), Idle: d(5), IOWait: d(6),
		Steal: d(7), Guest: d(8), GuestNice: d(9),
	}
	return c, k.addIdle(&c, cpu)
}

// addIdle replaces idle times by those of a kernel that stops its tick when idle and
// measures them then. Source: kernel/time/tick-sched.c:get_cpu_sleep_time_us.
func (k *Kernel) addIdle(c *CPUTimes, cpu int) error {
	a, err := k.tickSched(cpu)
	if err != nil {
		return nil //nolint:nilerr // a kernel that always ticks
	}
	if _, err := k.offsetOf("tick_sched", "idle_sleeptime"); err != nil {
		return nil //nolint:nilerr // kernel_cpustat has it all
	}
	ts, err := tickSchedLayout.Load(k, a)
	if err != nil {
		return err
	}
	if ts.IdleSleeptime == 0 && ts.IOWaitSleeptime == 0 {
		return nil // booted with nohz=off
	}
	c.Idle, c.IOWait = time.Duration(ts.IdleSleeptime), time.Duration(ts.IOWaitSleeptime)
	const flagIdleActive = 1 << 2 // TS_FLAG_IDLE_ACTIVE
	if !ts.IdleActive && ts.Flags&flagIdleActive == 0 {
		return nil
	}
	now, err := k.Clocks()
	if err != nil {
		return err
	}
	rq, err := k.runQueueAddr(cpu)
	if err != nil {
		return err
	}
	off, err := k.offsetOf("rq", "nr_iowait")
	if err != nil {
		return err
	}
	waiting, err := k.ReadU32(rq.Add(off))
	if err != nil {
		return err
	}
	since := max(now.Monotonic-time.Duration(ts.IdleEntry), 0)
	if waiting > 0 {
		c.IOWait += since
	} else {
		c.Idle += since
	}
	return nil
}

// LoadAvg is what /proc/loadavg shows.
type LoadAvg struct {
	// Load is the average number of tasks that ran, could run or slept
	// uninterruptibly during the last 1, 5 and 15 minutes.
	Load     [3]float64
	Runnable int // tasks that can run now
	Threads  int // threads there are
	LastPID  PID // the last process number that was given out
}

// LoadAvg returns the guest's load. Source: fs/proc/loadavg.c:loadavg_proc_show.
func (k *Kernel) LoadAvg() (l LoadAvg, err error) {
	a, err := k.Symbol("avenrun")
	if err != nil {
		return l, err
	}
	for i := range l.Load {
		v, err := k.ReadU64(a.Add(8 * i))
		if err != nil {
			return l, err
		}
		const fixed1 = 1 << 11 // FIXED_1; the kernel rounds to hundredths so
		v += fixed1 / 200
		l.Load[i] = float64(v>>11) + float64((v&(fixed1-1))*100>>11)/100
	}
	for r, err := range k.RunQueues() {
		if err != nil {
			return l, err
		}
		l.Runnable += int(r.NrRunning)
	}
	if l.Threads, err = k.threadCount(); err != nil {
		return l, err
	}
	ns, err := k.Symbol("init_pid_ns")
	if err != nil {
		return l, err
	}
	off, err := k.offsetOf("pid_namespace", "idr.idr_next")
	if err != nil {
		return l, err
	}
	next, err := k.ReadU32(ns.Add(off))
	l.LastPID = PID(next) - 1
	return l, err
}

// threadCount returns the kernel's count of threads; they are counted if there is no
// symbol of it. Source: kernel/fork.c:nr_threads.
func (k *Kernel) threadCount() (n int, err error) {
	threads, err := k.symbolU32("nr_threads")
	if !errors.Is(err, ErrNoSymbol) {
		return int(min(threads, math.MaxInt32)), err
	}
	for t, err := range k.Tasks() {
		if err != nil {
			return n, err
		}
		for _, err := range t.Threads() {
			if err != nil {
				return n, err
			}
			n++
		}
	}
	return n, nil
}

// symbolU32 returns a global variable of 32 bits.
func (k *Kernel) symbolU32(name string) (uint32, error) {
	a, err := k.Symbol(name)
	if err != nil {
		return 0, err
	}
	return k.ReadU32(a)
}

// KernelStat are counters since the guest booted, from /proc/stat.
type KernelStat struct {
	ContextSwitches uint64
	Forks           uint64    // processes and threads made
	BootTime        time.Time // as the guest's clock had it
	Uptime          time.Duration
}

// KernelStat returns what the kernel counts for the whole machine. Uptime is as of
// the last update of the clock: see Clocks. The number of forks has no symbol in a
// kernel that has none of variables: the error then wraps ErrNoSymbol, and the rest is
// returned with it. Source: fs/proc/stat.c:show_stat.
func (k *Kernel) KernelStat() (s KernelStat, err error) {
	for r, err := range k.RunQueues() {
		if err != nil {
			return s, err
		}
		s.ContextSwitches += r.NrSwitches
	}
	c, err := k.Clocks()
	if err != nil {
		return s, err
	}
	s.BootTime = time.Unix(0, int64(c.Real-c.Boot))
	s.Uptime = c.Monotonic + c.Boot
	forks, err := k.Symbol("total_forks")
	if err != nil {
		return s, err
	}
	s.Forks, err = k.ReadU64(forks)
	return s, err
}
