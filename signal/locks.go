package signal

import "github.com/ovmigrate/ovmigrate/kernel"

// A paused guest may have been stopped inside a critical section. Its data are
// whole only if the lock that protects them is free. A free qspinlock is a zero
// word: no holder, no waiter (kernel/locking/qspinlock.c). What a kernel for debugging
// locks keeps beside the word is not looked at. A free spinlock_t of PREEMPT_RT is an
// rt_mutex whose owner is null: the pointer's low bits tell of waiters
// (kernel/locking/rtmutex.c). Which of them there is, types say. The functions here
// return a *retryError if the lock is not free.

// sigLockFree checks sighand->siglock: pending sets, jobctl, signal_struct.
func (o *op) sigLockFree(t *kernel.Task) error {
	s, err := sighandLayout.Load(o.k, t.Sighand)
	if err != nil {
		return err
	}
	if s.SigLock != 0 || s.SigWait != 0 {
		return retry("siglock of pid %d is held (%#x)", t.TGID, s.SigLock)
	}
	return nil
}

// piLockFree checks task->pi_lock, under which a task is woken.
func (t *thread) piLockFree() error {
	if t.w.PILock != 0 {
		return retry("pi_lock of pid %d is held (%#x)", t.PID, t.w.PILock)
	}
	return nil
}

// timerBaseFree checks the timer wheel of CPU 0 and returns it.
func (o *op) timerBaseFree() (timerBase, error) {
	b, err := timerBaseLayout.Load(o.k, o.at.timerBase)
	if err != nil {
		return b, err
	}
	if b.Lock != 0 || b.Running != 0 {
		return b, retry("timer base of CPU 0 is in use (%#x)", b.Lock)
	}
	return b, nil
}
