package kernel

import (
	"encoding/binary"
	"iter"
	"time"

	"github.com/ovmigrate/ovmigrate/vmi"
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

// Shm is a System V shared memory segment.
type Shm struct {
	k *Kernel
	IPCPerm
	shmFields
	CreatorPID, LastPID   PID
	Atime, Dtime, Ctime   time.Time // zero if never
	ResidentSize, Swapped uint64    // bytes; not read for segments of huge pages
}

type shmFields struct {
	Size    uint64 `k:"shm_segsz"` // bytes
	NAttach uint64 `k:"shm_nattch"`
	File    Addr   `k:"shm_file"` // struct file of its content

	AtimeSec int64 `k:"shm_atim"`
	DtimeSec int64 `k:"shm_dtim"`
	CtimeSec int64 `k:"shm_ctim"`
	CPID     Addr  `k:"shm_cprid"`
	LPID     Addr  `k:"shm_lprid"`
}

var shmLayout = LayoutOf[shmFields]("shmid_kernel")

// SharedMemory yields the System V shared memory segments, as /proc/sysvipc/shm does;
// process numbers are those of the initial pid namespace. An object that cannot be read
// is yielded as its error and the walk goes on. Source: ipc/shm.c:sysvipc_shm_proc_show.
func (n *IPCNamespace) SharedMemory() iter.Seq2[*Shm, error] {
	return ipcObjects(n.k, n.Shm, "shmid_kernel", "shm_perm", n.k.shm)
}

func (k *Kernel) shm(a Addr, p IPCPerm) (*Shm, error) {
	s := &Shm{k: k, IPCPerm: p}
	err := shmLayout.LoadInto(k, a, &s.shmFields)
	if err != nil {
		return nil, err
	}
	s.Atime, s.Dtime, s.Ctime = unixTime(s.AtimeSec), unixTime(s.DtimeSec), unixTime(s.CtimeSec)
	if s.CreatorPID, err = k.pidNr(s.CPID); err != nil {
		return nil, err
	}
	if s.LastPID, err = k.pidNr(s.LPID); err != nil {
		return nil, err
	}
	f, err := k.FileAt(s.File)
	if err != nil || f.SB.Magic != MagicTmpfs {
		return s, err
	}
	c, err := addressSpaceLayout.Load(k, f.Inode.Mapping)
	if err != nil {
		return nil, err
	}
	info, err := k.ContainerOf(f.Inode.Addr, "shmem_inode_info", "vfs_inode")
	if err != nil {
		return nil, err
	}
	i, err := shmemInodeLayout.Load(k, info)
	s.ResidentSize, s.Swapped = c.NrPages*vmi.PageSize, i.Swapped*vmi.PageSize
	return s, err
}

// Content returns the segment's memory; what was never written to reads as zeros.
func (s *Shm) Content() (*PageCache, error) {
	f, err := s.k.FileAt(s.File)
	if err != nil {
		return nil, err
	}
	return f.Inode.PageCache()
}

// SemSet is a set of System V semaphores.
type SemSet struct {
	k *Kernel
	IPCPerm
	semSetFields
	Ctime time.Time
}

type semSetFields struct {
	NSems int32 `k:"sem_nsems"`

	CtimeSec int64 `k:"sem_ctime"`
	First    Addr  `k:"&sems"`
}

// Sem is one semaphore of a set.
type Sem struct {
	Value   int32     // as GETVAL of semctl(2)
	LastPID PID       // as GETPID, in the initial pid namespace
	Otime   time.Time // of the last semop(2) that named it first; zero if never
}

type semFields struct {
	Value    int32 `k:"semval"`
	PID      Addr  `k:"sempid"`
	OtimeSec int64 `k:"sem_otime"`
}

var (
	semSetLayout = LayoutOf[semSetFields]("sem_array")
	semLayout    = LayoutOf[semFields]("sem")
)

// Semaphores yields the sets of System V semaphores, as /proc/sysvipc/sem does. Source:
// ipc/sem.c:sysvipc_sem_proc_show.
func (n *IPCNamespace) Semaphores() iter.Seq2[*SemSet, error] {
	return ipcObjects(n.k, n.Sem, "sem_array", "sem_perm", func(a Addr, p IPCPerm) (*SemSet, error) {
		s := &SemSet{k: n.k, IPCPerm: p}
		err := semSetLayout.LoadInto(n.k, a, &s.semSetFields)
		s.Ctime = unixTime(s.CtimeSec)
		return s, err
	})
}

// maxSems bounds a set; the kernel does at USHRT_MAX semaphores.
const maxSems = 1 << 16

// Sems yields the semaphores of a set.
func (s *SemSet) Sems() iter.Seq2[Sem, error] {
	return func(yield func(Sem, error) bool) {
		size, err := semLayout.Size(s.k)
		if err == nil && (s.NSems < 0 || s.NSems > maxSems) {
			err = corrupt(s.Addr, "sem_array", "%d semaphores", s.NSems)
		}
		if err != nil {
			yield(Sem{}, err)
			return
		}
		for i := range int(s.NSems) {
			f, err := semLayout.Load(s.k, s.First.Add(i*size))
			sem := Sem{Value: f.Value, Otime: unixTime(f.OtimeSec)}
			if err == nil {
				sem.LastPID, err = s.k.pidNr(f.PID)
			}
			if !yield(sem, err) {
				return
			}
		}
	}
}

// Otime returns the time of the last semop(2), zero if there was none. Source:
// ipc/sem.c:get_semotime.
func (s *SemSet) Otime() (last time.Time, err error) {
	for sem, err := range s.Sems() {
		if err != nil {
			return last, err
		}
		if sem.Otime.After(last) {
			last = sem.Otime
		}
	}
	return last, nil
}

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
