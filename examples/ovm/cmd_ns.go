package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/kernel"
)

const longNS = `ns shows the namespaces that a process is in: their numbers as in /proc/PID/ns, the user
namespaces that own them, and how many threads are in them; and the container that the
process is in, as far as control groups and mounts tell.`

func (a *app) nsCommand() *cobra.Command {
	return a.jsonFlag(a.command("ns PID", "Show the namespaces of a process", longNS,
		func(c *cobra.Command, args []string) error {
			return a.process(c.Context(), needRead, args[0], func(g *guest, t *kernel.Task) error {
				o, err := readNamespaces(g.Kernel, t)
				if err != nil {
					return about(t, err)
				}
				if a.json {
					return a.printJSON(o)
				}
				return o.print(a)
			})
		}))
}

// processNamespaces is what ns --json prints.
type processNamespaces struct {
	PID        kernel.PID       `json:"pid"`
	Comm       string           `json:"comm"`
	Container  *containerOutput `json:"container"` // null if there is no sign of one
	Namespaces []namespace      `json:"namespaces"`
}

type containerOutput struct {
	Engine string `json:"engine"`
	ID     string `json:"id"`
	Name   string `json:"name"`
	Pod    string `json:"pod"`
}

type namespace struct {
	Kind    string       `json:"kind"`
	Inum    uint32       `json:"inum"`
	Owner   uint32       `json:"owner"`            // user namespace, 0 for the initial one's
	Parent  uint32       `json:"parent,omitempty"` // of pid and user namespaces
	Tasks   []kernel.PID `json:"tasks"`            // threads in it
	FDs     []kernel.PID `json:"fds"`              // processes that hold it by a file
	Mounts  []uint32     `json:"mounts"`           // mount namespaces where it is mounted
	UIDMap  []idRange    `json:"uid_map,omitempty"`
	GIDMap  []idRange    `json:"gid_map,omitempty"`
	Creator *uint32      `json:"creator_uid,omitempty"` // of a user namespace
	// Offsets of a time namespace.
	MonotonicNS *int64  `json:"monotonic_offset_ns,omitempty"`
	BoottimeNS  *int64  `json:"boottime_offset_ns,omitempty"`
	Nodename    *string `json:"nodename,omitempty"`
	Domainname  *string `json:"domainname,omitempty"`
}

// idRange is a line of uid_map.
type idRange struct {
	Inside  uint32 `json:"inside"`
	Outside uint32 `json:"outside"` // in the initial user namespace
	Count   uint32 `json:"count"`
}

func readNamespaces(k *kernel.Kernel, t *kernel.Task) (*processNamespaces, error) {
	o := &processNamespaces{PID: t.PID, Comm: t.Comm, Namespaces: []namespace{}}
	own, err := t.Namespaces()
	if err != nil {
		return nil, err
	}
	// What could not be read of others is missing in the lists of inhabitants.
	list, _ := k.NamespaceList()
	byAddr := map[kernel.Addr]*kernel.NamespaceInfo{}
	for _, n := range list {
		byAddr[n.Addr] = n
	}
	for _, n := range own.All {
		e := namespace{Kind: n.Kind, Inum: n.Inum, Tasks: []kernel.PID{}, FDs: []kernel.PID{}, Mounts: []uint32{}}
		if i := byAddr[n.Addr]; i != nil {
			e.Owner, e.Parent = i.Owner, i.Parent
			e.Tasks, e.FDs, e.Mounts = append(e.Tasks, i.Tasks...), append(e.FDs, i.FDs...), append(e.Mounts, i.Mounts...)
		}
		if err := e.describe(k, own, n); err != nil {
			return nil, err
		}
		o.Namespaces = append(o.Namespaces, e)
	}
	c, ok, err := t.Container()
	if ok {
		o.Container = &containerOutput{c.Engine, c.ID, c.Name, c.Pod}
	}
	return o, err
}

// describe adds what only namespaces of one kind have.
func (e *namespace) describe(k *kernel.Kernel, own *kernel.Namespaces, n kernel.Namespace) error {
	switch n.Kind {
	case "user":
		u, err := k.UserNSAt(n.Addr)
		if err != nil {
			return err
		}
		e.Creator = &u.Owner
		for _, m := range u.UIDMap {
			e.UIDMap = append(e.UIDMap, idRange{m.First, m.Lower, m.Count})
		}
		for _, m := range u.GIDMap {
			e.GIDMap = append(e.GIDMap, idRange{m.First, m.Lower, m.Count})
		}
	case "uts":
		u, err := own.UTS()
		if err != nil {
			return err
		}
		e.Nodename, e.Domainname = &u.NodeName, &u.DomainName
	case "time":
		mono, boot, err := own.TimeOffsets()
		if err != nil {
			return err
		}
		m, b := mono.Nanoseconds(), boot.Nanoseconds()
		e.MonotonicNS, e.BoottimeNS = &m, &b
	}
	return nil
}

func (o *processNamespaces) print(a *app) error {
	t := newTable(a.stdout, "KIND", "NUMBER", "OWNER", "PARENT", "THREADS", "DETAILS")
	for _, n := range o.Namespaces {
		var details []string
		if n.Nodename != nil {
			details = append(details, *n.Nodename)
		}
		for _, m := range n.UIDMap {
			details = append(details, fmt.Sprintf("%d=%d+%d", m.Inside, m.Outside, m.Count))
		}
		if n.MonotonicNS != nil && (*n.MonotonicNS != 0 || *n.BoottimeNS != 0) {
			details = append(details, fmt.Sprintf("monotonic %+dns, boottime %+dns", *n.MonotonicNS, *n.BoottimeNS))
		}
		t.row(n.Kind, n.Inum, dash(n.Owner), dash(n.Parent), len(n.Tasks), strings.Join(details, " "))
	}
	if err := t.flush(); err != nil || o.Container == nil {
		return err
	}
	c := o.Container
	_, err := fmt.Fprintf(a.stdout, "container %s\n",
		printable(strings.Join(strings.Fields(c.Engine+" "+c.ID+" "+c.Pod), " ")))
	return err
}

func dash(n uint32) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}
