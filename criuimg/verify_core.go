package criuimg

import (
	"strconv"

	core_x86 "github.com/checkpoint-restore/go-criu/v8/crit/images/core-x86"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/creds"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/siginfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timer"
)

const (
	sigactions   = 62 // all signals but SIGKILL and SIGSTOP
	rlimits      = 16 // RLIM_NLIMITS
	rlimitNofile = 7
	siginfoSize  = 128
	commSize     = 15
)

func utoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// leaderCore checks what only the core image of a process holds.
func (v *verifier) leaderCore(t *task) {
	name, tc := Core.FileName(uint64(t.e.GetPid())), t.core.GetTc()
	if t.core.GetMtype() != criu_core.CoreEntry_X86_64 {
		v.errorf(name, "mtype is %v, this package checks and writes X86_64", t.core.GetMtype())
	}
	if tc == nil {
		v.errorf(name, "tc missing")
		return
	}
	switch s := tc.GetTaskState(); s {
	case taskAlive, taskStopped, taskDead:
	default:
		v.errorf(name, "task_state %d is none CRIU restores", s)
	}
	if len(tc.GetComm()) > commSize {
		v.warnf(name, "comm %q is longer than %d bytes", tc.GetComm(), commSize)
	}
	if !t.alive {
		return
	}
	if n := len(tc.GetSigactions()); n != sigactions {
		v.errorf(name, "%d sigactions, must be %d", n, sigactions)
	}
	v.timers(name, tc.Timers)
	if tc.Rlimits == nil {
		v.errorf(name, "tc.rlimits missing")
	} else if n := len(tc.Rlimits.GetRlimits()); n > rlimits {
		v.errorf(name, "%d rlimits, the kernel has %d", n, rlimits)
	} else if n < rlimits {
		v.warnf(name, "%d rlimits of %d: the others become those of the restorer", n, rlimits)
	}
	for i, r := range tc.Rlimits.GetRlimits() {
		if r.GetCur() > r.GetMax() {
			v.warnf(name, "rlimit %d: %d is above its maximum %d", i, r.GetCur(), r.GetMax())
		}
	}
	v.queue(name, "signals_s", tc.SignalsS)
}

func (v *verifier) timers(name string, t *timer.TaskTimersEntry) {
	if t == nil {
		v.errorf(name, "tc.timers missing")
		return
	}
	for i, it := range []*timer.ItimerEntry{t.Real, t.Virt, t.Prof} {
		if it.GetIusec() >= 1e6 || it.GetVusec() >= 1e6 || int64(it.GetIsec()) < 0 || int64(it.GetVsec()) < 0 {
			v.errorf(name, "itimer %d is out of range", i)
		}
		if it.GetIsec()|it.GetIusec() == 0 && it.GetVsec()|it.GetVusec() != 0 {
			v.warnf(name, "itimer %d has no interval: CRIU before 4.1 loses it", i)
		}
	}
	for _, p := range t.GetPosix() {
		if p.GetInsec() >= 1e9 || p.GetVnsec() >= 1e9 || int64(p.GetIsec()) < 0 || int64(p.GetVsec()) < 0 {
			v.errorf(name, "posix timer %d is out of range", p.GetItId())
		}
	}
}

func (v *verifier) queue(name, what string, q *siginfo.SignalQueueEntry) {
	for i, s := range q.GetSignals() {
		if n := len(s.GetSiginfo()); n != siginfoSize {
			v.errorf(name, "%s: signal %d has %d bytes of siginfo, must be %d", what, i, n, siginfoSize)
		}
	}
}

// threadCoreOnly: CRIU refuses threads that carry what belongs to the leader.
func (v *verifier) threadCoreOnly(tid uint32, c *criu_core.CoreEntry) {
	name := Core.FileName(uint64(tid))
	if c.Tc != nil || c.Ids != nil {
		v.errorf(name, "tc or ids present, but this thread is not a leader")
	}
	if c.GetMtype() != criu_core.CoreEntry_X86_64 {
		v.errorf(name, "mtype is %v, this package checks and writes X86_64", c.GetMtype())
	}
}

// thread checks what the core images of all threads hold.
func (v *verifier) thread(t *task, tid uint32, c *criu_core.CoreEntry) {
	name, tc := Core.FileName(uint64(tid)), c.GetThreadCore()
	if c.ThreadInfo == nil {
		v.errorf(name, "thread_info missing")
	} else {
		v.registers(t, name, c.ThreadInfo.GetGpregs())
		v.fpu(name, c.ThreadInfo.GetFpregs())
	}
	if tc == nil {
		v.errorf(name, "thread_core missing")
		return
	}
	v.creds(name, tc.Creds)
	v.queue(name, "signals_p", tc.SignalsP)
	if tc.SchedPolicy != nil && !validSched(tc) {
		v.errorf(name, "sched_policy %d with nice %d and priority %d is refused", tc.GetSchedPolicy(), tc.GetSchedNice(), tc.GetSchedPrio())
	}
	if tc.GetSeccompMode() == criu_core.SeccompMode_filter {
		v.seccomp(name, tc.GetSeccompFilter())
	}
}

// validSched is the condition of cr-restore.c:validate_sched_parm.
func validSched(tc *criu_core.ThreadCoreEntry) bool {
	const resetOnFork = 0x40000000
	if tc.GetSchedNice() < -20 || tc.GetSchedNice() > 19 {
		return false
	}
	switch tc.GetSchedPolicy() &^ resetOnFork {
	case 1, 2: // FIFO, RR
		return tc.GetSchedPrio() > 0 && tc.GetSchedPrio() < 100
	case 0, 3, 5: // OTHER, BATCH, IDLE
		return tc.GetSchedPrio() == 0
	}
	return false
}

