package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// stuckTask is a task that sleeps and cannot be woken by a signal.
type stuckTask struct {
	PID      kernel.PID `json:"pid"`
	TID      kernel.PID `json:"tid"`
	Comm     string     `json:"comm"`
	AsleepNS uint64     `json:"asleep_ns"` // for at least that long
	Switches uint64     `json:"switches"`
	IOWait   bool       `json:"iowait"`
	Killable bool       `json:"killable"` // a deadly signal ends it
	Noticed  bool       `json:"noticed"`  // it has not run since khungtaskd looked
	// Blocker is the lock that it waits for: "mutex 0xffff…, held by 12 (sh)". Only
	// kernels since 6.16 know, those without realtime mutexes.
	Blocker    string   `json:"blocker,omitempty"`
	Stack      []string `json:"stack"` // functions, the innermost first, as /proc/PID/stack has them
	StackError string   `json:"stack_error,omitempty"`
}

// sleeper is a task in state D, with how often it has been switched away from.
type sleeper struct {
	task     *kernel.Task
	switches uint64
}

// walkTries is how often a list is walked that changes meanwhile.
const walkTries = 10

// uninterruptible returns the tasks that are in state D, all threads included.
func uninterruptible(k *kernel.Kernel) (found []sleeper, err error) {
	for range walkTries {
		found, err = nil, nil
		for p, perr := range k.Tasks() {
			if perr != nil {
				err = errors.Join(err, perr)
				continue
			}
			for t, terr := range p.Threads() {
				switch {
				case errors.Is(terr, kernel.ErrNoTask): // it has exited
				case terr != nil:
					err = errors.Join(err, terr)
				case asleep(t):
					found = append(found, sleeper{t, t.NVCSW + t.NIVCSW})
				}
			}
		}
		if err == nil {
			break
		}
	}
	return found, err
}

// asleep says whether t sleeps so that no ordinary signal wakes it. Kernel threads that
// wait for work sleep so, too, but say that they do not count as load.
func asleep(t *kernel.Task) bool {
	return t.State&kernel.TaskUninterruptible != 0 && t.State&kernel.TaskNoLoad == 0 && t.OnCPU == 0
}

// stillAsleep returns those that have not run since, and for least or longer.
func stillAsleep(k *kernel.Kernel, before []sleeper, least time.Duration) ([]stuckTask, error) {
	all := []stuckTask{}
	for _, s := range before {
		t := s.task
		if t.Refresh() != nil || !asleep(t) || t.NVCSW+t.NIVCSW != s.switches {
			continue
		}
		raw, err := TaskStructLayout.Load(k, t.Addr)
		if err != nil {
			return nil, err
		}
		rq, err := k.RunQueue(int(t.CPU))
		if err != nil {
			return nil, err
		}
		// Both are of the clock of the processor that it last ran on.
		slept := rq.ClockTask - min(raw.SeExecStart, rq.ClockTask)
		if slept < uint64(least) {
			continue
		}
		f := stuckTask{
			PID: t.TGID, TID: t.PID, Comm: t.Comm, AsleepNS: slept, Switches: s.switches,
			IOWait: raw.InIowait, Killable: t.State&kernel.TaskWakeKill != 0,
			Noticed: raw.LastSwitchTime != 0 && raw.LastSwitchCount == s.switches,
			Blocker: blocker(k, raw.Blocker), Stack: []string{},
		}
		f.addStack(t)
		all = append(all, f)
	}
	return all, nil
}

func (s *stuckTask) addStack(t *kernel.Task) {
	trace, err := t.KernelStack()
	if err != nil {
		s.StackError = err.Error()
		return
	}
	for _, f := range trace.Blocked() {
		s.Stack = append(s.Stack, f.String())
	}
	if trace.Err != nil {
		s.StackError = trace.Err.Error()
	}
}

// lockKinds are what the lowest bits of task_struct.blocker say, and where each kind
// has its owner. Source: include/linux/hung_task.h.
var lockKinds = []struct{ name, cname, owner string }{
	{"mutex", "mutex", "owner"},
	{"semaphore", "semaphore", "last_holder"},
	{"read-write semaphore", "rw_semaphore", "owner"}, // to read
	{"read-write semaphore", "rw_semaphore", "owner"}, // to write
}

// blocker says which lock a task waits for and who has it, "" if the kernel does not
// say. It is there to explore with: an [kernel.Object] needs no Layout.
func blocker(k *kernel.Kernel, word uint64) string {
	if word == 0 {
		return ""
	}
	kind, a := lockKinds[word&3], kernel.Addr(word&^3)
	text := fmt.Sprintf("%s %s", kind.name, a)
	lock, err := k.Object(kind.cname, a)
	if err != nil {
		return text
	}
	owner, err := lock.Field(kind.owner)
	if err != nil {
		return text
	}
	if counter, err := owner.Field("counter"); err == nil { // atomic_long_t
		owner = counter
	}
	v, err := owner.Uint()
	if err != nil || v&^7 == 0 {
		return text
	}
	t, err := k.TaskAt(kernel.Addr(v &^ 7))
	if err != nil {
		return text
	}
	return fmt.Sprintf("%s, held by %d (%q)", text, t.PID, t.Comm)
}
