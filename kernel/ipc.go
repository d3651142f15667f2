package kernel

import (
	"iter"
	"time"
)

// IPCNamespace holds the System V and POSIX objects of some processes.
type IPCNamespace struct {
	k    *Kernel
	Addr Addr // of the ipc_namespace
	ipcNamespaceFields
}

type ipcNamespaceFields struct {
	Inum uint32 `k:"ns.inum"` // as /proc/PID/ns/ipc shows it

	// Limits, as in /proc/sys/kernel and /proc/sys/fs/mqueue.
	SemLimits        [4]int32 `k:"sem_ctls"` // SEMMSL, SEMMNS, SEMOPM, SEMMNI
	MsgMax           uint32   `k:"msg_ctlmax"`
	MsgMnb           uint32   `k:"msg_ctlmnb"`
	MsgMni           uint32   `k:"msg_ctlmni"`
	ShmMax           uint64   `k:"shm_ctlmax"`
	ShmAll           uint64   `k:"shm_ctlall"` // pages
	ShmMni           int32    `k:"shm_ctlmni"`
	ShmTotal         uint64   `k:"shm_tot"` // pages that there are
	ShmRmidForced    bool     `k:"shm_rmid_forced"`
	MQQueuesMax      uint32   `k:"mq_queues_max,opt"`
	MQMsgMax         uint32   `k:"mq_msg_max,opt"`
	MQMsgSizeMax     uint32   `k:"mq_msgsize_max,opt"`
	MQMsgDefault     uint32   `k:"mq_msg_default,opt"`
	MQMsgSizeDefault uint32   `k:"mq_msgsize_default,opt"`

	Sem     Addr `k:"&ids[0].ipcs_idr"`
	Msg     Addr `k:"&ids[1].ipcs_idr"`
	Shm     Addr `k:"&ids[2].ipcs_idr"`
	MQMount Addr `k:"mq_mnt,opt"` // vfsmount
}

// IPCPerm is what all System V objects have.
type IPCPerm struct {
	Addr Addr   `k:"&"` // of the kern_ipc_perm
	Key  int32  `k:"key"`
	ID   int32  `k:"id"`   // as shmget(2), semget(2), msgget(2) return it
	Mode uint32 `k:"mode"` // permissions; of shared memory also SHM_DEST and SHM_LOCKED
	UID  uint32 `k:"uid"`  // in the initial user namespace
	GID  uint32 `k:"gid"`
	CUID uint32 `k:"cuid"` // of who made it
	CGID uint32 `k:"cgid"`

	Deleted bool `k:"deleted"`
}

var (
	ipcNamespaceLayout = LayoutOf[ipcNamespaceFields]("ipc_namespace")
	ipcPermLayout      = LayoutOf[IPCPerm]("kern_ipc_perm")
)

// IPC returns the IPC namespace of t. The error wraps ErrNoNS for a task that has exited.
func (t *Task) IPC() (*IPCNamespace, error) {
	all, err := t.Namespaces()
	if err != nil {
		return nil, err
	}
	return t.k.IPCNamespaceAt(all.Get("ipc").Addr)
}

// IPCNamespaceAt reads the ipc_namespace at a, as [Kernel.NamespaceList] finds them.
func (k *Kernel) IPCNamespaceAt(a Addr) (*IPCNamespace, error) {
	n := &IPCNamespace{k: k, Addr: a}
	if err := ipcNamespaceLayout.LoadInto(k, a, &n.ipcNamespaceFields); err != nil {
		return nil, err
	}
	return n, nil
}

// ipcObjects yields the objects of an IDR, made of the structure that the kern_ipc_perm
// is the member of.
func ipcObjects[T any](k *Kernel, ids Addr, cname, member string, load func(Addr, IPCPerm) (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		off, err := k.offsetOf(cname, member)
		if err != nil {
			yield(none, err)
			return
		}
		for e, err := range k.IDR(ids) {
			if err != nil {
				yield(none, err)
				return
			}
			p, err := ipcPermLayout.Load(k, Addr(e.Entry))
			if err != nil {
				if !yield(none, err) {
					return
				}
				continue
			}
			if p.Deleted {
				continue
			}
			if !yield(load(p.Addr-Addr(off), p)) {
				return
			}
		}
	}
}

// pidNr returns the number of a struct pid in the initial namespace, 0 for none.
func (k *Kernel) pidNr(a Addr) (PID, error) {
	if a == 0 {
		return 0, nil
	}
	nums, err := k.pidNumbers(a)
	if err != nil {
		return 0, err
	}
	return nums[0].PID, nil
}

// unixTime is time.Unix, but 0 is no time.
func unixTime(sec int64) time.Time {
	if sec == 0 {
		return time.Time{}
	}
	return time.Unix(sec, 0)
}
