package kernel

import (
	"iter"
	"time"
)

// SemSet is a set of System V semaphores.
type SemSet struct {
	k *Kernel
	IPCPerm
	semSetFields
	Ctime time.Time
}

type semSetFields struct {
	NSems int32 `k:"sem_nsems"`

	CtimeSec int64 `k:"sem_ctime"`
	First    Addr  `k:"&sems"`
}

// Sem is one semaphore of a set.
type Sem struct {
	Value   int32     // as GETVAL of semctl(2)
	LastPID PID       // as GETPID, in the initial pid namespace
	Otime   time.Time // of the last semop(2) that named it first; zero if never
}

type semFields struct {
	Value    int32 `k:"semval"`
	PID      Addr  `k:"sempid"`
	OtimeSec int64 `k:"sem_otime"`
}

var (
	semSetLayout = LayoutOf[semSetFields]("sem_array")
	semLayout    = LayoutOf[semFields]("sem")
)

// Semaphores yields the sets of System V semaphores, as /proc/sysvipc/sem does. Source:
// ipc/sem.c:sysvipc_sem_proc_show.
func (n *IPCNamespace) Semaphores() iter.Seq2[*SemSet, error] {
	return ipcObjects(n.k, n.Sem, "sem_array", "sem_perm", func(a Addr, p IPCPerm) (*SemSet, error) {
		s := &SemSet{k: n.k, IPCPerm: p}
		err := semSetLayout.LoadInto(n.k, a, &s.semSetFields)
		s.Ctime = unixTime(s.CtimeSec)
		return s, err
	})
}

// maxSems bounds a set; the kernel does at USHRT_MAX semaphores.
const maxSems = 1 << 16

// Sems yields the semaphores of a set.
func (s *SemSet) Sems() iter.Seq2[Sem, error] {
	return func(yield func(Sem, error) bool) {
		size, err := semLayout.Size(s.k)
		if err == nil && (s.NSems < 0 || s.NSems > maxSems) {
			err = corrupt(s.Addr, "sem_array", "%d semaphores", s.NSems)
		}
		if err != nil {
			yield(Sem{}, err)
			return
		}
		for i := range int(s.NSems) {
			f, err := semLayout.Load(s.k, s.First.Add(i*size))
			sem := Sem{Value: f.Value, Otime: unixTime(f.OtimeSec)}
			if err == nil {
				sem.LastPID, err = s.k.pidNr(f.PID)
			}
			if !yield(sem, err) {
				return
			}
		}
	}
}

// Otime returns the time of the last semop(2), zero if there was none. Source:
// ipc/sem.c:get_semotime.
func (s *SemSet) Otime() (last time.Time, err error) {
	for sem, err := range s.Sems() {
		if err != nil {
			return last, err
		}
		if sem.Otime.After(last) {
			last = sem.Otime
		}
	}
	return last, nil
}
