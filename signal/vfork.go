package signal

import "github.com/ovmigrate/ovmigrate/kernel"

// A thread that waits for its vfork child does not come to the point where it stops or
// enters the trap, and if the child is stopped or held it never will. It needs not: it
// does nothing before the child has gone on, and that point is the next it comes to.

// members says whether a process is acted upon too. Nil is for acting on one alone.
type members func(leader *kernel.Task) bool

// hold says whether t waits for a vfork child that is one of them. Of all
// uninterruptible sleeps only that one counts as frozen to the kernel
// (kernel/fork.c:wait_for_vfork_done).
func (m members) hold(t *thread) (bool, error) {
	if m == nil || !t.Frozen || !t.asleep(kernel.TaskUninterruptible) {
		return false, nil
	}
	c, err := t.VforkChild()
	return err == nil && c != nil && m(c), err
}

// holdStopping is hold, of a thread that will stop as soon as it goes on.
func (m members) holdStopping(t *thread) (bool, error) {
	held, err := m.hold(t)
	if err != nil || !held || t.JobCtl&jobctlStopPending != 0 {
		return held, err
	}
	s, err := signalLayout.Load(t.Kernel(), t.Signal)
	return s.Pending&SIGSTOP.bit() != 0, err
}
