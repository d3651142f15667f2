package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/vmi"
)

const longPS = `ps lists the processes of the guest, kernel threads included. Process numbers are those
of the guest's initial pid namespace, user and group numbers the effective ones in its
initial user namespace.

With --tree each process stands below its parent.`

func (a *app) psCommand() *cobra.Command {
	threads, asTree := false, false
	c := a.command("ps", "List the guest's processes", longPS,
		func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), needRead, func(g *guest) error {
				all, err := processes(c.Context(), g.Kernel, threads)
				if all == nil {
					return err
				}
				var branches []string
				if asTree {
					all, branches = treeOf(all)
				}
				if perr := a.printProcesses(all, branches, threads); perr != nil {
					return perr
				}
				return err
			})
		})
	c.Flags().BoolVar(&threads, "threads", false, "list every thread of the processes")
	c.Flags().BoolVar(&asTree, "tree", false, "show which process is the parent of which")
	return a.jsonFlag(c)
}

// process is an element of what ps --json prints.
type process struct {
	PID      kernel.PID        `json:"pid"`
	TID      kernel.PID        `json:"tid"`
	PPID     kernel.PID        `json:"ppid"`
	PGID     kernel.PID        `json:"pgid"`
	SID      kernel.PID        `json:"sid"`
	Comm     string            `json:"comm"`  // as /proc/PID/comm shows it
	State    string            `json:"state"` // the letter that /proc/PID/stat shows
	UID      uint32            `json:"uid"`
	GID      uint32            `json:"gid"`
	StartNS  uint64            `json:"start_ns"` // since the guest booted
	Cmdline  []string          `json:"cmdline"`
	Cgroup   string            `json:"cgroup"` // path in the cgroup v2 hierarchy
	NS       map[string]uint32 `json:"ns"`     // inode numbers, as in /proc/PID/ns
	RSSPages int64             `json:"rss_pages"`
}

// walkTries is how often a list is walked that changes meanwhile.
const walkTries = 5

// tasks returns the guest's processes or threads. A running guest may break a walk:
// it is tried again. Errors that stay are returned with what could be read.
func tasks(k *kernel.Kernel, threads bool) (all []*kernel.Task, err error) {
	for range walkTries {
		if all, err = walkTasks(k, threads); err == nil {
			break
		}
	}
	return all, err
}

func walkTasks(k *kernel.Kernel, threads bool) ([]*kernel.Task, error) {
	var all []*kernel.Task
	var errs []error
	add := func(t *kernel.Task, err error) {
		if err != nil {
			errs = append(errs, err)
			return
		}
		all = append(all, t)
	}
	for t, err := range k.Tasks() {
		if err != nil || !threads {
			add(t, err)
			continue
		}
		for u, err := range t.Threads() {
			if errors.Is(err, kernel.ErrNoTask) {
				break // it is exiting
			}
			add(u, err)
		}
	}
	return all, errors.Join(errs...)
}

// processes reads every process or thread. Those that exit while they are looked
// at are left out.
func processes(ctx context.Context, k *kernel.Kernel, threads bool) ([]process, error) {
	found, err := tasks(k, threads)
	all := make([]process, 0, len(found))
	failed := 0
	for _, t := range found {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		p, perr := readProcess(t)
		for range walkTries {
			if perr == nil || t.Refresh() != nil {
				break
			}
			p, perr = readProcess(t)
		}
		switch {
		case perr == nil:
			all = append(all, p)
		case t.Refresh() == nil:
			if failed++; failed == 1 {
				err = errors.Join(err, perr)
			}
		}
	}
	if failed > 1 {
		err = errors.Join(err, fmt.Errorf("and %d more", failed-1))
	}
	return all, err
}

