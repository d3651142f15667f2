package signal

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/kernel/types"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// Capabilities says what can be done to the processes of a guest. Each error is
// nil if it can, else the reason; reasons wrap ErrUnsupported, ErrReadOnly or
// ErrNoPause.
type Capabilities struct {
	Release  string
	ByKernel error // deliver through the kernel's own send_signal_work
	ByBitmap error // set pending bits and wake
	Freeze   error // hold a process invisibly
	KickIdle error // wake an idle CPU 0 at once; without, it takes up to 4 s
}

// MarshalJSON writes "yes" or the reason for each capability.
func (c *Capabilities) MarshalJSON() ([]byte, error) {
	say := func(err error) string {
		if err == nil {
			return "yes"
		}
		return err.Error()
	}
	return json.Marshal(map[string]string{
		"release": c.Release, "kernel": say(c.ByKernel),
		"bitmap": say(c.ByBitmap), "freeze": say(c.Freeze), "kick": say(c.KickIdle),
	})
}

// Probe finds out what can be done to the guest, without writing to it. The error
// is for memory that cannot be read.
func Probe(k *kernel.Kernel) (*Capabilities, error) {
	m, err := machineOf(k)
	if err != nil {
		return nil, err
	}
	caps := m.caps
	return &caps, nil
}

// place is where on CPU 0 things are, all in kernel-virtual addresses. Work goes
// to CPU 0 always: an NMI reaches no other, and the kernel moves a wake-up to the
// CPU where the task belongs by itself.
type place struct {
	rq, callQueue, lazyList, work, timerBase kernel.Addr
	lastNMIRIP, swallowNMI                   kernel.Addr
	doBPFSendSignal, wakeUpProcess           kernel.Addr
	processTimeout                           kernel.Addr
	wakeUpQ, callInterrupt                   kernel.Addr

	tifSigPending, tifNeedResched uint64 // masks
	stateWidth                    int
	dropsTask                     bool // do_bpf_send_signal ends with put_task_struct
	cfi                           bool // indirect calls check the callee's type
	rt                            bool // PREEMPT_RT: spinlocks sleep, and the lazy list is a thread's
	tracksTimers                  bool // DEBUG_OBJECTS_TIMERS: a timer that was not registered is reported
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrUnsupported, fmt.Errorf(format, args...))
}

// probe fills m.at and m.caps.
func (m *machine) probe(k *kernel.Kernel) error {
	m.caps.Release = k.Release()
	var all error
	if k.Arch() != paging.X86_64 {
		all = unsupported("%w: it is %v, and only x86-64 guests can be changed", kernel.ErrArch, k.Arch())
	}
	if all == nil {
		all = m.probeSource(k)
	}
	if all == nil {
		all = m.probeCommon(k)
	}
	// On 6.12 a signal by kernel, done in this way, has crashed the guest.
	if r := k.Release(); all == nil && m.at.rt && (!versionAtLeast(r, 6, 1) || versionAtLeast(r, 6, 2)) {
		all = unsupported("a PREEMPT_RT kernel other than 6.1")
	}
	if all != nil {
		m.caps.ByKernel, m.caps.ByBitmap, m.caps.Freeze, m.caps.KickIdle = all, all, all, all
		return nil
	}
	tif := m.probeTIF(k)
	_, cfiErr := k.Symbol("__cfi_wake_up_process")
	m.at.cfi = cfiErr == nil
	_, odebugErr := k.Symbol("timer_is_static_object")
	m.at.tracksTimers = odebugErr == nil
	m.caps.KickIdle = errors.Join(tif, m.probeKick(k))
	m.queue = errors.Join(tif, m.probeQueue(k))
	wake := errors.Join(tif, m.probeWake(k))
	m.caps.ByKernel = m.probeKernel(k)
	m.caps.ByBitmap = wake
	m.caps.Freeze = wake
	if c, err := k.Types().Struct("task_struct"); err != nil {
		return err
	} else if _, err := c.Lookup("frozen"); err != nil && wake == nil {
		m.caps.Freeze = unsupported("%w", err)
	}
	return nil
}

// probeSource asks what the memory source can do.
func (m *machine) probeSource(k *kernel.Kernel) error {
	if _, ok := k.Memory().(vmi.Writer); !ok {
		return ErrReadOnly
	}
	if _, ok := k.Memory().(vmi.Pauser); !ok {
		return ErrNoPause
	}
	return nil
}

