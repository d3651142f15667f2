package kernel

import (
	"fmt"
)

// File is an open file description: a struct file, which descriptors made by dup
// and fork share. Its address is its identity.
type File struct {
	k    *Kernel
	Addr Addr // of the struct file
	fileFields
	Path  Path
	Inode *Inode
	SB    *SuperBlock // of the inode
	Kind  FileKind
}

type fileFields struct {
	Flags   uint32 `k:"f_flags"` // O_* as open(2) and fcntl(2) left them
	Mode    uint32 `k:"f_mode"`  // FMODE_*
	Pos     int64  `k:"f_pos"`
	Op      Addr   `k:"f_op"`
	Private Addr   `k:"private_data"`
	Cred    Addr   `k:"f_cred"`
	Mapping Addr   `k:"f_mapping"`

	InodeAddr Addr `k:"f_inode"`
	Mnt       Addr `k:"f_path.mnt|__f_path.mnt"`
	Dentry    Addr `k:"f_path.dentry|__f_path.dentry"`
	OwnerAddr Addr `k:"&f_owner"`
	OwnerPID  Addr `k:"f_owner.pid,opt"` // up to 6.11 the owner lies in the file
}

type fown struct {
	PID    Addr   `k:"pid"`
	Type   uint32 `k:"pid_type"`
	UID    uint32 `k:"uid"`
	EUID   uint32 `k:"euid"`
	Signum int32  `k:"signum"`
}

type backingFile struct {
	File       Addr `k:"&file"`
	UserMnt    Addr `k:"user_path.mnt"`
	UserDentry Addr `k:"user_path.dentry"`
}

type fileOps struct {
	Release Addr `k:"release"`
}

var (
	fileLayout        = LayoutOf[fileFields]("file")
	fownLayout        = LayoutOf[fown]("fown_struct")
	backingFileLayout = LayoutOf[backingFile]("backing_file") // since 6.7
	fileOpsLayout     = LayoutOf[fileOps]("file_operations")
)

// Flags of open files, as File.Flags holds them (include/uapi/asm-generic/fcntl.h,
// x86-64).
const (
	OAccMode   = 0o3
	OWrOnly    = 0o1
	ORdWr      = 0o2
	OCreat     = 0o100
	OExcl      = 0o200
	ONoCTTY    = 0o400
	OTrunc     = 0o1000
	OAppend    = 0o2000
	ONonblock  = 0o4000
	ODsync     = 0o10000
	OAsync     = 0o20000
	ODirect    = 0o40000
	OLargefile = 0o100000
	ODirectory = 0o200000
	ONofollow  = 0o400000
	ONoatime   = 0o1000000
	OCloexec   = 0o2000000
	OPath      = 0o10000000
	OTmpfile   = 0o20000000
)

// Bits of File.Mode (include/linux/fs.h).
const (
	FModeRead  = 0x1
	FModeWrite = 0x2
	FModePath  = 0x4000
	// Either, by kernel version, says that the file is a backing file; the other
	// then says something else, or nothing.
	FModeBacking = 0x3000000
)

// FileAt reads the struct file at a. Errors: *PathError, ErrCorrupt.
func (k *Kernel) FileAt(a Addr) (*File, error) {
	f := &File{k: k, Addr: a}
	if err := fileLayout.LoadInto(k, a, &f.fileFields); err != nil {
		return nil, err
	}
	f.Path = Path{f.Mnt, f.Dentry}
	if f.InodeAddr == 0 || f.Dentry == 0 {
		return nil, corrupt(a, "file", "inode %s, dentry %s", f.InodeAddr, f.Dentry)
	}
	var err error
	if f.Inode, err = k.InodeAt(f.InodeAddr); err != nil {
		return nil, err
	}
	if f.SB, err = f.Inode.SuperBlock(); err != nil {
		return nil, err
	}
	f.Kind, err = f.kind()
	return f, err
}

// Kernel returns the kernel that f was read from.
func (f *File) Kernel() *Kernel { return f.k }

// Object returns f for exploring.
func (f *File) Object() (Object, error) { return f.k.Object("file", f.Addr) }

