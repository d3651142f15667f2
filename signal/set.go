package signal

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// Set is processes that are acted upon together: the processes of a control group, or a
// process with all that it has started. Which they are is found out anew, while the
// guest stands still, whenever it is acted upon.
type Set struct {
	name string
	k    *kernel.Kernel
	// leaders returns the processes there are now. The guest is paused.
	leaders func(context.Context) ([]*kernel.Task, error)
}

// String says what the set is.
func (s Set) String() string { return s.name }

// maxProcesses bounds a set: pid_max is at most 2^22.
const maxProcesses = 1 << 22

// Process is the set of one process, that of t.
func Process(t *kernel.Task) Set {
	return Set{fmt.Sprintf("pid %d (%s)", t.TGID, t.Comm), t.Kernel(), func(context.Context) ([]*kernel.Task, error) {
		l, err := processOf(t)
		if errors.Is(err, ErrExited) {
			return nil, nil
		}
		return []*kernel.Task{l}, err
	}}
}

// Tree is the process of t and all its descendants. A process whose parent has exited
// is the child of somebody else, and no descendant any more: to be sure of all that a
// program has started, act on its control group.
func Tree(t *kernel.Task) Set {
	k := t.Kernel()
	return Set{fmt.Sprintf("tree of pid %d (%s)", t.TGID, t.Comm), k, func(ctx context.Context) ([]*kernel.Task, error) {
		if err := lockFree(k, "tasklist_lock", writeLocked); err != nil {
			return nil, err
		}
		root, err := processOf(t)
		if errors.Is(err, ErrExited) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		all := []*kernel.Task{root}
		seen := map[kernel.Addr]bool{root.Addr: true}
		for i := 0; i < len(all); i++ {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			for c, err := range all[i].Children() {
				if err != nil {
					return nil, err
				}
				if len(all) >= maxProcesses {
					return nil, fmt.Errorf("tree of pid %d: %w", t.TGID, kernel.ErrLimit)
				}
				if !seen[c.Addr] {
					seen[c.Addr] = true
					all = append(all, c)
				}
			}
		}
		return all, nil
	}}
}

// InCgroup is the processes of the control group at a path such as
// "/system.slice/cron.service", and of the groups below it. The path is one of cgroup
// v2; with a controller before it, as in "memory:/docker/…", of that hierarchy. The
// error is ErrNoCgroup if there is no such group.
func InCgroup(k *kernel.Kernel, name string) (Set, error) {
	g, err := findCgroup(k, name)
	if err != nil {
		return Set{}, err
	}
	return Set{"cgroup " + name, k, func(ctx context.Context) ([]*kernel.Task, error) {
		if err := lockFree(k, "css_set_lock", ^uint32(0)); err != nil {
			return nil, err
		}
		return leadersBelow(ctx, g)
	}}, nil
}

// ErrNoCgroup says that the guest has no such control group.
var ErrNoCgroup = errors.New("no such control group")

func findCgroup(k *kernel.Kernel, name string) (*kernel.Cgroup, error) {
	controller, p, found := strings.Cut(name, ":")
	if !found || strings.HasPrefix(name, "/") {
		controller, p = "", name
	}
	if !strings.HasPrefix(p, "/") {
		return nil, fmt.Errorf("%w: %q: a path begins with /", ErrNoCgroup, name)
	}
	for h, err := range k.CgroupHierarchies() {
		if err != nil {
			return nil, err
		}
		if controller == "" && !h.IsV2() || controller != "" && !hasController(h, controller) {
			continue
		}
		g := h.Root
		for _, part := range strings.Split(strings.Trim(path.Clean(p), "/"), "/") {
			if part == "" {
				break
			}
			if g, err = childGroup(g, part); err != nil {
				return nil, fmt.Errorf("%w: %q", err, name)
			}
		}
		return g, nil
	}
	return nil, fmt.Errorf("%w: %q", ErrNoCgroup, name)
}

func hasController(h *kernel.CgroupHierarchy, name string) bool {
	for _, c := range h.Controllers {
		if c == name {
			return true
		}
	}
	return "name="+h.Name == name
}

func childGroup(g *kernel.Cgroup, name string) (*kernel.Cgroup, error) {
	for c, err := range g.Children() {
		if err != nil {
			return nil, err
		}
		p, err := c.Path()
		if err != nil {
			return nil, err
		}
		if path.Base(p) == name {
			return c, nil
		}
	}
	return nil, ErrNoCgroup
}

// leadersBelow returns the leaders of all threads in root and below it.
func leadersBelow(ctx context.Context, root *kernel.Cgroup) (all []*kernel.Task, err error) {
	seen := map[kernel.Addr]bool{}
	for g, err := range root.Subtree() {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		for t, err := range g.Tasks() {
			if err != nil {
				return nil, err
			}
			if seen[t.GroupLeader] {
				continue
			}
			if len(all) >= maxProcesses {
				return nil, fmt.Errorf("control group: %w", kernel.ErrLimit)
			}
			seen[t.GroupLeader] = true
			l, err := t.Leader()
			if err != nil {
				return nil, err
			}
			all = append(all, l)
		}
	}
	return all, nil
}

// writeLocked is the part of an rwlock's word that is not zero while somebody writes
// (include/asm-generic/qrwlock_types.h).
const writeLocked = 0xff

// lockFree returns a *retryError if a lock is held under which a list changes.
func lockFree(k *kernel.Kernel, symbol string, mask uint32) error {
	a, err := k.Symbol(symbol)
	if err != nil {
		return unsupported("%w", err)
	}
	v, err := k.ReadU32(a)
	if err != nil {
		return err
	}
	if v&mask != 0 {
		return retry("%s is held (%#x)", symbol, v)
	}
	return nil
}

// processes returns the processes of s that a signal can be sent to, each with its
// threads. Kernel threads, which may be in a control group, and what is exiting are
// left out; one that must be left alone is an error for all.
func (o *op) processes(ctx context.Context, s Set, sig Signal) ([]*process, error) {
	leaders, err := s.leaders(ctx)
	if errors.Is(err, kernel.ErrCorrupt) {
		return nil, retry("the list of processes is in motion: %v", err)
	}
	if err != nil {
		return nil, err
	}
	all := make([]*process, 0, len(leaders))
	for _, t := range leaders {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if t.IsKernelThread() {
			continue
		}
		err := refuse(t, sig)
		if errors.Is(err, ErrExited) {
			continue
		}
		if errors.Is(err, kernel.ErrCorrupt) {
			return nil, retry("the threads of pid %d are in motion: %v", t.PID, err)
		}
		if err != nil {
			return nil, err
		}
		if err := o.sigLockFree(t); err != nil {
			return nil, err
		}
		threads, err := threadsOf(t)
		if err != nil {
			return nil, err
		}
		if len(threads) > 0 {
			all = append(all, &process{t, threads})
		}
	}
	return all, nil
}

// process is a process of a set in a paused guest.
type process struct {
	t       *kernel.Task
	threads []*thread
}
