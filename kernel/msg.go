package kernel

import (
	"encoding/binary"
	"iter"
	"time"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// MsgQueue is a System V message queue.
type MsgQueue struct {
	k *Kernel
	IPCPerm
	msgQueueFields
	LastSendPID, LastRecvPID PID
	Stime, Rtime, Ctime      time.Time // zero if never
}

type msgQueueFields struct {
	CBytes uint64 `k:"q_cbytes"` // in the queue
	QNum   uint64 `k:"q_qnum"`   // messages
	QBytes uint64 `k:"q_qbytes"` // that there may be

	StimeSec int64 `k:"q_stime"`
	RtimeSec int64 `k:"q_rtime"`
	CtimeSec int64 `k:"q_ctime"`
	LSPID    Addr  `k:"q_lspid"`
	LRPID    Addr  `k:"q_lrpid"`
	List     Addr  `k:"&q_messages"`
}

var msgQueueLayout = LayoutOf[msgQueueFields]("msg_queue")

// MsgQueues yields the System V message queues, as /proc/sysvipc/msg does. Source:
// ipc/msg.c:sysvipc_msg_proc_show.
func (n *IPCNamespace) MsgQueues() iter.Seq2[*MsgQueue, error] {
	return ipcObjects(n.k, n.Msg, "msg_queue", "q_perm", func(a Addr, p IPCPerm) (*MsgQueue, error) {
		q := &MsgQueue{k: n.k, IPCPerm: p}
		err := msgQueueLayout.LoadInto(n.k, a, &q.msgQueueFields)
		if err != nil {
			return nil, err
		}
		q.Stime, q.Rtime, q.Ctime = unixTime(q.StimeSec), unixTime(q.RtimeSec), unixTime(q.CtimeSec)
		if q.LastSendPID, err = n.k.pidNr(q.LSPID); err != nil {
			return nil, err
		}
		q.LastRecvPID, err = n.k.pidNr(q.LRPID)
		return q, err
	})
}

// Messages yields the queue's messages in the order in which they were sent.
func (q *MsgQueue) Messages() iter.Seq2[*IPCMessage, error] { return q.k.messages(q.List) }

// IPCMessage is a message in a System V or POSIX queue.
type IPCMessage struct {
	k *Kernel
	messageFields
}

type messageFields struct {
	Addr Addr   `k:"&"`      // of the msg_msg
	Type int64  `k:"m_type"` // of msgsnd(2), or the priority of mq_send(3)
	Size uint64 `k:"m_ts"`   // bytes
	Next Addr   `k:"next"`   // msg_msgseg with more of them
}

var messageLayout = LayoutOf[messageFields]("msg_msg")

func (k *Kernel) messages(head Addr) iter.Seq2[*IPCMessage, error] {
	return func(yield func(*IPCMessage, error) bool) {
		for m, err := range messageLayout.List(k, head, "m_list") {
			if !yield(&IPCMessage{k, m}, err) {
				return
			}
		}
	}
}

// maxMessage is HARD_MSGSIZEMAX, the largest POSIX message.
const maxMessage = 16 << 20

// Data returns the bytes that were sent. Source: ipc/msgutil.c:store_msg.
func (m *IPCMessage) Data() ([]byte, error) {
	if m.Size > maxMessage {
		return nil, &PathError{Path: "msg_msg", Addr: m.Addr, Err: ErrLimit}
	}
	head, err := messageLayout.Size(m.k)
	if err != nil {
		return nil, err
	}
	if head >= vmi.PageSize {
		return nil, corrupt(m.Addr, "msg_msg", "the structure has %d bytes", head)
	}
	var data []byte
	left, at, next := int(m.Size), m.Addr.Add(head), m.Next
	for room := vmi.PageSize - head; ; room = vmi.PageSize - 8 { // a msg_msgseg is a pointer
		part := make([]byte, min(left, room))
		if _, err := m.k.ReadAt(part, at); err != nil {
			return data, err
		}
		data = append(data, part...)
		if left -= len(part); left == 0 {
			return data, nil
		}
		var word [8]byte
		if _, err := m.k.ReadAt(word[:], next); err != nil {
			return data, err
		}
		at, next = next.Add(8), Addr(binary.LittleEndian.Uint64(word[:]))
	}
}