func readProcess(t *kernel.Task) (p process, err error) {
	p = process{
		PID: t.TGID, TID: t.PID, State: string(t.StateChar()), StartNS: t.BootTime,
		Cmdline: []string{}, NS: map[string]uint32{},
	}
	fail := func(what string, err error) (process, error) {
		return p, fmt.Errorf("pid %d: %s: %w", t.PID, what, err)
	}
	if p.Comm, err = procName(t); err != nil {
		return fail("name", err)
	}
	if p.PPID, err = t.PPID(); err != nil {
		return fail("parent", err)
	}
	if p.PGID, err = t.PGID(); err != nil {
		return fail("process group", err)
	}
	if p.SID, err = t.SID(); err != nil {
		return fail("session", err)
	}
	cred, err := t.Cred()
	if err != nil {
		return fail("credentials", err)
	}
	p.UID, p.GID = cred.EUID, cred.EGID
	if err := p.addNamespaces(t, cred); err != nil {
		return fail("namespaces", err)
	}
	cgroup, err := t.Cgroup()
	if err != nil {
		return fail("cgroup", err)
	}
	p.Cgroup = cgroup.Path
	mm, err := t.MM()
	if errors.Is(err, kernel.ErrNoMM) {
		return p, nil
	}
	if err != nil {
		return fail("memory", err)
	}
	p.RSSPages = mm.RSS()
	// Arguments that are not in memory are left out.
	args, err := mm.Cmdline()
	if err != nil && !isAbsent(err) {
		return fail("command line", err)
	}
	p.Cmdline = splitArgs(args)
	return p, nil
}

func (p *process) addNamespaces(t *kernel.Task, cred *kernel.Cred) error {
	ns, err := t.Namespaces()
	if !errors.Is(err, kernel.ErrNoNS) {
		if err == nil {
			for _, n := range ns.All {
				p.NS[n.Kind] = n.Inum
			}
		}
		return err
	}
	// A process that has exited has only those left that its number and its
	// credentials are part of.
	user, err := cred.UserNS()
	if err != nil {
		return err
	}
	p.NS["user"] = user.Inum
	pids, err := t.NSPIDs()
	if err != nil {
		return err
	}
	pid, err := t.Kernel().Object("pid_namespace", pids[len(pids)-1].NS)
	if err != nil {
		return err
	}
	inum, err := uintField(pid, "ns.inum")
	p.NS["pid"] = uint32(inum)
	return err
}

// isAbsent says whether err is about user memory that is not resident, or that the
// dump leaves out. Not all formats tell what is left out from what is no RAM.
func isAbsent(err error) bool {
	var none *paging.NotMappedError
	var fault *vmi.FaultError
	return errors.As(err, &none) || errors.Is(err, vmi.ErrExcluded) || errors.As(err, &fault) && fault.Err == nil
}

// splitArgs splits a command line at its NULs, of which the last one ends it.
func splitArgs(b []byte) []string {
	if len(b) == 0 {
		return []string{}
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

// printProcesses prints a table, or JSON. branches is what stands before each command in
// a tree, nil for none.
func (a *app) printProcesses(all []process, branches []string, threads bool) error {
	if a.json {
		return a.printJSON(all)
	}
	heads := []any{"PID", "PPID", "UID", "S", "RSS", "COMMAND"}
	if threads {
		heads = []any{"PID", "TID", "PPID", "UID", "S", "RSS", "COMMAND"}
	}
	t := newTable(a.stdout, heads...)
	for i, p := range all {
		command := strings.TrimRight(strings.Join(p.Cmdline, " "), " ")
		switch {
		case command == "":
			command = "[" + p.Comm + "]"
		case threads && p.TID != p.PID:
			command = "{" + p.Comm + "} " + command
		}
		if branches != nil {
			command = branches[i] + command
		}
		cells := []any{p.PID, p.PPID, p.UID, p.State, formatSize(uint64(p.RSSPages) * 4096), command}
		if threads {
			cells = append([]any{p.PID, p.TID}, cells[1:]...)
		}
		t.row(cells...)
	}
	return t.flush()
}
