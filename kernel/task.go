package kernel

import (
	"bytes"
	"fmt"
	"iter"
)

// PID is a process or thread number.
type PID int32

// Task is a thread of the guest: a task_struct with the members that nearly every
// user of it needs, as they were when it was read. A process is its leader, the
// Task whose PID equals its TGID.
type Task struct {
	k    *Kernel
	Addr Addr // of the task_struct
	taskFields

	Comm string
}

type taskFields struct {
	State       uint64 `k:"__state|state"`
	ExitState   uint32 `k:"exit_state"`
	ExitCode    uint32 `k:"exit_code"`
	ExitSignal  int32  `k:"exit_signal"`
	Flags       uint32 `k:"flags"`
	Ptrace      uint32 `k:"ptrace"`
	OnCPU       int32  `k:"on_cpu"`
	OnRQ        int32  `k:"on_rq"`
	CPU         uint32 `k:"thread_info.cpu|cpu"`
	PID         PID    `k:"pid"`
	TGID        PID    `k:"tgid"`
	JobCtl      uint64 `k:"jobctl"`
	Frozen      bool   `k:"frozen,opt"`
	Personality uint32 `k:"personality"`
	StartTime   uint64 `k:"start_time"`                     // ns of CLOCK_MONOTONIC
	BootTime    uint64 `k:"start_boottime|real_start_time"` // ns of CLOCK_BOOTTIME
	NVCSW       uint64 `k:"nvcsw"`
	NIVCSW      uint64 `k:"nivcsw"`
	Stack       Addr   `k:"stack"`
	MMAddr      Addr   `k:"mm"`
	ActiveMM    Addr   `k:"active_mm"`
	FilesAddr   Addr   `k:"files"`
	FSAddr      Addr   `k:"fs"`
	NSProxy     Addr   `k:"nsproxy"`
	Signal      Addr   `k:"signal"`
	Sighand     Addr   `k:"sighand"`
	RealParent  Addr   `k:"real_parent"`
	GroupLeader Addr   `k:"group_leader"`
	ThreadPID   Addr   `k:"thread_pid"`
	RealCred    Addr   `k:"real_cred"`
	Cgroups     Addr   `k:"cgroups"`

	CommRaw [16]byte `k:"comm"`
}

var taskLayout = LayoutOf[taskFields]("task_struct")

// Task flags that this package and its users test (include/linux/sched.h).
const (
	PFExiting    = 0x00000004
	PFIOWorker   = 0x00000010
	PFUserWorker = 0x00004000
	PFKThread    = 0x00200000
)

// TaskAt reads the task_struct at a. Errors: *PathError, ErrCorrupt.
func (k *Kernel) TaskAt(a Addr) (*Task, error) {
	t := &Task{k: k, Addr: a}
	if err := taskLayout.LoadInto(k, a, &t.taskFields); err != nil {
		return nil, err
	}
	if t.PID < 0 || t.TGID < 0 || !t.Signal.IsKernel() && t.ExitState == 0 {
		return nil, corrupt(a, "task_struct", "pid %d, signal %s", t.PID, t.Signal)
	}
	comm := t.CommRaw[:]
	if i := bytes.IndexByte(comm, 0); i >= 0 {
		comm = comm[:i]
	}
	t.Comm = string(comm)
	return t, nil
}

// Refresh reads the task again. It fails with ErrNoTask if the memory now belongs
// to another task.
func (t *Task) Refresh() error {
	u, err := t.k.TaskAt(t.Addr)
	if err != nil {
		return err
	}
	if u.PID != t.PID || u.BootTime != t.BootTime {
		return fmt.Errorf("pid %d: %w", t.PID, ErrNoTask)
	}
	*t = *u
	return nil
}

// Kernel returns the kernel that t was read from.
func (t *Task) Kernel() *Kernel { return t.k }

// Object returns t for exploring.
func (t *Task) Object() (Object, error) { return t.k.Object("task_struct", t.Addr) }

// Tasks yields every process of the guest (thread group leaders, kernel threads
// included, the idle task not), in the order of the kernel's list. A task that
// cannot be read is yielded as an error and the walk goes on; a broken list ends
// it. Source: include/linux/sched/signal.h:for_each_process.
func (k *Kernel) Tasks() iter.Seq2[*Task, error] {
	return func(yield func(*Task, error) bool) {
		init, err := k.Symbol("init_task")
		if err != nil {
			yield(nil, err)
			return
		}
		off, err := k.offsetOf("task_struct", "tasks")
		if err != nil {
			yield(nil, err)
			return
		}
		for node, err := range k.List(init.Add(off)) {
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(k.TaskAt(node - Addr(off))) {
				return
			}
		}
	}
}