// IsPath says whether f was opened with O_PATH: it is a place only, whatever Kind
// says, and nothing can be read through it.
func (f *File) IsPath() bool { return f.Mode&FModePath != 0 }

// Name returns the name of the file relative to root; a zero root means the top of
// its mount tree. Errors as of Kernel.PathName.
func (f *File) Name(root Path) (PathName, error) { return f.k.PathName(f.Path, root) }

// LinkText returns what readlink of /proc/PID/fd/N shows to a reader who is not
// chrooted. Source: fs/proc/base.c:proc_pid_readlink.
func (f *File) LinkText() (string, error) {
	n, err := f.Name(Path{})
	return n.String(), err
}

// MountID returns the mnt_id line of /proc/PID/fdinfo/N.
func (f *File) MountID() (int32, error) {
	m, err := f.k.MountAt(f.Mnt)
	if err != nil {
		return 0, err
	}
	return m.ID, nil
}

// UserPath returns the path that the file was opened by, which differs from Path
// for the file of a layer that overlayfs maps in place of its own. Source:
// include/linux/fs.h:file_user_path.
func (f *File) UserPath() (Path, error) {
	if f.Mode&FModeBacking == 0 || f.IsPath() {
		return f.Path, nil
	}
	off, err := f.k.offsetOf("backing_file", "file")
	if err != nil {
		return f.Path, nil // before 6.7 f_path is the user's
	}
	if _, err := f.k.offsetOf("backing_file", "user_path"); err != nil {
		return f.Path, nil
	}
	b, err := backingFileLayout.Load(f.k, f.Addr-Addr(off))
	if err != nil || !b.UserMnt.IsKernel() || !b.UserDentry.IsKernel() {
		return f.Path, nil // the bit meant something else, and what lies behind the file is not its
	}
	return Path{b.UserMnt, b.UserDentry}, nil
}

// UserInode returns the inode of UserPath, whose numbers /proc/PID/maps shows.
// Source: include/linux/fs.h:file_user_inode.
func (f *File) UserInode() (*Inode, error) {
	p, err := f.UserPath()
	if err != nil || p == f.Path {
		return f.Inode, err
	}
	d, err := dentryLayout.Load(f.k, p.Dentry)
	if err != nil {
		return nil, err
	}
	return f.k.InodeAt(d.Inode)
}

// FOwner is who gets signals about a file (F_SETOWN, F_SETSIG).
type FOwner struct {
	PID       PID    // in the initial pid namespace, 0 for none
	PIDType   uint32 // enum pid_type: 0 thread, 1 process, 2 process group
	UID, EUID uint32 // in the initial user namespace
	Signum    int32  // 0: SIGIO
}

// Owner returns the file's signal owner, the zero value if it has none. Source:
// fs/fcntl.c:f_getown.
func (f *File) Owner() (FOwner, error) {
	a := f.OwnerAddr
	if !fileLayout.Has(f.k, "OwnerPID") {
		var err error
		if a, err = f.k.ReadAddr(a); err != nil || a == 0 {
			return FOwner{}, err
		}
	}
	o, err := fownLayout.Load(f.k, a)
	if err != nil {
		return FOwner{}, err
	}
	own := FOwner{PIDType: o.Type, UID: o.UID, EUID: o.EUID, Signum: o.Signum}
	own.PID, err = f.k.PIDNumber(o.PID)
	return own, err
}

// PIDNumber returns the number that the initial pid namespace gives to the struct
// pid at a, 0 for a null pointer. Source: kernel/pid.c:pid_nr.
func (k *Kernel) PIDNumber(a Addr) (PID, error) {
	if a == 0 {
		return 0, nil
	}
	nums, err := k.pidNumbers(a)
	if err != nil {
		return 0, fmt.Errorf("struct pid: %w", err)
	}
	return nums[0].PID, nil
}

// PIDNumbers returns the numbers of the struct pid at a from the initial pid
// namespace down to its own.
func (k *Kernel) PIDNumbers(a Addr) ([]NSPID, error) { return k.pidNumbers(a) }
