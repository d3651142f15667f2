package kernel

// Flags of FileLock (include/linux/filelock.h).
const (
	LockPOSIX = 1
	LockFlock = 2
	LockLease = 32
	LockOFD   = 1024
)

// FileLock is a lock that somebody holds on a file.
type FileLock struct {
	Addr  Addr   // of the file_lock or file_lease, which is its identity
	Flags uint32 // LockPOSIX, LockFlock, LockLease, with LockOFD beside LockPOSIX
	Type  uint8  // F_RDLCK 0, F_WRLCK 1, F_UNLCK 2
	// Owner is a files_struct for POSIX locks, and else the struct file.
	Owner Addr
	File  Addr // struct file that it was set by
	// First and last byte of POSIX locks; MaxLock for the end of the file.
	Start, End int64
}

// MaxLock is the End of a lock that reaches to the end of the file.
const MaxLock = 1<<63 - 1

type fileLockContext struct {
	Flock Addr `k:"&flc_flock"`
	POSIX Addr `k:"&flc_posix"`
	Lease Addr `k:"&flc_lease"`
}

// fileLock is a struct file_lock, the part that leases share with it first (of its
// own type since 6.9).
type fileLock struct {
	Flags uint32 `k:"c.flc_flags|fl_flags"`
	Type  uint8  `k:"c.flc_type|fl_type"`
	Owner Addr   `k:"c.flc_owner|fl_owner"`
	File  Addr   `k:"c.flc_file|fl_file"`
	Start int64  `k:"fl_start"`
	End   int64  `k:"fl_end"`
}

var (
	fileLockContextLayout = LayoutOf[fileLockContext]("file_lock_context")
	fileLockLayout        = LayoutOf[fileLock]("file_lock")
)

// maxLocks bounds the locks of one file.
const maxLocks = 1 << 20

// Locks returns the locks that processes hold on the file. Start and End of leases
// mean nothing. Source: fs/locks.c:locks_get_lock_context, __show_fd_locks.
func (i *Inode) Locks() ([]FileLock, error) {
	if i.FLCtx == 0 {
		return nil, nil
	}
	c, err := fileLockContextLayout.Load(i.k, i.FLCtx)
	if err != nil {
		return nil, err
	}
	off, err := i.k.offsetOf("file_lock_core", "flc_list")
	if err != nil {
		if off, err = i.k.offsetOf("file_lock", "fl_list"); err != nil {
			return nil, err
		}
	}
	var all []FileLock
	for _, head := range []Addr{c.Flock, c.POSIX, c.Lease} {
		for n, err := range i.k.List(head) {
			if err != nil {
				return nil, err
			}
			if len(all) >= maxLocks {
				return nil, &PathError{Path: "file_lock_context", Addr: i.FLCtx, Err: ErrLimit}
			}
			a := n - Addr(off)
			l, err := fileLockLayout.Load(i.k, a)
			if err != nil {
				return nil, err
			}
			all = append(all, FileLock{a, l.Flags, l.Type, l.Owner, l.File, l.Start, l.End})
		}
	}
	return all, nil
}
