package kernel

import "strings"

type shmemInode struct {
	Swapped uint64 `k:"swapped"` // pages
	Seals   uint32 `k:"seals"`
}

var shmemInodeLayout = LayoutOf[shmemInode]("shmem_inode_info")

// MemFD returns the name that memfd_create gave to a file and its seals (F_SEAL_*).
// Files on hugetlbfs give ErrWrongKind. Source: mm/memfd.c:memfd_get_seals.
func (f *File) MemFD() (name string, seals uint32, err error) {
	if f.Kind != KindMemFD || f.SB.Magic != MagicTmpfs {
		return "", 0, f.wrongKind("memfd on tmpfs")
	}
	n, err := f.Name(Path{})
	if err != nil {
		return "", 0, err
	}
	off, err := f.k.offsetOf("shmem_inode_info", "vfs_inode")
	if err != nil {
		return "", 0, err
	}
	s, err := shmemInodeLayout.Load(f.k, f.InodeAddr-Addr(off))
	return strings.TrimPrefix(n.Name, "/memfd:"), s.Seals, err
}