// probeCommon checks what every strategy stands on.
func (m *machine) probeCommon(k *kernel.Kernel) error {
	lock, err := k.Types().Struct("spinlock")
	if err != nil {
		return unsupported("%w", err)
	}
	m.at.rt = sleepingLock(lock)
	if _, err := lock.Lookup("rlock.magic"); err == nil {
		return unsupported("spinlock_t of %d bytes (a lock debugging kernel)", lock.Size)
	}
	for _, l := range []interface {
		Size(*kernel.Kernel) (int, error)
	}{taskLayout, signalLayout, sighandLayout, sigactionLayout, sigqueueLayout, rqLayout, llistLayout} {
		if _, err := l.Size(k); err != nil {
			return unsupported("%w", err)
		}
	}
	if m.at.stateWidth, err = widthOf(k, "task_struct", "__state", "state"); err != nil {
		return unsupported("%w", err)
	}
	cpus, err := k.OnlineCPUs()
	if err != nil {
		return unsupported("%w", err)
	}
	if len(cpus) == 0 || cpus[0] != 0 {
		return unsupported("CPU 0 is offline")
	}
	if m.at.rq, err = k.PerCPU("runqueues", 0); err != nil {
		return unsupported("%w", err)
	}
	rq, err := rqLayout.Load(k, m.at.rq)
	if err != nil {
		return unsupported("%w", err)
	}
	if !rq.Curr.IsKernel() || !rq.Idle.IsKernel() {
		return unsupported("run queue of CPU 0 at %s makes no sense", m.at.rq)
	}
	m.at.callQueue, err = k.PerCPU("call_single_queue", 0)
	if err != nil {
		return unsupported("%w", err)
	}
	return nil
}

// sleepingLock says whether struct spinlock is one of PREEMPT_RT, an rt_mutex.
func sleepingLock(spinlock *types.Type) bool {
	_, err := spinlock.Lookup("lock.owner")
	return err == nil
}

// probeTIF finds the thread_info flag bits, which are macros: by release, checked
// against the instruction that sets one of them.
func (m *machine) probeTIF(k *kernel.Kernel) error {
	sigPending, needResched := 2, 3
	if versionAtLeast(k.Release(), 6, 18) {
		sigPending, needResched = 1, 4 // CONFIG_HAVE_GENERIC_TIF_BITS
	}
	f, err := k.Symbol("signal_wake_up_state")
	if err != nil {
		return unsupported("%w", err)
	}
	var code [192]byte // lockdep has a look at the lock before the flag is set
	n, err := k.ReadAt(code[:], f)
	if err != nil {
		return unsupported("%w", err)
	}
	inCode, ok := sigPendingFromCode(functionBody(k, f, code[:n]))
	if !ok || inCode != 1<<sigPending {
		return unsupported("signal_wake_up_state sets thread flag %#x, expected %#x for kernel %s",
			inCode, 1<<sigPending, k.Release())
	}
	m.at.tifSigPending, m.at.tifNeedResched = 1<<sigPending, 1<<needResched
	return nil
}

// sigPendingFromCode returns the byte that the first "lock orb $imm8,…" of an x86
// function sets.
func sigPendingFromCode(code []byte) (imm byte, ok bool) {
	for i := 0; i+4 <= len(code); i++ {
		if !isLock(code[i]) || code[i+1] != 0x80 || code[i+2]&0x38 != 0x08 {
			continue
		}
		n := i + 3
		switch mod, rm := code[i+2]>>6, code[i+2]&7; {
		case rm == 4:
			continue // SIB byte: not how the compiler reaches thread_info, which is first
		case mod == 0:
		case mod == 1:
			n++
		default:
			continue
		}
		if n < len(code) {
			return code[n], true
		}
	}
	return 0, false
}

// isLock recognizes a lock prefix. A kernel that runs on one CPU replaces it by a
// segment prefix without effect (arch/x86/kernel/alternative.c).
func isLock(b byte) bool { return b == 0xf0 || b == 0x3e }

// versionAtLeast compares the first two numbers of a release such as "6.1.0-50".
func versionAtLeast(release string, major, minor int) bool {
	a, rest, _ := strings.Cut(release, ".")
	b := strings.FieldsFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	x, _ := strconv.Atoi(a)
	y := 0
	if len(b) > 0 {
		y, _ = strconv.Atoi(b[0])
	}
	return x > major || x == major && y >= minor
}

