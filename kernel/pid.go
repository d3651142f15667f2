package kernel

import (
	"fmt"
)

// maxPIDLevel is more than MAX_PID_NS_LEVEL (32).
const maxPIDLevel = 33

type pidStruct struct {
	Level     uint32  `k:"level"`
	FirstTask [1]Addr `k:"tasks"` // hlist_head of PIDTYPE_PID
	Numbers   Addr    `k:"&numbers"`
}

type upid struct {
	NR int32 `k:"nr"`
	NS Addr  `k:"ns"`
}

var (
	pidLayout  = LayoutOf[pidStruct]("pid")
	upidLayout = LayoutOf[upid]("upid")
)

// Task returns the thread that the initial pid namespace calls pid. The error
// wraps ErrNoTask if there is none. Source: kernel/pid.c:find_task_by_pid_ns.
func (k *Kernel) Task(pid PID) (*Task, error) {
	noTask := fmt.Errorf("pid %d: %w", pid, ErrNoTask)
	if pid <= 0 {
		return nil, noTask
	}
	ns, err := k.Symbol("init_pid_ns")
	if err != nil {
		return nil, err
	}
	off, err := k.offsetOf("pid_namespace", "idr")
	if err != nil {
		return nil, err
	}
	sp, err := k.IDRFind(ns.Add(off), uint32(pid))
	if err != nil {
		return nil, err
	}
	if sp == 0 {
		return nil, noTask
	}
	p, err := pidLayout.Load(k, sp)
	if err != nil {
		return nil, err
	}
	if p.FirstTask[0] == 0 {
		return nil, noTask // the number outlives its thread while something refers to it
	}
	link, err := k.offsetOf("task_struct", "pid_links")
	if err != nil {
		return nil, err
	}
	t, err := k.TaskAt(p.FirstTask[0] - Addr(link))
	if err != nil {
		return nil, err
	}
	if t.PID != pid {
		return nil, corrupt(sp, "pid", "number %d leads to task %d", pid, t.PID)
	}
	return t, nil
}

// NSPID is the number of a process in one pid namespace.
type NSPID struct {
	PID PID
	NS  Addr // struct pid_namespace
}

// pidNumbers returns the numbers of a struct pid from the initial namespace down
// to its own.
func (k *Kernel) pidNumbers(a Addr) ([]NSPID, error) {
	p, err := pidLayout.Load(k, a)
	if err != nil {
		return nil, err
	}
	if p.Level >= maxPIDLevel {
		return nil, corrupt(a, "pid", "level %d", p.Level)
	}
	size, err := upidLayout.Size(k)
	if err != nil {
		return nil, err
	}
	nums := make([]NSPID, 0, p.Level+1)
	for i := range int(p.Level) + 1 {
		u, err := upidLayout.Load(k, p.Numbers.Add(i*size))
		if err != nil {
			return nil, err
		}
		nums = append(nums, NSPID{PID(u.NR), u.NS})
	}
	return nums, nil
}

// NSPIDs returns t's numbers from the initial pid namespace down to its own; the
// last is what the task itself sees. Source: kernel/pid.c:task_tgid_vnr and the
// NSpid line of /proc/PID/status.
func (t *Task) NSPIDs() ([]NSPID, error) { return t.k.pidNumbers(t.ThreadPID) }

type signalPIDs struct {
	PIDs [4]Addr `k:"pids"`
}

var signalPIDsLayout = LayoutOf[signalPIDs]("signal_struct")

// Indices into signal_struct.pids (enum pid_type).
const (
	pidTypeTGID = 1
	pidTypePGID = 2
	pidTypeSID  = 3
)

// PGID returns the process group and SID the session of t in the initial pid
// namespace, 0 where there is none (kernel threads). Source: kernel/pid.c:__task_pid_nr_ns.
func (t *Task) PGID() (PID, error) { return t.groupPID(pidTypePGID) }

// SID is described at PGID.
func (t *Task) SID() (PID, error) { return t.groupPID(pidTypeSID) }

func (t *Task) groupPID(typ int) (PID, error) {
	nums, err := t.groupNumbers(typ)
	if err != nil || len(nums) == 0 {
		return 0, err
	}
	return nums[0].PID, nil
}

func (t *Task) groupNumbers(typ int) ([]NSPID, error) {
	s, err := signalPIDsLayout.Load(t.k, t.Signal)
	if err != nil {
		return nil, err
	}
	if s.PIDs[typ] == 0 {
		return nil, nil
	}
	return t.k.pidNumbers(s.PIDs[typ])
}
