package kernel

import (
	"iter"
	"slices"
)

// MQueue is a POSIX message queue.
type MQueue struct {
	k     *Kernel
	Name  string // with no slash before it
	Inode *Inode
	mqueueFields
	NotifyPID PID // of who is told of the next message, 0 if nobody
}

type mqueueFields struct {
	MaxMsg  int64  `k:"attr.mq_maxmsg"`  // messages that there may be
	MsgSize int64  `k:"attr.mq_msgsize"` // bytes of one
	CurMsgs int64  `k:"attr.mq_curmsgs"`
	QSize   uint64 `k:"qsize"` // bytes in the queue
	// Notify is how: SIGEV_SIGNAL (with Signo), SIGEV_NONE or SIGEV_THREAD; it means
	// something only if NotifyPID is not 0.
	Notify int32 `k:"notify.sigev_notify"`
	Signo  int32 `k:"notify.sigev_signo"`

	NotifyOwner Addr `k:"notify_owner"`
	Tree        Addr `k:"&msg_tree"`
}

type mqTreeNode struct {
	Messages Addr `k:"&msg_list"`
}

var (
	mqueueLayout     = LayoutOf[mqueueFields]("mqueue_inode_info")
	mqTreeNodeLayout = LayoutOf[mqTreeNode]("posix_msg_tree_node")
)

// MQueues yields the namespace's POSIX message queues, wherever their file system is
// mounted, if at all. One that cannot be read is yielded as its error and the walk goes
// on. Source: ipc/mqueue.c:mqueue_read_file.
func (n *IPCNamespace) MQueues() iter.Seq2[*MQueue, error] {
	return func(yield func(*MQueue, error) bool) {
		if n.MQMount == 0 {
			return // built without them
		}
		mnt, err := vfsmountLayout.Load(n.k, n.MQMount)
		if err != nil {
			yield(nil, err)
			return
		}
		for d, err := range n.k.dentryChildren(mnt.Root) {
			if err == nil && d.Inode == 0 {
				continue // a name that was looked for in vain
			}
			var q *MQueue
			if err == nil {
				q, err = n.k.mqueue(&d)
			}
			if !yield(q, err) {
				return
			}
		}
	}
}

func (k *Kernel) mqueue(d *dentry) (*MQueue, error) {
	q := &MQueue{k: k}
	var err error
	if q.Inode, err = k.InodeAt(d.Inode); err != nil {
		return nil, err
	}
	if q.Name, err = k.CString(d.Name, int(min(d.NameLen, maxName))); err != nil {
		return nil, err
	}
	a, err := k.ContainerOf(d.Inode, "mqueue_inode_info", "vfs_inode")
	if err != nil {
		return nil, err
	}
	if err := mqueueLayout.LoadInto(k, a, &q.mqueueFields); err != nil {
		return nil, err
	}
	q.NotifyPID, err = k.pidNr(q.NotifyOwner)
	return q, err
}

// maxPriorities is MQ_PRIO_MAX.
const maxPriorities = 32768

// Messages yields the queue's messages in the order in which they will be received.
// Source: ipc/mqueue.c:msg_get.
func (q *MQueue) Messages() iter.Seq2[*IPCMessage, error] {
	return func(yield func(*IPCMessage, error) bool) {
		var lists []Addr // by rising priority
		for n, err := range mqTreeNodeLayout.RBTree(q.k, q.Tree, "rb_node") {
			if err == nil && len(lists) >= maxPriorities {
				err = &PathError{Path: "mqueue_inode_info", Addr: q.Inode.Addr, Err: ErrLimit}
			}
			if err != nil {
				yield(nil, err)
				return
			}
			lists = append(lists, n.Messages)
		}
		count := 0
		for _, head := range slices.Backward(lists) {
			for m, err := range q.k.messages(head) {
				if count++; count > maxWalk {
					yield(nil, &PathError{Path: "mqueue_inode_info", Addr: q.Inode.Addr, Err: ErrLimit})
					return
				}
				if !yield(m, err) {
					return
				}
			}
		}
	}
}
