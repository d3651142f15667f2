package kernel

import (
	"fmt"
	"iter"
)

// Mount is a struct mount: a tree of files put at a place of a mount namespace.
type Mount struct {
	k        *Kernel
	Addr     Addr // of the struct mount
	VFSMount Addr // of the struct vfsmount inside it, which paths point to
	mountFields
}

type mountFields struct {
	ID         int32  `k:"mnt_id"`
	IDUnique   uint64 `k:"mnt_id_unique,opt"` // since 6.8
	Parent     Addr   `k:"mnt_parent"`        // the mount itself at the top of a tree
	Mountpoint Addr   `k:"mnt_mountpoint"`    // dentry in the parent
	Root       Addr   `k:"mnt.mnt_root"`      // dentry in its own file system
	SB         Addr   `k:"mnt.mnt_sb"`
	Flags      uint32 `k:"mnt.mnt_flags"`   // MNT_*
	TFlags     uint32 `k:"mnt_t_flags,opt"` // T_*: since 6.17, in place of some of Flags
	NS         Addr   `k:"mnt_ns"`
	GroupID    int32  `k:"mnt_group_id"` // peer group, 0 if not shared
	Master     Addr   `k:"mnt_master"`   // struct mount that this one is a slave of
	DevName    Addr   `k:"mnt_devname"`
	Share      Addr   `k:"&mnt_share"`
}

type vfsmount struct {
	Root  Addr   `k:"mnt_root"`
	SB    Addr   `k:"mnt_sb"`
	Flags uint32 `k:"mnt_flags"`
}

type mntNamespace struct {
	Inum   uint32 `k:"ns.inum"`
	Root   Addr   `k:"root"`
	List   Addr   `k:"&list,opt"`   // up to 6.7
	Mounts Addr   `k:"&mounts,opt"` // rb_root since 6.8, a count before
	Seq    uint64 `k:"seq|ns.ns_id,opt"`
}

var (
	mountLayout        = LayoutOf[mountFields]("mount")
	vfsmountLayout     = LayoutOf[vfsmount]("vfsmount")
	mntNamespaceLayout = LayoutOf[mntNamespace]("mnt_namespace")
)

// Flags of mounts (include/linux/mount.h).
const (
	MntNoSuid      = 0x01
	MntNoDev       = 0x02
	MntNoExec      = 0x04
	MntNoAtime     = 0x08
	MntNoDirAtime  = 0x10
	MntRelAtime    = 0x20
	MntReadOnly    = 0x40
	MntNoSymFollow = 0x80
	MntShared      = 0x1000
	MntUnbindable  = 0x2000
	MntInternal    = 0x4000

	tShared     = 1 // T_SHARED
	tUnbindable = 2

	mntCursor = 0x10000000 // a reader's place in the list of a namespace, no mount
)

// anonMntNSInum is MNT_NS_ANON_INO, the number of anonymous mount namespaces in
// kernels that number them.
const anonMntNSInum = 0xeffffff7

// MountAt returns the mount whose struct vfsmount lies at a, as the mnt of a
// Path does. Source: fs/mount.h:real_mount.
func (k *Kernel) MountAt(a Addr) (*Mount, error) {
	off, err := k.offsetOf("mount", "mnt")
	if err != nil {
		return nil, err
	}
	if a == 0 {
		return nil, &PathError{Path: "vfsmount", Err: ErrNil}
	}
	return k.mountStructAt(a - Addr(off))
}

func (k *Kernel) mountStructAt(a Addr) (*Mount, error) {
	off, err := k.offsetOf("mount", "mnt")
	if err != nil {
		return nil, err
	}
	m := &Mount{k: k, Addr: a, VFSMount: a.Add(off)}
	if err := mountLayout.LoadInto(k, a, &m.mountFields); err != nil {
		return nil, err
	}
	if mountLayout.Has(k, "TFlags") {
		m.Flags &^= MntShared | MntUnbindable
		m.Flags |= m.TFlags & (tShared | tUnbindable) * MntShared
	}
	return m, nil
}

// detached says whether m, the top of a tree, is mounted nowhere. The kernel's
// own mounts (pipefs and such) have an error pointer for a namespace, unmounted
// ones none, anonymous namespaces (fsmount, open_tree) no sequence number. Source:
// fs/d_path.c:__prepend_path, fs/mount.h:is_anon_ns.
func (m *Mount) detached() (bool, error) {
	if !m.NS.IsKernel() {
		return true, nil
	}
	ns, err := mntNamespaceLayout.Load(m.k, m.NS)
	if err != nil {
		return false, err
	}
	if ns.Inum == anonMntNSInum {
		return true, nil
	}
	return ns.Seq == 0 && mntNamespaceLayout.Has(m.k, "Seq"), nil
}

