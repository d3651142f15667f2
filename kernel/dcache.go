package kernel

import (
	"fmt"
	"iter"
	"strings"
)

// Path is a place in the guest's file tree: a dentry as it is seen below one
// mount. Source: struct path.
type Path struct {
	Mnt    Addr // struct vfsmount
	Dentry Addr // struct dentry
}

// IsZero says whether p is no place at all.
func (p Path) IsZero() bool { return p.Dentry == 0 }

// dentry is the part of a struct dentry that names and places it. The name may
// lie inside the dentry (d_iname, d_shortname since 6.14) or outside; d_name.name
// points to it in both cases.
type dentry struct {
	Parent  Addr   `k:"d_parent"`
	NameLen uint32 `k:"d_name.len"`
	Name    Addr   `k:"d_name.name"`
	Hashed  Addr   `k:"d_hash.pprev"`
	Inode   Addr   `k:"d_inode"`
	Op      Addr   `k:"d_op"`
	SB      Addr   `k:"d_sb"`
}

type dentryOps struct {
	DName Addr `k:"d_dname"`
}

var (
	dentryLayout    = LayoutOf[dentry]("dentry")
	dentryOpsLayout = LayoutOf[dentryOps]("dentry_operations")
)

const (
	// maxName bounds one name. NAME_MAX is 255; some pseudo file systems go beyond.
	maxName = 4096
	// maxPathLen bounds a whole path, and with it the steps to its root. The
	// kernel itself prints nothing longer than PATH_MAX.
	maxPathLen = 1 << 16
	// maxPathMounts bounds the mounts that one path crosses.
	maxPathMounts = 1 << 14
)

// PathName is the name of a place, as the kernel prints it, with what the kernel
// encodes into the text kept apart.
type PathName struct {
	// Name is an absolute path; for pseudo files the text that stands for one,
	// such as "pipe:[4242]" or "/memfd:x". It may hold any byte but NUL.
	Name string
	// Deleted: the name is the last one that the file had, and is gone.
	Deleted bool
	// Pseudo: the file never had a name in a directory.
	Pseudo bool
	// Outside: the walk did not meet the root asked for. Name is then relative
	// to the top of the mount tree, or to the top of a detached tree.
	Outside bool
	// Detached: the place belongs to no mount namespace: unmounted lazily, or
	// never mounted. Name is relative to the top of what it is part of.
	Detached bool
}

// String returns the name as readlink of /proc/PID/fd/N, cwd, root and exe shows
// it: with " (deleted)" where that applies. Source: fs/d_path.c:d_path.
func (n PathName) String() string {
	if n.Deleted {
		return n.Name + " (deleted)"
	}
	return n.Name
}

// Getcwd returns the name as getcwd(2) shows it to a process whose root the name
// was resolved against: "(unreachable)" before a place outside that root. The
// error of a deleted directory (ENOENT) is the caller's to raise. Source:
// fs/d_path.c:getcwd.
func (n PathName) Getcwd() string {
	if n.Outside {
		return "(unreachable)" + n.Name
	}
	return n.Name
}

// Escape returns String with each byte of chars written as a backslash and three
// octal digits: "\n" as /proc/PID/maps does, " \t\n\\" as mountinfo does. Source:
// fs/seq_file.c:mangle_path.
func (n PathName) Escape(chars string) string { return escapeOctal(n.String(), chars) }

