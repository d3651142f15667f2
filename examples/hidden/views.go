package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// viewTries is how often a view is read whose lists change under the reader.
const viewTries = 10

// readViews reads all views. Those of the pid namespaces are found by the threads that
// the others have.
func readViews(k *kernel.Kernel) ([]view, error) {
	init, err := k.Symbol("init_pid_ns")
	if err != nil {
		return nil, err
	}
	views := []view{
		{name: "tasks", wants: alive},
		{name: "pids", wants: numbered},
		{name: "/proc", wants: func(t *kernel.Task) bool { return numbered(t) && t.PID == t.TGID }},
		{name: "children", wants: func(t *kernel.Task) bool { return alive(t) && t.PID == t.TGID }},
		{name: "cgroups", wants: func(t *kernel.Task) bool { return alive(t) && t.ExitState == 0 && t.Flags&kernel.PFExiting == 0 }},
		{name: "run queues"},
	}
	readers := []func(*kernel.Kernel, add) error{
		readTasks, readPIDs(init, pidTypePID), readPIDs(init, pidTypeTGID), readChildren, readCgroups, readRunQueues,
	}
	namespaces := map[kernel.Addr]bool{}
	for i := range views {
		if err := views[i].read(k, readers[i]); err != nil {
			return nil, err
		}
		for _, t := range views[i].tasks {
			nums, err := t.NSPIDs()
			for n := 1; err == nil && n < len(nums); n++ {
				namespaces[nums[n].NS] = true
			}
		}
	}
	for _, ns := range slices.Sorted(maps.Keys(namespaces)) {
		v, err := readNamespace(k, ns)
		if err != nil {
			continue // it has ended, with all that was in it
		}
		views = append(views, v)
	}
	return views, nil
}

// alive says whether t is a thread that has not been reaped: that has its number, and is
// no idle loop.
func alive(t *kernel.Task) bool {
	return t.PID != 0 && t.ThreadPID != 0 && t.ExitState&kernel.ExitDead == 0
}

// numbered says whether t knows its number as others do.
func numbered(t *kernel.Task) bool {
	nums, err := t.NSPIDs()
	return alive(t) && err == nil && nums[0].PID == t.PID
}

// add adds a thread, or what went wrong, to a view, and says whether to go on.
type add func(t *kernel.Task, err error) bool

// read fills v. A thread that comes or goes can lead a reader astray: then it begins
// again.
func (v *view) read(k *kernel.Kernel, reader func(*kernel.Kernel, add) error) error {
	var failed error
	for range viewTries {
		v.tasks, failed = map[kernel.Addr]*kernel.Task{}, nil
		err := reader(k, func(t *kernel.Task, err error) bool {
			if err != nil {
				failed = err
			} else if t.PID != 0 {
				v.tasks[t.Addr] = t
			}
			return failed == nil
		})
		if err != nil {
			failed = err
		}
		if failed == nil {
			return nil
		}
	}
	return fmt.Errorf("%s: %w", v.name, failed)
}

func readTasks(k *kernel.Kernel, add add) error {
	for p, err := range k.Tasks() {
		if !add(p, err) {
			return nil
		}
		if !p.Signal.IsKernel() {
			continue // it is being reaped
		}
		for t, err := range p.Threads() {
			if !add(t, err) {
				return nil
			}
		}
	}
	return nil
}

// readChildren goes down from the very first process, whose children are init and
// kthreadd.
func readChildren(k *kernel.Kernel, add add) error {
	first, err := k.Symbol("init_task")
	if err != nil {
		return err
	}
	root, err := k.TaskAt(first)
	if err != nil {
		return err
	}
	seen := map[kernel.Addr]bool{}
	for todo := []*kernel.Task{root}; len(todo) > 0; {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if !p.Signal.IsKernel() {
			continue
		}
		for c, err := range p.Children() {
			if !add(c, err) {
				return nil
			}
			if !seen[c.Addr] {
				seen[c.Addr] = true
				todo = append(todo, c)
			}
		}
	}
	return nil
}

func readCgroups(k *kernel.Kernel, add add) error {
	for h, err := range k.CgroupHierarchies() {
		if err != nil {
			return err
		}
		if h.IsV2() { // which every thread is in, whatever is mounted
			return readBelow(h.Root, add)
		}
	}
	return errors.New("there is no hierarchy of cgroup v2")
}

func readBelow(root *kernel.Cgroup, add add) error {
	for c, err := range root.Subtree() {
		if err != nil {
			return err
		}
		for t, err := range c.Tasks() {
			if !add(t, err) {
				return nil
			}
		}
	}
	return nil
}

func readRunQueues(k *kernel.Kernel, add add) error {
	for rq, err := range k.RunQueues() {
		if err != nil {
			return err
		}
		for q, err := range rq.Tasks() {
			if !add(q.Task, err) {
				return nil
			}
		}
	}
	return nil
}

// A struct pid is a number. It leads to the thread that has the number, and to the
// process that has it, each by a list of its own with one entry. See
// include/linux/pid.h.
type pid struct {
	Thread  kernel.Addr `k:"tasks[0].first"` // PIDTYPE_PID
	Process kernel.Addr `k:"tasks[1].first"` // PIDTYPE_TGID
}

type pidNamespace struct {
	IDR  kernel.Addr `k:"&idr"`
	Inum uint32      `k:"ns.inum"`
}

var (
	pidLayout          = kernel.LayoutOf[pid]("pid")
	pidNamespaceLayout = kernel.LayoutOf[pidNamespace]("pid_namespace")
)

type pidType int

const (
	pidTypePID  pidType = iota // threads
	pidTypeTGID                // processes
)

// readPIDs reads the numbers of a namespace.
func readPIDs(namespace kernel.Addr, typ pidType) func(*kernel.Kernel, add) error {
	link := fmt.Sprintf("pid_links[%d]", typ)
	return func(k *kernel.Kernel, add add) error {
		ns, err := pidNamespaceLayout.Load(k, namespace)
		if err != nil {
			return err
		}
		for e, err := range k.IDR(ns.IDR) {
			if err != nil {
				return err
			}
			p, err := pidLayout.Load(k, kernel.Addr(e.Entry))
			if err != nil {
				return err
			}
			node := [...]kernel.Addr{p.Thread, p.Process}[typ]
			if node == 0 {
				continue // a number that only a process group or an open file still has
			}
			a, err := k.ContainerOf(node, "task_struct", link)
			if err != nil {
				return err
			}
			if !add(k.TaskAt(a)) {
				return nil
			}
		}
		return nil
	}
}

// readNamespace reads the numbers of a pid namespace other than the first.
func readNamespace(k *kernel.Kernel, a kernel.Addr) (view, error) {
	ns, err := pidNamespaceLayout.Load(k, a)
	if err != nil {
		return view{}, err
	}
	v := view{name: fmt.Sprintf("pids of %d", ns.Inum), wants: func(t *kernel.Task) bool {
		nums, err := t.NSPIDs()
		return alive(t) && err == nil && slices.ContainsFunc(nums, func(n kernel.NSPID) bool { return n.NS == a })
	}}
	return v, v.read(k, readPIDs(a, pidTypePID))
}