// ParentID returns the ID of the mount that m is mounted on; its own at the top of
// a tree.
func (m *Mount) ParentID() (int32, error) {
	p, err := m.k.mountStructAt(m.Parent)
	if err != nil {
		return 0, err
	}
	return p.ID, nil
}

// SuperBlock returns the file system instance that m shows.
func (m *Mount) SuperBlock() (*SuperBlock, error) { return m.k.SuperBlockAt(m.SB) }

// Source returns what was mounted, the device column of /proc/mounts, unescaped;
// "none" if nothing was said.
func (m *Mount) Source() (string, error) {
	if m.DevName == 0 {
		return "none", nil
	}
	return m.k.CString(m.DevName, maxPathLen)
}

// Point returns where m is mounted, relative to root (zero: the top of the tree).
// Source: fs/proc_namespace.c:show_mountinfo.
func (m *Mount) Point(root Path) (PathName, error) {
	return m.k.prependPath(Path{Mnt: m.VFSMount, Dentry: m.Root}, root)
}

// RootPath returns the place within m's file system that m shows, "/" unless it is
// a bind mount or subvolume.
func (m *Mount) RootPath() (PathName, error) { return m.k.DentryPath(m.Root) }

// Mounts yields the mounts of the mount namespace at ns in the kernel's order:
// of being attached up to 6.7, of their unique number since. Source:
// fs/namespace.c:mnt_list_next, mnt_find_id_at.
func (k *Kernel) Mounts(ns Addr) iter.Seq2[*Mount, error] {
	return func(yield func(*Mount, error) bool) {
		n, err := mntNamespaceLayout.Load(k, ns)
		if err != nil {
			yield(nil, err)
			return
		}
		nodes, member := k.RBTree(n.Mounts), "mnt_node"
		if mntNamespaceLayout.Has(k, "List") {
			nodes, member = k.List(n.List), "mnt_list"
		}
		off, err := k.offsetOf("mount", member)
		if err != nil {
			yield(nil, err)
			return
		}
		for node, err := range nodes {
			if err != nil {
				yield(nil, err)
				return
			}
			m, err := k.mountStructAt(node - Addr(off))
			if err == nil && m.Flags&mntCursor != 0 && n.List != 0 {
				continue
			}
			if err == nil && m.NS != ns {
				err = corrupt(m.Addr, "mount", "belongs to namespace %s, not %s", m.NS, ns)
			}
			if !yield(m, err) || err != nil {
				return
			}
		}
	}
}

// SuperBlock is one instance of a file system.
type SuperBlock struct {
	k    *Kernel
	Addr Addr // of the super_block
	superBlockFields
	Type string // "ext4", "tmpfs", "proc", …
	Dev  Dev
}

type superBlockFields struct {
	RawDev  uint32 `k:"s_dev"`
	FSType  Addr   `k:"s_type"`
	Flags   uint64 `k:"s_flags"` // SB_*
	Magic   uint64 `k:"s_magic"`
	Root    Addr   `k:"s_root"`
	Block   uint64 `k:"s_blocksize"`
	Subtype Addr   `k:"s_subtype,opt"`
	UserNS  Addr   `k:"s_user_ns"`
	FSInfo  Addr   `k:"s_fs_info"`
}

type fileSystemType struct {
	Name Addr `k:"name"`
}

var (
	superBlockLayout = LayoutOf[superBlockFields]("super_block")
	fsTypeLayout     = LayoutOf[fileSystemType]("file_system_type")
)

// Magic numbers of file systems (include/uapi/linux/magic.h).
const (
	MagicTmpfs     = 0x01021994
	MagicHugetlbfs = 0x958458f6
	MagicProc      = 0x9fa0
	MagicOverlayfs = 0x794c7630
	MagicNsfs      = 0x6e736673
	MagicPipefs    = 0x50495045
	MagicSockfs    = 0x534f434b
)

// Flags of superblocks (include/linux/fs.h).
const (
	SBReadOnly    = 1
	SBSynchronous = 16
	SBMandLock    = 64
	SBDirSync     = 128
	SBLazyTime    = 1 << 25
)

// SuperBlockAt reads the super_block at a.
func (k *Kernel) SuperBlockAt(a Addr) (*SuperBlock, error) {
	s := &SuperBlock{k: k, Addr: a}
	if err := superBlockLayout.LoadInto(k, a, &s.superBlockFields); err != nil {
		return nil, err
	}
	s.Dev = kernelDev(s.RawDev)
	t, err := fsTypeLayout.Load(k, s.FSType)
	if err != nil {
		return nil, err
	}
	if s.Type, err = k.CString(t.Name, 64); err != nil {
		return nil, fmt.Errorf("name of file system: %w", err)
	}
	return s, nil
}
