package checkpoint

import (
	"context"
	"errors"
	"fmt"

	"github.com/ovmigrate/ovmigrate/criuimg"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/kernel/paging"
)

// Errors to test for with errors.Is.
var (
	// ErrKernelThread: the task runs only in the kernel.
	ErrKernelThread = errors.New("is a kernel thread")
	// ErrExited: the process has exited, or is about to.
	ErrExited = errors.New("has exited")
	// ErrInit: the process is the guest's first.
	ErrInit = errors.New("is the guest's init")
	// ErrMoved: the process changed while it was being saved.
	ErrMoved = errors.New("changed while it was being saved")
)

// Options says how a process is saved. The zero value, and nil, are the defaults.
type Options struct {
	// AllowIssues saves a process without those parts that are refused.
	AllowIssues bool

	// OneShotTimers writes interval timers that fire once as they are, which
	// CRIU 4.1 and later understand. Older ones lose such a timer, so that it is
	// otherwise given an interval of ten years.
	OneShotTimers bool

	// Progress is called from time to time with the bytes of memory copied and
	// to be copied. It must be quick and safe for concurrent use.
	Progress func(done, total int64)

	// stopIsOurs says that a stopped process runs as far as its user knows.
	stopIsOurs bool
}

func (o *Options) orDefault() Options {
	if o == nil {
		return Options{}
	}
	return *o
}

// Snapshot is the state of one process, collected and not yet written. Its memory
// is still the guest's: it must be written while the process is held.
type Snapshot struct {
	c     *collector
	pager *pager
	pages uint64
}

// Capture collects the state of a process whose threads are all held off the CPU
// (signal.Freeze, signal.Stop, or a dump of the guest). It reads kernel structures
// only, no page contents. Where it reads a live guest, pause it meanwhile
// (vmi.Pauser). The error wraps ErrKernelThread, ErrExited, ErrInit,
// kernel.ErrNoTask, kernel.ErrCorrupt or, for a guest that is not x86-64,
// kernel.ErrArch; a process with refused issues is an
// *IssuesError.
func Capture(ctx context.Context, k *kernel.Kernel, pid kernel.PID, o *Options) (*Snapshot, error) {
	s, err := capture(ctx, k, pid, true, o.orDefault())
	if err != nil {
		return nil, err
	}
	if refused(s.c.issues.all) && !s.c.opts.AllowIssues {
		return nil, &IssuesError{s.c.issues.all}
	}
	return s, nil
}

// Check returns what a checkpoint of the process would not carry as it is, without
// touching the process. It sees what the process has at that moment.
func Check(ctx context.Context, k *kernel.Kernel, pid kernel.PID, o *Options) ([]Issue, error) {
	for try := 1; ; try++ {
		s, err := capture(ctx, k, pid, false, o.orDefault())
		switch {
		case err == nil:
			return s.c.issues.all, nil
		case try == checkTries || !errors.Is(err, kernel.ErrCorrupt) && !errors.Is(err, kernel.ErrLimit):
			return nil, err
		}
	}
}

// checkTries is how often Check looks at a process that changes meanwhile: a list,
// of pending signals for example, may be taken apart under its eyes.
const checkTries = 10

func capture(ctx context.Context, k *kernel.Kernel, pid kernel.PID, held bool, o Options) (*Snapshot, error) {
	t, err := process(k, pid)
	if err != nil {
		return nil, err
	}
	c, err := collect(k, t, held, o)
	if err != nil {
		return nil, err
	}
	s := &Snapshot{c: c}
	if s.pager, err = newPager(k, c.mm, &c.issues); err != nil {
		return nil, err
	}
	if s.pages, err = s.pager.count(ctx, c.areas); err != nil {
		return nil, fmt.Errorf("pid %d (%s): memory: %w", pid, t.Comm, err)
	}
	return s, nil
}

// process returns the leader of the process that pid belongs to, if it can be
// saved at all.
func process(k *kernel.Kernel, pid kernel.PID) (*kernel.Task, error) {
	if k.Arch() != paging.X86_64 {
		return nil, fmt.Errorf("checkpoints are of x86-64 guests only: %w: this one is %v", kernel.ErrArch, k.Arch())
	}
	t, err := k.Task(pid)
	if err != nil {
		return nil, err
	}
	if t.PID != t.TGID {
		return nil, fmt.Errorf("pid %d is a thread of process %d: %w", pid, t.TGID, kernel.ErrNoTask)
	}
	var why error
	switch {
	case t.IsKernelThread():
		why = ErrKernelThread
	case t.ExitState != 0 || t.Flags&kernel.PFExiting != 0:
		why = ErrExited
	case t.PID == 1:
		why = ErrInit
	}
	if why != nil {
		return nil, fmt.Errorf("pid %d (%s) %w", t.PID, t.Comm, why)
	}
	return t, nil
}

// PID returns the process number that the restored process will have.
func (s *Snapshot) PID() kernel.PID { return kernel.PID(*s.c.out.pstree.Pid) }

// Issues returns what is not carried as it is.
func (s *Snapshot) Issues() []Issue { return s.c.issues.all }

// Bytes returns how much memory will be written, as of the time of Capture.
func (s *Snapshot) Bytes() int64 { return int64(s.pages) * pageSize }

// Threads returns the number of threads.
func (s *Snapshot) Threads() int { return len(s.c.out.order) }

// External returns the keys of files that lead out of the process, as
// "criu restore --inherit-fd fd[N]:KEY" takes them.
func (s *Snapshot) External() []string { return s.c.external }

// RestoreOptions returns the options that "criu restore" needs for this process,
// for example --shell-job.
func (s *Snapshot) RestoreOptions() []string { return s.c.restoreOptions() }

// WriteImages writes the set into d, which it neither commits nor aborts. The
// process must be held until it returns. live says that the guest runs meanwhile;
// pages that its kernel moves are then noticed and copied again.
func (s *Snapshot) WriteImages(ctx context.Context, d *criuimg.Dir, live bool) error {
	if err := s.c.writeImages(d); err != nil {
		return err
	}
	total := s.Bytes()
	if report := s.c.opts.Progress; report != nil {
		var p progress
		s.pager.copied = func(n int64) { report(p.add(n), total) }
		report(0, total)
	}
	return s.c.writeMemory(ctx, d, s.pager, live)
}
