package checkpoint

import (
	"fmt"
	"slices"

	file_lock "github.com/checkpoint-restore/go-criu/v8/crit/images/file-lock"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// Kinds of locks in CRIU's images (criu/include/file-lock.h), which are not the
// kernel's.
const (
	criuPOSIX = 1
	criuFlock = 2
	criuOFD   = 4
)

// locks encodes the locks that the process holds on an open file. Those of POSIX
// belong to the descriptor table, the others to the open file.
func (c *collector) locks(fd kernel.FD) error {
	all, err := fd.File.Inode.Locks()
	if err != nil {
		return fmt.Errorf("locks: %w", err)
	}
	for _, l := range all {
		ours := l.File == fd.File.Addr
		if l.Flags&kernel.LockPOSIX != 0 && l.Flags&kernel.LockOFD == 0 {
			ours = l.Owner == c.leader.FilesAddr
		}
		if !ours || slices.Contains(c.lockAddrs, l.Addr) {
			continue // another description of the file, or seen by another descriptor
		}
		c.lockAddrs = append(c.lockAddrs, l.Addr)
		var kind uint32
		switch {
		case l.Flags&kernel.LockOFD != 0:
			kind = criuOFD
		case l.Flags&kernel.LockPOSIX != 0:
			kind = criuPOSIX
		case l.Flags&kernel.LockFlock != 0:
			kind = criuFlock
		default:
			c.issues.refuse(fmt.Sprintf("fd %d", fd.Num), "has a lease (F_SETLEASE)")
			continue
		}
		length := int64(0) // to the end
		if kind != criuFlock && l.End != kernel.MaxLock {
			length = l.End - l.Start + 1
		}
		c.out.locks = append(c.out.locks, &file_lock.FileLockEntry{
			Flag: &kind, Type: new(uint32(l.Type)), Pid: new(int32(*c.out.pstree.Pid)), Fd: new(int32(fd.Num)),
			Start: &l.Start, Len: &length,
		})
	}
	return nil
}
