package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/kernel"
)

func (a *app) ipcCommand() *cobra.Command {
	all := false
	c := a.command("ipc PID", "Show the IPC objects that a process can use",
		"ipc shows the System V shared memory, semaphores and message queues, and the POSIX\n"+
			"message queues of the IPC namespace of a process, as ipcs and /dev/mqueue do. With --all\n"+
			"it shows those of every IPC namespace of the guest.",
		func(c *cobra.Command, args []string) error {
			if all {
				return a.with(c.Context(), needRead, func(g *guest) error {
					views, err := readAllIPC(g.Kernel)
					if err != nil {
						return err
					}
					return a.showIPC(views, views)
				})
			}
			return a.process(c.Context(), needRead, args[0], func(_ *guest, t *kernel.Task) error {
				n, err := t.IPC()
				if err != nil {
					return err
				}
				v, err := readIPC(n)
				if err != nil {
					return err
				}
				return a.showIPC(v, []ipcView{v})
			})
		})
	a.orAll(c, &all, "show every IPC namespace")
	return a.jsonFlag(c)
}

// ipcView is what ipc --json prints.
type ipcView struct {
	IPCNS      uint32      `json:"ipcns"` // number, as in /proc/PID/ns/ipc
	Shm        []ipcShm    `json:"shm"`
	Semaphores []ipcSem    `json:"semaphores"`
	Messages   []ipcMsg    `json:"messages"`
	MQueues    []ipcMQueue `json:"mqueues"`
}

// ipcPerm is what System V objects have in common.
type ipcPerm struct {
	ID   int32  `json:"id"`
	Key  hex    `json:"key"` // 0 is IPC_PRIVATE
	Mode string `json:"mode"`
	UID  uint32 `json:"uid"`
	GID  uint32 `json:"gid"`
	CUID uint32 `json:"cuid"`
	CGID uint32 `json:"cgid"`
}

type ipcShm struct {
	ipcPerm
	Size     uint64     `json:"size"`
	Resident uint64     `json:"resident"`
	Swapped  uint64     `json:"swapped"`
	NAttach  uint64     `json:"nattch"`
	CPID     kernel.PID `json:"cpid"`
	LPID     kernel.PID `json:"lpid"`
	Atime    int64      `json:"atime"` // seconds since 1970, 0 for never
	Dtime    int64      `json:"dtime"`
	Ctime    int64      `json:"ctime"`
}

type ipcSem struct {
	ipcPerm
	Values []int32      `json:"values"`
	PIDs   []kernel.PID `json:"pids"` // that changed them last
	Otime  int64        `json:"otime"`
	Ctime  int64        `json:"ctime"`
}

type ipcMsg struct {
	ipcPerm
	CBytes uint64       `json:"cbytes"`
	QNum   uint64       `json:"qnum"`
	QBytes uint64       `json:"qbytes"`
	LSPID  kernel.PID   `json:"lspid"`
	LRPID  kernel.PID   `json:"lrpid"`
	Stime  int64        `json:"stime"`
	Rtime  int64        `json:"rtime"`
	Ctime  int64        `json:"ctime"`
	Queue  []ipcMessage `json:"queue"`
}

// ipcMessage is a message that waits; of a POSIX queue Type is its priority.
type ipcMessage struct {
	Type int64  `json:"type"`
	Size uint64 `json:"size"`
}

type ipcMQueue struct {
	Name      string       `json:"name"`
	Mode      string       `json:"mode"`
	UID       uint32       `json:"uid"`
	GID       uint32       `json:"gid"`
	MaxMsg    int64        `json:"maxmsg"`
	MsgSize   int64        `json:"msgsize"`
	QSize     uint64       `json:"qsize"`
	NotifyPID kernel.PID   `json:"notify_pid"` // 0 for nobody
	Queue     []ipcMessage `json:"queue"`
}

// seconds is a time as numbers of System V structures have it.
func seconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func newIPCPerm(p *kernel.IPCPerm) ipcPerm {
	return ipcPerm{p.ID, hex(uint32(p.Key)), fmt.Sprintf("%04o", p.Mode), p.UID, p.GID, p.CUID, p.CGID}
}

func readAllIPC(k *kernel.Kernel) ([]ipcView, error) {
	all, err := k.NamespaceList()
	if len(all) == 0 {
		return nil, err
	}
	views := []ipcView{}
	for _, ns := range all {
		if ns.Kind != "ipc" {
			continue
		}
		n, err := k.IPCNamespaceAt(ns.Addr)
		if err != nil {
			return nil, err
		}
		v, err := readIPC(n)
		if err != nil {
			return nil, err
		}
		views = append(views, v)
	}
	return views, nil
}

