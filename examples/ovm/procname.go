package main

import (
	"github.com/ovmigrate/ovmigrate/kernel"
)

// pfWQWorker marks the threads of workqueues (include/linux/sched.h).
const pfWQWorker = 0x00000020

// maxName is what the kernel's own buffer for these names holds.
const maxName = 64

// procName returns the name that /proc/PID/comm shows. Of kernel threads it is
// longer than task_struct.comm holds: their full name, or what a worker is working
// on. Source: fs/proc/array.c:proc_task_name.
func procName(t *kernel.Task) (string, error) {
	if !t.IsKernelThread() {
		return t.Comm, nil
	}
	task, err := t.Object()
	if err != nil {
		return "", err
	}
	private, err := task.Field("worker_private")
	if err != nil { // before 5.17
		private, err = task.Field("set_child_tid")
	}
	if err != nil {
		return "", err
	}
	a, err := private.Uint()
	if err != nil || a == 0 {
		return t.Comm, err
	}
	kthread, err := t.Kernel().Object("kthread", kernel.Addr(a))
	if err != nil {
		return "", err
	}
	if t.Flags&pfWQWorker != 0 {
		return workerName(t, kthread)
	}
	return fullName(t, kthread)
}

// fullName returns what kthread_create was asked to call a thread. Source:
// kernel/kthread.c:get_kthread_comm.
func fullName(t *kernel.Task, kthread kernel.Object) (string, error) {
	name, err := kthread.Field("full_name")
	if err != nil {
		return t.Comm, nil
	}
	a, err := name.Uint()
	if err != nil || a == 0 {
		return t.Comm, err
	}
	return t.Kernel().CString(kernel.Addr(a), maxName-1)
}

// workerName returns the name of a workqueue's thread with what it does (+) or did
// last (-). Source: kernel/workqueue.c:wq_worker_comm.
func workerName(t *kernel.Task, kthread kernel.Object) (string, error) {
	name := t.Comm
	// Since 6.9 the long names of rescuers are shown.
	if t.Kernel().Types().HasFunc("format_worker_id") {
		var err error
		if name, err = fullName(t, kthread); err != nil {
			return "", err
		}
	}
	data, err := kthread.Field("data")
	if err != nil {
		return "", err
	}
	a, err := data.Uint()
	if err != nil || a == 0 {
		return name, err
	}
	worker, err := t.Kernel().Object("worker", kernel.Addr(a))
	if err != nil {
		return "", err
	}
	pool, err := uintField(worker, "pool")
	if err != nil || pool == 0 {
		return name, err
	}
	desc, err := worker.Field("desc")
	if err != nil {
		return "", err
	}
	text, err := desc.CString(maxName)
	if err != nil || text == "" {
		return name, err
	}
	work, err := uintField(worker, "current_work")
	if err != nil {
		return "", err
	}
	if work != 0 {
		name += "+" + text
	} else {
		name += "-" + text
	}
	return name[:min(len(name), maxName-1)], nil
}

func uintField(o kernel.Object, path string) (uint64, error) {
	f, err := o.Field(path)
	if err != nil {
		return 0, err
	}
	return f.Uint()
}
