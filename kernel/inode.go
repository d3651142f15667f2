package kernel

import (
	"fmt"
	"time"
)

// Dev is a device number.
type Dev struct{ Major, Minor uint32 }

// kernelDev decodes a dev_t as the kernel keeps it. Source:
// include/linux/kdev_t.h:MAJOR.
func kernelDev(d uint32) Dev { return Dev{d >> 20, d & (1<<20 - 1)} }

// Kernel returns the number as the kernel keeps it: 12 bits major, 20 bits minor.
func (d Dev) Kernel() uint32 { return d.Major<<20 | d.Minor&(1<<20-1) }

// Stat returns the number as stat(2) gives it to 64-bit programs, and as CRIU
// writes rdev. Source: include/linux/kdev_t.h:new_encode_dev.
func (d Dev) Stat() uint64 {
	return uint64(d.Minor&0xff | d.Major<<8 | (d.Minor&^0xff)<<12)
}

// String returns the number as /proc/PID/maps shows it: "fe:01".
func (d Dev) String() string { return fmt.Sprintf("%02x:%02x", d.Major, d.Minor) }

// Inode is an inode: a file without its names.
//
// On overlayfs the numbers are those of the overlay's own inode; what stat(2)
// tells about st_dev and st_ino of such a file may be those of the layer below. On
// btrfs stat(2) tells the device number of the subvolume, not the superblock's.
type Inode struct {
	k    *Kernel
	Addr Addr // of the inode
	inodeFields
}

type inodeFields struct {
	Mode    uint32 `k:"i_mode"` // type and permissions, as st_mode
	UID     uint32 `k:"i_uid"`  // in the initial user namespace
	GID     uint32 `k:"i_gid"`
	Ino     uint64 `k:"i_ino"`
	NLink   uint32 `k:"i_nlink"`
	RawRDev uint32 `k:"i_rdev"`
	Size    int64  `k:"i_size"`
	Blocks  uint64 `k:"i_blocks"` // of 512 bytes
	BlkBits uint8  `k:"i_blkbits"`
	SB      Addr   `k:"i_sb"`
	Mapping Addr   `k:"i_mapping"` // address_space
	FOp     Addr   `k:"i_fop"`
	Pipe    Addr   `k:"i_pipe"`  // pipe_inode_info of pipes and FIFOs
	FLCtx   Addr   `k:"i_flctx"` // file_lock_context, 0 if there never was a lock
	Private Addr   `k:"i_private"`
	Gen     uint32 `k:"i_generation"`

	AtimeSec  int64  `k:"i_atime_sec|__i_atime.tv_sec|i_atime.tv_sec"`
	AtimeNsec int64  `k:"i_atime_nsec|__i_atime.tv_nsec|i_atime.tv_nsec"`
	MtimeSec  int64  `k:"i_mtime_sec|__i_mtime.tv_sec|i_mtime.tv_sec"`
	MtimeNsec int64  `k:"i_mtime_nsec|__i_mtime.tv_nsec|i_mtime.tv_nsec"`
	CtimeSec  int64  `k:"i_ctime_sec|__i_ctime.tv_sec|i_ctime.tv_sec"`
	CtimeNsec uint64 `k:"i_ctime_nsec|__i_ctime.tv_nsec|i_ctime.tv_nsec"`
}

var inodeLayout = LayoutOf[inodeFields]("inode")

// Types of files in a mode (include/uapi/linux/stat.h).
const (
	ModeType    = 0o170000
	ModeSocket  = 0o140000
	ModeSymlink = 0o120000
	ModeRegular = 0o100000
	ModeBlock   = 0o060000
	ModeDir     = 0o040000
	ModeChar    = 0o020000
	ModeFIFO    = 0o010000
)

// InodeAt reads the inode at a. Errors: *PathError, ErrNil.
func (k *Kernel) InodeAt(a Addr) (*Inode, error) {
	i := &Inode{k: k, Addr: a}
	if err := inodeLayout.LoadInto(k, a, &i.inodeFields); err != nil {
		return nil, err
	}
	return i, nil
}

// SuperBlock returns the file system that the inode is part of.
func (i *Inode) SuperBlock() (*SuperBlock, error) { return i.k.SuperBlockAt(i.SB) }

// RDev returns the device that a device node stands for.
func (i *Inode) RDev() Dev { return kernelDev(i.RawRDev) }

// Type returns the ModeType bits of the mode, 0 for most anonymous inodes.
func (i *Inode) Type() uint32 { return i.Mode & ModeType }

// Atime, Mtime and Ctime return the inode's times as it keeps them in memory.
// Network file systems may know better.
func (i *Inode) Atime() time.Time { return time.Unix(i.AtimeSec, i.AtimeNsec) }

// Mtime is described at Atime.
func (i *Inode) Mtime() time.Time { return time.Unix(i.MtimeSec, i.MtimeNsec) }

// Ctime is described at Atime.
func (i *Inode) Ctime() time.Time {
	// Since 6.13 bit 31 notes that the time was looked at (I_CTIME_QUERIED).
	return time.Unix(i.CtimeSec, int64(i.CtimeNsec&(1<<31-1)))
}