func readIPC(n *kernel.IPCNamespace) (v ipcView, err error) {
	v = ipcView{IPCNS: n.Inum, Shm: []ipcShm{}, Semaphores: []ipcSem{}, Messages: []ipcMsg{}, MQueues: []ipcMQueue{}}
	for s, err := range n.SharedMemory() {
		if err != nil {
			return v, err
		}
		v.Shm = append(v.Shm, ipcShm{
			newIPCPerm(&s.IPCPerm), s.Size, s.ResidentSize, s.Swapped, s.NAttach, s.CreatorPID, s.LastPID,
			seconds(s.Atime), seconds(s.Dtime), seconds(s.Ctime),
		})
	}
	for s, err := range n.Semaphores() {
		if err != nil {
			return v, err
		}
		out := ipcSem{ipcPerm: newIPCPerm(&s.IPCPerm), Values: []int32{}, PIDs: []kernel.PID{}, Ctime: seconds(s.Ctime)}
		for sem, err := range s.Sems() {
			if err != nil {
				return v, err
			}
			out.Values, out.PIDs = append(out.Values, sem.Value), append(out.PIDs, sem.LastPID)
			out.Otime = max(out.Otime, seconds(sem.Otime))
		}
		v.Semaphores = append(v.Semaphores, out)
	}
	for q, err := range n.MsgQueues() {
		if err != nil {
			return v, err
		}
		out := ipcMsg{
			newIPCPerm(&q.IPCPerm), q.CBytes, q.QNum, q.QBytes, q.LastSendPID, q.LastRecvPID,
			seconds(q.Stime), seconds(q.Rtime), seconds(q.Ctime), nil,
		}
		if out.Queue, err = readMessages(q.Messages()); err != nil {
			return v, err
		}
		v.Messages = append(v.Messages, out)
	}
	for q, err := range n.MQueues() {
		if err != nil {
			return v, err
		}
		out := ipcMQueue{
			q.Name, fmt.Sprintf("%04o", q.Inode.Mode&0o7777), q.Inode.UID, q.Inode.GID,
			q.MaxMsg, q.MsgSize, q.QSize, q.NotifyPID, nil,
		}
		if out.Queue, err = readMessages(q.Messages()); err != nil {
			return v, err
		}
		v.MQueues = append(v.MQueues, out)
	}
	return v, nil
}

func readMessages(messages func(func(*kernel.IPCMessage, error) bool)) ([]ipcMessage, error) {
	queue := []ipcMessage{}
	for m, err := range messages {
		if err != nil {
			return nil, err
		}
		queue = append(queue, ipcMessage{m.Type, m.Size})
	}
	return queue, nil
}

// showIPC prints object as JSON, or the views as tables.
func (a *app) showIPC(object any, views []ipcView) error {
	if a.json {
		return a.printJSON(object)
	}
	for i := range views {
		if i > 0 {
			fmt.Fprintln(a.stdout)
		}
		if err := printIPC(a, &views[i]); err != nil {
			return err
		}
	}
	return nil
}

func printIPC(a *app, v *ipcView) error {
	fmt.Fprintf(a.stdout, "ipc:[%d]\n", v.IPCNS)
	t := newTable(a.stdout, "KIND", "ID", "KEY", "MODE", "UID", "GID", "WHAT")
	row := func(kind string, p ipcPerm, what string) { t.row(kind, p.ID, p.Key, p.Mode, p.UID, p.GID, what) }
	for _, s := range v.Shm {
		row("shm", s.ipcPerm, fmt.Sprintf("%d bytes, %d attached, made by %d", s.Size, s.NAttach, s.CPID))
	}
	for _, s := range v.Semaphores {
		const shown = 8
		more := ""
		if len(s.Values) > shown {
			more = " …"
		}
		row("sem", s.ipcPerm, fmt.Sprintf("%d: %v%s", len(s.Values), s.Values[:min(shown, len(s.Values))], more))
	}
	for _, q := range v.Messages {
		row("msg", q.ipcPerm, fmt.Sprintf("%d messages, %d of %d bytes", q.QNum, q.CBytes, q.QBytes))
	}
	for _, q := range v.MQueues {
		t.row("mqueue", "/"+q.Name, "", q.Mode, q.UID, q.GID, fmt.Sprintf("%d of %d messages, %d bytes", len(q.Queue), q.MaxMsg, q.QSize))
	}
	return t.flush()
}