// probeKernel checks send_signal_work, the work item behind bpf_send_signal().
func (m *machine) probeKernel(k *kernel.Kernel) error {
	var err error
	if m.at.work, err = k.PerCPU("send_signal_work", 0); err != nil {
		return unsupported("%w", err)
	}
	if m.at.lazyList, err = k.PerCPU("lazy_list", 0); err != nil {
		return unsupported("%w", err)
	}
	if m.at.doBPFSendSignal, err = k.Symbol("do_bpf_send_signal"); err != nil {
		return unsupported("%w", err)
	}
	w, err := workLayout.Load(k, m.at.work)
	if err != nil {
		return unsupported("%w", err)
	}
	if w.Func != m.at.doBPFSendSignal {
		return unsupported("send_signal_work runs %s, not do_bpf_send_signal", w.Func)
	}
	var code [192]byte
	n, err := k.ReadAt(code[:], m.at.doBPFSendSignal)
	if err != nil {
		return unsupported("%w", err)
	}
	body := functionBody(k, m.at.doBPFSendSignal, code[:n])
	m.at.dropsTask, err = dropsTask(body, m.at.doBPFSendSignal, k.SymbolAt)
	return err
}

// dropsTask says whether the code of do_bpf_send_signal(), which starts at f, drops a
// reference to its task, itself or by put_task_struct(). It does since a fix of 2023; to
// take no reference then would free a task in use, so code that does what is not known is
// an error.
func dropsTask(code []byte, f kernel.Addr, symbolAt func(kernel.Addr) (string, uint64, bool)) (bool, error) {
	if xadd := bytes.Index(code, []byte{0x0f, 0xc1}); xadd > 0 && isLock(code[xadd-1]) {
		return true, nil
	}
	for i := 0; i+5 <= len(code); i++ {
		if code[i] != 0xe8 && code[i] != 0xe9 { // call, jmp
			continue
		}
		to := f.Add(i + 5 + int(int32(binary.LittleEndian.Uint32(code[i+1:]))))
		name, off, ok := symbolAt(to)
		if !ok || off != 0 || to == f {
			continue // within the function, or no instruction
		}
		switch {
		case strings.Contains(name, "put_task_struct"):
			return true, nil
		case name == "group_send_sig_info", name == "__fentry__", strings.Contains(name, "return_thunk"):
		default:
			return false, unsupported("do_bpf_send_signal() calls %s()", name)
		}
	}
	return false, nil
}

// functionBody cuts code, which starts at f, where the next symbol starts.
func functionBody(k *kernel.Kernel, f kernel.Addr, code []byte) []byte {
	name, _, _ := k.SymbolAt(f)
	for i := 16; i < len(code); i += 16 { // functions are aligned to 16 bytes
		if next, _, ok := k.SymbolAt(f.Add(i)); !ok || next != name {
			return code[:i]
		}
	}
	return code
}

// probeWake checks the two ways to wake a task: a call on an idle CPU's call
// queue, a timer on a busy one's wheel. Both need a little memory that nobody
// else uses: the end of the page that holds the text of vmcoreinfo.
func (m *machine) probeWake(k *kernel.Kernel) error {
	var err error
	for name, a := range map[string]*kernel.Addr{"wake_up_process": &m.at.wakeUpProcess, "process_timeout": &m.at.processTimeout} {
		if *a, err = k.Symbol(name); err != nil {
			return unsupported("%w", err)
		}
	}
	if m.at.timerBase, err = k.PerCPU("timer_bases", 0); err != nil {
		return unsupported("%w", err)
	}
	for _, l := range []interface {
		Size(*kernel.Kernel) (int, error)
	}{csdLayout, timerLayout, timerBaseLayout} {
		n, err := l.Size(k)
		if err != nil {
			return unsupported("%w", err)
		}
		if l == timerLayout && m.at.tracksTimers {
			continue
		}
		if l != timerBaseLayout && n > slotSize {
			return unsupported("a wake-up needs %d bytes, a slot has %d", n, slotSize)
		}
	}
	if m.at.tracksTimers && m.queue != nil {
		return unsupported("the kernel reports timers that it did not start, and without them: %w", m.queue)
	}
	return m.slots.find(k)
}

// probeKick checks that CPU 0 can be interrupted without a trace.
func (m *machine) probeKick(k *kernel.Kernel) error {
	_, nmi := k.Memory().(vmi.NMI)
	_, cpus := k.Memory().(vmi.CPUs)
	if !nmi || !cpus {
		return unsupported("this memory source cannot inject an NMI")
	}
	var err error
	if m.at.lastNMIRIP, err = k.PerCPU("last_nmi_rip", 0); err != nil {
		return unsupported("%w", err)
	}
	if m.at.swallowNMI, err = k.PerCPU("swallow_nmi", 0); err != nil {
		return unsupported("%w", err)
	}
	return nil
}