func escapeOctal(s, chars string) string {
	if !strings.ContainsAny(s, chars) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if strings.IndexByte(chars, s[i]) >= 0 {
			fmt.Fprintf(&b, "\\%03o", s[i])
		} else {
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

// PathName returns the name of p relative to root; a zero root means the top of
// p's mount tree, which is what /proc shows to a reader who is not chrooted, for
// processes of every mount namespace. Errors: *PathError, ErrCorrupt, ErrLimit.
// Source: fs/d_path.c:d_path.
func (k *Kernel) PathName(p, root Path) (PathName, error) {
	d, err := dentryLayout.Load(k, p.Dentry)
	if err != nil {
		return PathName{}, err
	}
	pseudo, ok, err := k.pseudoName(p, &d)
	if ok || err != nil {
		return pseudo, err
	}
	n, err := k.prependPath(p, root)
	n.Deleted = d.Hashed == 0 && d.Parent != p.Dentry
	return n, err
}

// prependPath is fs/d_path.c:prepend_path.
func (k *Kernel) prependPath(p, root Path) (PathName, error) {
	var parts []string
	var n PathName
	size, mounts := 0, 0
	m, err := k.MountAt(p.Mnt)
	if err != nil {
		return n, err
	}
	at := p.Dentry
	for !(at == root.Dentry && m.VFSMount == root.Mnt) {
		if at == m.Root {
			if m.Parent == m.Addr || m.Parent == 0 {
				n.Outside = !root.IsZero()
				n.Detached, err = m.detached()
				break
			}
			at = m.Mountpoint
			if mounts++; mounts > maxPathMounts {
				return n, &PathError{Path: "mount", Addr: m.Addr, Err: ErrLimit}
			}
			if m, err = k.mountStructAt(m.Parent); err != nil {
				return n, err
			}
			continue
		}
		d, err := dentryLayout.Load(k, at)
		if err != nil {
			return n, err
		}
		if d.Parent == at { // escaped from below its mount by a rename
			n.Outside = true
			break
		}
		name, err := k.dentryName(at, &d)
		if err != nil {
			return n, err
		}
		parts = append(parts, name)
		if size += 1 + len(name); size > maxPathLen {
			return n, &PathError{Path: "dentry", Addr: p.Dentry, Err: ErrLimit}
		}
		at = d.Parent
	}
	n.Name = joinReversed(parts, size)
	return n, err
}

func joinReversed(parts []string, size int) string {
	if len(parts) == 0 {
		return "/"
	}
	b := make([]byte, 0, size)
	for i := len(parts) - 1; i >= 0; i-- {
		b = append(append(b, '/'), parts[i]...)
	}
	return string(b)
}

func (k *Kernel) dentryName(a Addr, d *dentry) (string, error) {
	if d.NameLen > maxName {
		return "", corrupt(a, "dentry", "name of %d bytes", d.NameLen)
	}
	// A rename may have put a shorter name in place: stop at its NUL, as the kernel does.
	s, err := k.CString(d.Name, int(d.NameLen))
	if err != nil {
		return "", &PathError{Path: "dentry->d_name", Addr: a, Err: err}
	}
	return s, nil
}

// DentryName returns the last part of the name of the dentry at a; "/" for the
// root of a file system.
func (k *Kernel) DentryName(a Addr) (string, error) {
	d, err := dentryLayout.Load(k, a)
	if err != nil {
		return "", err
	}
	return k.dentryName(a, &d)
}

// DentryPath returns the path of a dentry within its file system, as the root
// column of mountinfo shows it. Source: fs/d_path.c:dentry_path.
func (k *Kernel) DentryPath(a Addr) (PathName, error) {
	d, err := dentryLayout.Load(k, a)
	if err != nil {
		return PathName{}, err
	}
	n := PathName{Deleted: d.Hashed == 0 && d.Parent != a}
	if d.Op != 0 && d.Parent == a {
		// The roots of nsfs mounts are pseudo files.
		if s, ok, err := k.pseudoName(Path{Dentry: a}, &d); ok || err != nil {
			return s, err
		}
	}
	var parts []string
	size := 0
	for d.Parent != a {
		name, err := k.dentryName(a, &d)
		if err != nil {
			return n, err
		}
		parts = append(parts, name)
		if size += 1 + len(name); size > maxPathLen {
			return n, &PathError{Path: "dentry", Addr: a, Err: ErrLimit}
		}
		a = d.Parent
		if d, err = dentryLayout.Load(k, a); err != nil {
			return n, err
		}
	}
	n.Name = joinReversed(parts, size)
	return n, nil
}

// pseudoName returns the text that a file system without directories gives for a
// file. ok is false for files that have a real path. The functions that the kernel
// calls through d_op->d_dname differ by file system only, so the file system's
// name tells them apart. Sources: fs/pipe.c:pipefs_dname,
// net/socket.c:sockfs_dname, fs/anon_inodes.c:anon_inodefs_dname,
// fs/nsfs.c:ns_dname, fs/pidfs.c:pidfs_dname, drivers/dma-buf/dma-buf.c:
// dmabuffs_dname, fs/d_path.c:simple_dname (shmem, hugetlb and others).
func (k *Kernel) pseudoName(p Path, d *dentry) (n PathName, ok bool, err error) {
	if d.Op == 0 {
		return n, false, nil
	}
	op, err := dentryOpsLayout.Load(k, d.Op)
	if err != nil || op.DName == 0 {
		return n, false, err
	}
	if p.Mnt != 0 && d.Parent == p.Dentry {
		m, err := vfsmountLayout.Load(k, p.Mnt)
		if err != nil || m.Root == p.Dentry {
			return n, false, err
		}
	}
	sb, err := k.SuperBlockAt(d.SB)
	if err != nil {
		return n, false, err
	}
	n.Pseudo = true
	switch sb.Type {
	case "pipefs", "sockfs":
		in, err := k.InodeAt(d.Inode)
		if err != nil {
			return n, false, err
		}
		n.Name = fmt.Sprintf("%s:[%d]", map[string]string{"pipefs": "pipe", "sockfs": "socket"}[sb.Type], in.Ino)
	case "nsfs":
		n.Name, err = k.nsfsName(d.Inode)
	case "pidfs":
		n.Name = "anon_inode:[pidfd]"
	case "anon_inodefs":
		n.Name, err = k.dentryName(p.Dentry, d)
		n.Name = "anon_inode:" + n.Name
	case "dmabuf":
		n.Name, err = k.dentryName(p.Dentry, d)
		n.Name = "/dmabuf:" + n.Name
	default:
		n.Name, err = k.dentryName(p.Dentry, d)
		n.Name = "/" + n.Name
		n.Deleted = true
	}
	return n, err == nil, err
}

// dentryChildren yields the names in the directory at a that the kernel has cached; all
// names, on file systems that are in memory only. Source: fs/libfs.c:dcache_readdir.
func (k *Kernel) dentryChildren(a Addr) iter.Seq2[dentry, error] {
	if off, err := k.offsetOf("dentry", "d_children"); err == nil { // since 6.8
		return dentryLayout.HList(k, a.Add(off), "d_sib")
	}
	off, err := k.offsetOf("dentry", "d_subdirs")
	if err != nil {
		return func(yield func(dentry, error) bool) { yield(dentry{}, err) }
	}
	return dentryLayout.List(k, a.Add(off), "d_child")
}
