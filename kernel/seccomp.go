package kernel

import "fmt"

// Modes of Seccomp (include/uapi/linux/seccomp.h).
const (
	SeccompDisabled = 0
	SeccompStrict   = 1
	SeccompFilter   = 2
)

// Seccomp is the system call filtering of a thread.
type Seccomp struct {
	Mode    int
	Filters []SeccompProgram // the last installed first, as the kernel runs them
}

// SeccompProgram is one filter.
type SeccompProgram struct {
	Addr   Addr // of the seccomp_filter: threads that share filters share it
	Log    bool // SECCOMP_FILTER_FLAG_LOG
	Notify bool // somebody listens (SECCOMP_FILTER_FLAG_NEW_LISTENER)
	// BPF is the program as it was loaded, 8 bytes an instruction (struct
	// sock_filter); nil if the kernel does not keep it.
	BPF []byte
}

type taskSeccomp struct {
	Mode   int32 `k:"seccomp.mode,opt"`
	Filter Addr  `k:"seccomp.filter,opt"`
}

type seccompFilter struct {
	Log   bool `k:"log"`
	Prev  Addr `k:"prev"`
	Prog  Addr `k:"prog"`
	Notif Addr `k:"notif"`
}

type bpfProg struct {
	Orig Addr `k:"orig_prog"`
}

type sockFprog struct {
	Len    uint16 `k:"len"`
	Filter Addr   `k:"filter"`
}

var (
	taskSeccompLayout   = LayoutOf[taskSeccomp]("task_struct")
	seccompFilterLayout = LayoutOf[seccompFilter]("seccomp_filter")
	bpfProgLayout       = LayoutOf[bpfProg]("bpf_prog")
	sockFprogLayout     = LayoutOf[sockFprog]("sock_fprog_kern")
)

const (
	maxBPFInsns = 4096 // BPF_MAXINSNS
	// maxSeccompFilters is more than a thread can have: all its filters hold at
	// most MAX_INSNS_PER_PATH instructions, each counted with four more.
	maxSeccompFilters = 32768 / 5
)

// Seccomp returns the system call filtering of t. Source: kernel/seccomp.c:
// get_seccomp_filter, seccomp_get_filter.
func (t *Task) Seccomp() (*Seccomp, error) {
	raw, err := taskSeccompLayout.Load(t.k, t.Addr)
	if err != nil {
		return nil, err
	}
	s := &Seccomp{Mode: int(raw.Mode)}
	for a := raw.Filter; a != 0; {
		if len(s.Filters) >= maxSeccompFilters {
			return nil, &PathError{Path: "seccomp_filter", Addr: a, Err: ErrLimit}
		}
		f, err := seccompFilterLayout.Load(t.k, a)
		if err != nil {
			return nil, err
		}
		p := SeccompProgram{Addr: a, Log: f.Log, Notify: f.Notif != 0}
		if p.BPF, err = t.k.classicBPF(f.Prog); err != nil {
			return nil, fmt.Errorf("seccomp filter of pid %d: %w", t.PID, err)
		}
		s.Filters = append(s.Filters, p)
		a = f.Prev
	}
	return s, nil
}

// classicBPF returns the classic BPF that prog was made from.
func (k *Kernel) classicBPF(prog Addr) ([]byte, error) {
	p, err := bpfProgLayout.Load(k, prog)
	if err != nil || p.Orig == 0 {
		return nil, err
	}
	o, err := sockFprogLayout.Load(k, p.Orig)
	if err != nil {
		return nil, err
	}
	if o.Len == 0 || o.Len > maxBPFInsns {
		return nil, corrupt(p.Orig, "sock_fprog_kern", "%d instructions", o.Len)
	}
	b := make([]byte, 8*int(o.Len))
	_, err = k.ReadAt(b, o.Filter)
	return b, err
}