func (v *verifier) creds(name string, c *creds.CredsEntry) {
	if c == nil {
		v.errorf(name, "thread_core.creds missing")
		return
	}
	for _, s := range []struct {
		name  string
		words []uint32
	}{{"cap_inh", c.CapInh}, {"cap_prm", c.CapPrm}, {"cap_eff", c.CapEff}, {"cap_bnd", c.CapBnd}} {
		if len(s.words) != 2 {
			v.errorf(name, "%s has %d words, CRIU 3.17 takes 2", s.name, len(s.words))
		}
	}
	if n := len(c.CapAmb); n != 0 && n != 2 {
		v.errorf(name, "cap_amb has %d words, must be 2", n)
	}
}

func (v *verifier) seccomp(name string, filter uint32) {
	img := Seccomp.FileName(0)
	if !v.readable(Seccomp, 0, "a thread has filters") {
		return
	}
	e, ok := first[*seccomp.SeccompEntry](v, Seccomp, 0)
	if !ok {
		return
	}
	if v.filters[filter] {
		return
	}
	v.filters[filter] = true
	list := e.GetSeccompFilters()
	if uint64(filter) >= uint64(len(list)) {
		v.errorf(name, "seccomp_filter %d of %d", filter, len(list))
		return
	}
	for steps, i := 0, filter; ; steps++ {
		f := list[i]
		if len(f.GetFilter()) == 0 || len(f.GetFilter())%8 != 0 {
			v.errorf(img, "filter %d has %d bytes, not whole instructions", i, len(f.GetFilter()))
		}
		if f.Prev == nil {
			return
		}
		i = f.GetPrev()
		if uint64(i) >= uint64(len(list)) || steps > len(list) {
			v.errorf(img, "chain of filter %d leads to %d: out of range or in a circle", filter, i)
			return
		}
	}
}

// userFlags are the bits of RFLAGS that a user program can have set.
const userFlags = 0x254fd7

func (v *verifier) registers(t *task, name string, r *core_x86.UserX86RegsEntry) {
	cs := uint64(0x33)
	if r.GetMode() == core_x86.UserX86RegsMode_COMPAT {
		cs = 0x23
	}
	if r.GetCs() != cs {
		v.errorf(name, "cs is %#x, user mode has %#x", r.GetCs(), cs)
	}
	if r.GetFlags()&^userFlags != 0 {
		v.warnf(name, "flags %#x has bits no user program can set", r.GetFlags())
	}
	ax, orig := int64(r.GetAx()), int64(r.GetOrigAx())
	switch {
	case ax <= -512 && ax >= -516 && orig >= 0:
		v.errorf(name, "ax is %d: a syscall restart that the kernel did not finish", ax)
	case ax == -38 && orig >= 0:
		v.warnf(name, "ax is -ENOSYS after syscall %d: the thread may have been caught inside it", orig)
	}
	for _, b := range []struct {
		name string
		v    uint64
	}{{"fs_base", r.GetFsBase()}, {"gs_base", r.GetGsBase()}} {
		if b.v >= taskSize {
			v.errorf(name, "%s %#x is no user address", b.name, b.v)
		}
	}
	if t.mm == nil || v.bad[MM.FileName(uint64(t.e.GetPid()))] {
		return
	}
	if a := findVMA(t.mm, r.GetIp()); a == nil || a.GetProt()&protExec == 0 {
		v.errorf(name, "ip %#x is not in executable memory", r.GetIp())
	}
	if a := findVMA(t.mm, r.GetSp()); a == nil || a.GetProt()&protRead == 0 {
		v.warnf(name, "sp %#x is not in readable memory", r.GetSp())
	}
}

func (v *verifier) fpu(name string, f *core_x86.UserX86FpregsEntry) {
	if n := len(f.GetStSpace()); n != 32 {
		v.errorf(name, "st_space has %d words, must be 32", n)
	}
	if n := len(f.GetXmmSpace()); n != 64 {
		v.errorf(name, "xmm_space has %d words, must be 64", n)
	}
	if f.GetMxcsr()&^0xffff != 0 {
		v.errorf(name, "mxcsr %#x has reserved bits", f.GetMxcsr())
	}
	x := f.GetXsave()
	if x == nil {
		return
	}
	known := uint64(3) // x87, SSE
	for _, c := range []struct {
		name     string
		bit      uint
		got, len int
	}{
		{"ymmh_space", 2, len(x.YmmhSpace), 64},
		{"bndreg_state", 3, len(x.BndregState), 8},
		{"bndcsr_state", 4, len(x.BndcsrState), 8},
		{"opmask_reg", 5, len(x.OpmaskReg), 8},
		{"zmm_upper", 6, len(x.ZmmUpper), 64},
		{"hi16_zmm", 7, len(x.Hi16Zmm), 128},
		{"pkru", 9, len(x.Pkru), 2},
	} {
		known |= 1 << c.bit
		set := x.GetXstateBv()>>c.bit&1 != 0
		switch {
		case c.got != 0 && c.got != c.len:
			v.errorf(name, "%s has %d words, must be %d", c.name, c.got, c.len)
		case c.got == 0 && set:
			v.warnf(name, "xstate_bv announces %s, which is missing: zeros are restored", c.name)
		}
	}
	if more := x.GetXstateBv() &^ (known | 1<<8 | 1<<11 | 1<<12); more != 0 {
		v.warnf(name, "xstate_bv %#x has components CRIU does not restore: %#x", x.GetXstateBv(), more)
	}
}
