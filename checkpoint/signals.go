package checkpoint

import (
	criu_sa "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-sa"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/siginfo"

	"github.com/ovmigrate/ovmigrate/kernel"
)

const (
	sigkill = 9
	sigchld = 17
	sigstop = 19

	// siginfoSize is sizeof(siginfo_t) in user space; the kernel keeps the part
	// that is not padding.
	siginfoSize = 128
)

// sigactions encodes the 62 actions that can be set.
func sigactions(acts *[kernel.NSig]kernel.SigAction) []*criu_sa.SaEntry {
	all := make([]*criu_sa.SaEntry, 0, kernel.NSig-2)
	for i := range acts {
		if sig := i + 1; sig == sigkill || sig == sigstop {
			continue
		}
		a := &acts[i]
		all = append(all, &criu_sa.SaEntry{
			Sigaction: new(uint64(a.Handler)), Flags: &a.Flags,
			Restorer: new(uint64(a.Restorer)), Mask: &a.Mask,
		})
	}
	return all
}

// sigqueue encodes pending signals. Those by which the process is held or would be
// killed are not the program's: ours.
func sigqueue(pending []kernel.PendingSignal) *siginfo.SignalQueueEntry {
	q := &siginfo.SignalQueueEntry{}
	for _, p := range pending {
		if p.Signo == sigkill || p.Signo == sigstop {
			continue
		}
		info := make([]byte, siginfoSize)
		copy(info, p.Info)
		q.Signals = append(q.Signals, &siginfo.SiginfoEntry{Siginfo: info})
	}
	return q
}

// deliverable says whether one of the pending signals would run a handler or end
// the process once the thread goes on.
func deliverable(mask uint64, acts *[kernel.NSig]kernel.SigAction, queues ...[]kernel.PendingSignal) bool {
	const sigIgn = 1
	for _, q := range queues {
		for _, p := range q {
			if p.Signo < 1 || p.Signo > kernel.NSig || mask>>(p.Signo-1)&1 != 0 {
				continue
			}
			if acts[p.Signo-1].Handler != sigIgn {
				return true
			}
		}
	}
	return false
}
