package kernel

import (
	"iter"
	"time"

	"github.com/ovmigrate/ovmigrate/vmi"
)

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