// Threads yields the threads of t's process, the leader first. Source:
// include/linux/sched/signal.h:for_each_thread.
func (t *Task) Threads() iter.Seq2[*Task, error] {
	return func(yield func(*Task, error) bool) {
		if !t.Signal.IsKernel() {
			yield(nil, fmt.Errorf("pid %d: %w: has exited", t.PID, ErrNoTask))
			return
		}
		head, err := t.k.offsetOf("signal_struct", "thread_head")
		if err != nil {
			yield(nil, err)
			return
		}
		node, err := t.k.offsetOf("task_struct", "thread_node")
		if err != nil {
			yield(nil, err)
			return
		}
		for n, err := range t.k.List(t.Signal.Add(head)) {
			if err != nil {
				yield(nil, err)
				return
			}
			u, err := t.k.TaskAt(n - Addr(node))
			if err == nil && u.TGID != t.TGID {
				err = corrupt(u.Addr, "task_struct", "thread of %d has tgid %d", t.TGID, u.TGID)
			}
			if !yield(u, err) {
				return
			}
		}
	}
}

// IsKernelThread says whether t runs only in the kernel.
func (t *Task) IsKernelThread() bool { return t.Flags&PFKThread != 0 }

// IsUserWorker says whether t is a thread that the kernel made inside a user
// process, such as an io_uring worker.
func (t *Task) IsUserWorker() bool { return t.Flags&(PFIOWorker|PFUserWorker) != 0 }

// Leader returns the leader of t's thread group, possibly t itself.
func (t *Task) Leader() (*Task, error) {
	if t.PID == t.TGID {
		return t, nil
	}
	return t.k.TaskAt(t.GroupLeader)
}

// PPID returns the process number of t's parent in the initial pid namespace, 0
// for the first processes.
func (t *Task) PPID() (PID, error) {
	p, err := t.k.TaskAt(t.RealParent)
	if err != nil {
		return 0, err
	}
	return p.TGID, nil
}

// Task states, as the bits of task_struct.__state (include/linux/sched.h).
const (
	TaskRunning         = 0x0
	TaskInterruptible   = 0x1
	TaskUninterruptible = 0x2
	TaskStopped         = 0x4
	TaskTraced          = 0x8
	TaskParked          = 0x40
	TaskDead            = 0x80
	TaskWakeKill        = 0x100
	TaskWaking          = 0x200
	TaskNoLoad          = 0x400
	TaskNew             = 0x800
	TaskRTLockWait      = 0x1000
	TaskFreezable       = 0x2000
	TaskFrozenState     = 0x8000

	ExitDead   = 0x10
	ExitZombie = 0x20
)

// StateChar returns the state letter that /proc/PID/stat shows. Source:
// include/linux/sched.h:__task_state_index.
func (t *Task) StateChar() byte {
	s := t.State | uint64(t.ExitState)
	switch {
	case t.State&(TaskUninterruptible|TaskNoLoad|TaskWakeKill) == TaskUninterruptible|TaskNoLoad && t.ExitState == 0:
		return 'I'
	case s&TaskFrozenState != 0:
		return 'D'
	case s&TaskParked != 0:
		return 'P'
	case s&ExitZombie != 0:
		return 'Z'
	case s&ExitDead != 0:
		return 'X'
	case s&TaskTraced != 0:
		return 't'
	case s&TaskStopped != 0:
		return 'T'
	case s&TaskUninterruptible != 0:
		return 'D'
	case s&TaskInterruptible != 0:
		return 'S'
	}
	return 'R'
}

// Children yields the processes whose parent is any thread of t's process,
// zombies included. Source: task_struct.children of each thread.
func (t *Task) Children() iter.Seq2[*Task, error] {
	return func(yield func(*Task, error) bool) {
		children, err := t.k.offsetOf("task_struct", "children")
		if err != nil {
			yield(nil, err)
			return
		}
		sibling, err := t.k.offsetOf("task_struct", "sibling")
		if err != nil {
			yield(nil, err)
			return
		}
		for thread, err := range t.Threads() {
			if err != nil {
				yield(nil, err)
				return
			}
			for n, err := range t.k.List(thread.Addr.Add(children)) {
				if err != nil {
					yield(nil, err)
					return
				}
				if !yield(t.k.TaskAt(n - Addr(sibling))) {
					return
				}
			}
		}
	}
}
