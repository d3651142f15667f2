package kernel_test

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel"
)

//go:embed testdata/ipczoo.py
var ipcZooProgram []byte

// ipcView is what the guest says of an IPC namespace, from inside: see ipczoo.py.
type ipcView struct {
	Error         string
	PID           kernel.PID
	Inum          uint32
	Shm, Sem, Msg string // files of /proc/sysvipc
	Sems          map[string][][2]int
	QBytes        map[string]uint64
	Limits        map[string][]string
	Messages      map[string][][2]any
	MQ            map[string]struct {
		Text string
		Attr [4]int64
		Mode uint32
		UID  uint32
		Ino  uint64
	}
	MQMessages map[string][][2]any
}

// checkIPC compares the objects of two IPC namespaces with what processes in them see.
// They do not change, so all is compared.
func checkIPC(t *testing.T, z *zoo) {
	ctx := t.Context()
	require.NoError(t, z.vm.Put(ctx, "/root/ipczoo.py", bytes.NewReader(ipcZooProgram), 0o644))
	out, err := z.vm.Exec(ctx, "python3", "/root/ipczoo.py")
	require.NoError(t, err, "%s", out)
	var views []ipcView
	require.NoError(t, json.Unmarshal(out, &views))
	d := differences{}
	compareIPC(t, d, z, views)
	d.report(t)
}

func compareIPC(t *testing.T, d differences, z *zoo, views []ipcView) {
	require.Len(t, views, 2)
	for i, v := range views {
		require.Empty(t, v.Error)
		task, err := z.k.Task(v.PID)
		require.NoError(t, err)
		n, err := task.IPC()
		require.NoError(t, err)
		d.equal("inum", n.Inum, v.Inum)
		for what, count := range map[string][2]int{v.Shm: {5, 1}, v.Sem: {2, 1}, v.Msg: {2, 1}} {
			if n := strings.Count(what, "\n") - 1; n < count[i] {
				d.add("the guest has only %d objects:\n%s", n, what)
			}
		}
		compareSysvipc(d, n, &v)
		compareIPCContent(d, n, &v)
		compareMQueues(d, n, &v)
		compareIPCLimits(d, n, &v)
	}
	checkShmContent(t, z, views[0].PID)
}

// seconds is what the kernel shows of a time.
func seconds(at time.Time) int64 {
	if at.IsZero() {
		return 0
	}
	return at.Unix()
}

// sysvipcFile makes a file of /proc/sysvipc of rows; the words of its lines are compared.
func compareSysvipcFile(d differences, what string, rows []string, file string) {
	lines := strings.Split(strings.TrimSpace(file), "\n")[1:]
	for i := range max(len(lines), len(rows)) {
		got, want := "", ""
		if i < len(rows) {
			got = rows[i]
		}
		if i < len(lines) {
			want = strings.Join(strings.Fields(lines[i]), " ")
		}
		d.equal(fmt.Sprintf("%s line %d", what, i), got, want)
	}
}

func compareSysvipc(d differences, n *kernel.IPCNamespace, v *ipcView) {
	var rows []string
	for s, err := range n.SharedMemory() {
		if err != nil {
			d.add("shm: %v", err)
			continue
		}
		rows = append(rows, fmt.Sprintf("%d %d %o %d %d %d %d %d %d %d %d %d %d %d %d %d",
			s.Key, s.ID, s.Mode, s.Size, s.CreatorPID, s.LastPID, s.NAttach, s.UID, s.GID, s.CUID, s.CGID,
			seconds(s.Atime), seconds(s.Dtime), seconds(s.Ctime), s.ResidentSize, s.Swapped))
	}
	compareSysvipcFile(d, "shm", rows, v.Shm)
	rows = nil
	for s, err := range n.Semaphores() {
		if err != nil {
			d.add("sem: %v", err)
			continue
		}
		otime, err := s.Otime()
		if err != nil {
			d.add("sem: %v", err)
		}
		rows = append(rows, fmt.Sprintf("%d %d %o %d %d %d %d %d %d %d",
			s.Key, s.ID, s.Mode, s.NSems, s.UID, s.GID, s.CUID, s.CGID, seconds(otime), seconds(s.Ctime)))
		var values [][2]int
		for sem, err := range s.Sems() {
			if err != nil {
				d.add("sem: %v", err)
			}
			values = append(values, [2]int{int(sem.Value), int(sem.LastPID)})
		}
		d.equal(fmt.Sprintf("values of sem %d", s.ID), values, v.Sems[strconv.Itoa(int(s.ID))])
	}
	compareSysvipcFile(d, "sem", rows, v.Sem)
	rows = nil
	for q, err := range n.MsgQueues() {
		if err != nil {
			d.add("msg: %v", err)
			continue
		}
		rows = append(rows, fmt.Sprintf("%d %d %o %d %d %d %d %d %d %d %d %d %d %d",
			q.Key, q.ID, q.Mode, q.CBytes, q.QNum, q.LastSendPID, q.LastRecvPID, q.UID, q.GID, q.CUID, q.CGID,
			seconds(q.Stime), seconds(q.Rtime), seconds(q.Ctime)))
		d.equal(fmt.Sprintf("qbytes of msg %d", q.ID), q.QBytes, v.QBytes[strconv.Itoa(int(q.ID))])
	}
	compareSysvipcFile(d, "msg", rows, v.Msg)
}

