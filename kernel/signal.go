package kernel

import "encoding/binary"

// NSig is the number of signals; they count from 1.
const NSig = 64

// SigAction is what a process does on a signal (struct sigaction of the kernel).
type SigAction struct {
	Handler  UserAddr
	Flags    uint64
	Restorer UserAddr
	Mask     uint64
}

type sigAction struct {
	Handler  uint64 `k:"sa.sa_handler"`
	Flags    uint64 `k:"sa.sa_flags"`
	Restorer uint64 `k:"sa.sa_restorer"`
	Mask     uint64 `k:"sa.sa_mask.sig[0]"`
}

type sighand struct {
	Action Addr  `k:"&action"`
	Count  int32 `k:"count.refs.counter"`
}

var (
	sigActionLayout = LayoutOf[sigAction]("k_sigaction")
	sighandLayout   = LayoutOf[sighand]("sighand_struct")
)

// SigActions returns the process's actions; index n-1 is signal n. Source:
// task_struct.sighand->action.
func (t *Task) SigActions() (*[NSig]SigAction, error) {
	h, err := sighandLayout.Load(t.k, t.Sighand)
	if err != nil {
		return nil, err
	}
	size, err := sigActionLayout.Size(t.k)
	if err != nil {
		return nil, err
	}
	all := new([NSig]SigAction)
	for i := range all {
		a, err := sigActionLayout.Load(t.k, h.Action.Add(i*size))
		if err != nil {
			return nil, err
		}
		all[i] = SigAction{UserAddr(a.Handler), a.Flags, UserAddr(a.Restorer), a.Mask}
	}
	return all, nil
}

// SigMasks are the signal masks and the alternate stack of one thread. Bit n-1
// stands for signal n.
type SigMasks struct {
	Blocked        uint64   `k:"blocked.sig[0]"`
	RealBlocked    uint64   `k:"real_blocked.sig[0]"`
	Saved          uint64   `k:"saved_sigmask.sig[0]"`
	RestoreSigmask bool     `k:"restore_sigmask,opt"`
	AltStackSP     UserAddr `k:"sas_ss_sp"`
	AltStackSize   uint64   `k:"sas_ss_size"`
	AltStackFlags  uint32   `k:"sas_ss_flags"`
}

var sigMasksLayout = LayoutOf[SigMasks]("task_struct")

// SigMasks reads t's masks.
func (t *Task) SigMasks() (SigMasks, error) { return sigMasksLayout.Load(t.k, t.Addr) }

// Mask returns the mask that the thread's program asked for: inside sigsuspend,
// ppoll and the like the one that will be restored. Source:
// kernel/ptrace.c, PTRACE_GETSIGMASK.
func (m SigMasks) Mask() uint64 {
	if m.RestoreSigmask {
		return m.Saved
	}
	return m.Blocked
}

// PendingSignal is one queued signal.
type PendingSignal struct {
	Signo int32
	Code  int32
	// Info is the kernel's siginfo, without the padding of user space. It is
	// made up as the kernel would where the queue holds none.
	Info []byte
}

type sigqueue struct {
	Info [48]byte `k:"info"`
}

var sigqueueLayout = LayoutOf[sigqueue]("sigqueue")

// maxPending bounds a signal queue; RLIMIT_SIGPENDING is the guest's own bound.
const maxPending = 1 << 17

// PendingThread returns the signals pending for thread t alone, in queue order.
func (t *Task) PendingThread() ([]PendingSignal, error) {
	off, err := t.k.offsetOf("task_struct", "pending")
	if err != nil {
		return nil, err
	}
	return t.k.pending(t.Addr.Add(off))
}

// PendingProcess returns the signals pending for t's whole process, in queue order.
func (t *Task) PendingProcess() ([]PendingSignal, error) {
	off, err := t.k.offsetOf("signal_struct", "shared_pending")
	if err != nil {
		return nil, err
	}
	return t.k.pending(t.Signal.Add(off))
}

func (k *Kernel) pending(a Addr) ([]PendingSignal, error) {
	set, err := k.offsetOf("sigpending", "signal")
	if err != nil {
		return nil, err
	}
	list, err := k.offsetOf("sigpending", "list")
	if err != nil {
		return nil, err
	}
	link, err := k.offsetOf("sigqueue", "list")
	if err != nil {
		return nil, err
	}
	bits, err := k.ReadU64(a.Add(set))
	if err != nil {
		return nil, err
	}
	var all []PendingSignal
	for n, err := range k.List(a.Add(list)) {
		if err != nil {
			return nil, err
		}
		if len(all) >= maxPending {
			return nil, &PathError{Path: "sigpending", Addr: a, Err: ErrLimit}
		}
		q, err := sigqueueLayout.Load(k, n-Addr(link))
		if err != nil {
			return nil, err
		}
		p := PendingSignal{Info: q.Info[:]}
		p.Signo = int32(binary.LittleEndian.Uint32(p.Info))
		p.Code = int32(binary.LittleEndian.Uint32(p.Info[8:]))
		if p.Signo < 1 || p.Signo > NSig {
			return nil, corrupt(n, "sigqueue", "signal %d", p.Signo)
		}
		bits &^= 1 << (p.Signo - 1)
		all = append(all, p)
	}
	// A bit without a queue entry is legal: the handler then sees SI_USER from
	// nobody (kernel/signal.c:collect_signal).
	for s := int32(1); bits != 0; s, bits = s+1, bits>>1 {
		if bits&1 != 0 {
			info := make([]byte, 48)
			binary.LittleEndian.PutUint32(info, uint32(s))
			all = append(all, PendingSignal{Signo: s, Info: info})
		}
	}
	return all, nil
}