// sent is how the guest tells of messages.
func sent(messages func(func(*kernel.IPCMessage, error) bool)) (all [][2]any, err error) {
	for m, err := range messages {
		if err != nil {
			return all, err
		}
		b, err := m.Data()
		if err != nil {
			return all, err
		}
		all = append(all, [2]any{m.Type, latin1(string(b))})
	}
	return all, nil
}

func compareIPCContent(d differences, n *kernel.IPCNamespace, v *ipcView) {
	for q, err := range n.MsgQueues() {
		if err != nil {
			continue // reported before
		}
		got, err := sent(q.Messages())
		if err != nil {
			d.add("messages of msg %d: %v", q.ID, err)
		}
		d.equal(fmt.Sprintf("messages of msg %d", q.ID), got, v.Messages[strconv.Itoa(int(q.ID))])
	}
}

func compareMQueues(d differences, n *kernel.IPCNamespace, v *ipcView) {
	seen := 0
	for q, err := range n.MQueues() {
		if err != nil {
			d.add("mqueue: %v", err)
			continue
		}
		want, ok := v.MQ[q.Name]
		if !ok {
			d.add("mqueue %s: the guest has it not", q.Name)
			continue
		}
		seen++
		at := func(what string) string { return "mqueue " + q.Name + ": " + what }
		notify, signo := q.Notify, q.Signo
		if q.NotifyPID == 0 {
			notify, signo = 0, 0
		}
		d.equal(at("text"), strings.Fields(fmt.Sprintf("QSIZE:%-10d NOTIFY:%-5d SIGNO:%-5d NOTIFY_PID:%-6d", q.QSize, notify, signo, q.NotifyPID)), strings.Fields(want.Text))
		d.equal(at("attr"), [3]int64{q.MaxMsg, q.MsgSize, q.CurMsgs}, [3]int64(want.Attr[1:]))
		d.equal(at("inode"), fmt.Sprint(q.Inode.Mode, q.Inode.UID, q.Inode.Ino), fmt.Sprint(want.Mode, want.UID, want.Ino))
		got, err := sent(q.Messages())
		if err != nil {
			d.add("%s: %v", at("messages"), err)
		}
		d.equal(at("messages"), got, v.MQMessages[q.Name])
	}
	d.equal("mqueues", seen, len(v.MQ))
}

func compareIPCLimits(d differences, n *kernel.IPCNamespace, v *ipcView) {
	for name, got := range map[string]any{
		"kernel/sem": n.SemLimits, "kernel/msgmax": n.MsgMax, "kernel/msgmnb": n.MsgMnb, "kernel/msgmni": n.MsgMni,
		"kernel/shmmax": n.ShmMax, "kernel/shmall": n.ShmAll, "kernel/shmmni": n.ShmMni,
		"fs/mqueue/queues_max": n.MQQueuesMax, "fs/mqueue/msg_max": n.MQMsgMax, "fs/mqueue/msgsize_max": n.MQMsgSizeMax,
	} {
		d.equal(name, strings.Trim(fmt.Sprint(got), "[]"), strings.Join(v.Limits[name], " "))
	}
}

// checkShmContent reads what was written to a segment.
func checkShmContent(t *testing.T, z *zoo, pid kernel.PID) {
	task, err := z.k.Task(pid)
	require.NoError(t, err)
	n, err := task.IPC()
	require.NoError(t, err)
	for s, err := range n.SharedMemory() {
		require.NoError(t, err)
		if s.Key != 0x1234 {
			continue
		}
		c, err := s.Content()
		require.NoError(t, err)
		b := make([]byte, s.Size)
		_, err = c.ReadAt(b, 0)
		require.NoError(t, err)
		require.Equal(t, append(bytes.Repeat([]byte{0x5a}, 3*4096), make([]byte, len(b)-3*4096)...), b)
		return
	}
	t.Error("segment 0x1234 was not found")
}
