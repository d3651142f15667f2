package kernel

import (
	"fmt"
	"iter"
	"strings"
)

// MountInfo is a line of /proc/PID/mountinfo. Texts are not escaped.
type MountInfo struct {
	*Mount
	ParentID int32 // of the mount that it lies on
	Super    *SuperBlock
	RootName string   // the place in its file system that the mount shows
	Name     string   // the place where it is mounted, below the root asked for
	Options  []string // of the mount: "rw", "nosuid", "relatime", …
	Propagation
	FSType       string   // with a subtype: "fuse.sshfs"
	SourceName   string   // what was mounted
	SuperOptions []string // of the file system: "rw", "size=3072k", …
	// SuperComplete is false for file systems whose own options are not known to
	// this package, so that SuperOptions has the general ones only.
	SuperComplete bool
}

// Propagation says with whom a mount shares what is mounted and unmounted below it.
type Propagation struct {
	Shared        int32 // peer group that it sends to and gets from, 0 for none
	Master        int32 // peer group that it gets from
	PropagateFrom int32 // nearest group that the viewer sees, if that is not Master
	Unbindable    bool
}

// tags returns the optional fields of mountinfo.
func (p Propagation) tags() (s string) {
	if p.Shared != 0 {
		s += fmt.Sprintf(" shared:%d", p.Shared)
	}
	if p.Master != 0 {
		s += fmt.Sprintf(" master:%d", p.Master)
	}
	if p.PropagateFrom != 0 {
		s += fmt.Sprintf(" propagate_from:%d", p.PropagateFrom)
	}
	if p.Unbindable {
		s += " unbindable"
	}
	return s
}

// String returns the line as /proc/PID/mountinfo has it. Source:
// fs/proc_namespace.c:show_mountinfo.
func (m *MountInfo) String() string {
	return fmt.Sprintf("%d %d %d:%d %s %s %s%s - %s %s %s", m.ID, m.ParentID, m.Super.Dev.Major, m.Super.Dev.Minor,
		escapeOctal(m.RootName, " \t\n\\"), escapeOctal(m.Name, " \t\n\\"), strings.Join(m.Options, ","), m.tags(),
		escapeOctal(m.FSType, " \t\n\\#"), escapeOctal(m.SourceName, " \t\n\\#"), strings.Join(m.SuperOptions, ","))
}

// MountInfos yields the mounts that t sees, as /proc/PID/mountinfo lists them: those
// of its mount namespace that lie below its root directory. A mount that cannot be
// read is yielded as an error and the walk goes on. Errors: ErrNoNS, ErrNoFS.
func (t *Task) MountInfos() iter.Seq2[*MountInfo, error] {
	return func(yield func(*MountInfo, error) bool) {
		ns, err := t.Namespaces()
		if err != nil {
			yield(nil, err)
			return
		}
		fs, err := t.FS()
		if err != nil {
			yield(nil, err)
			return
		}
		for m, err := range t.k.Mounts(ns.Get("mnt").Addr) {
			if err != nil {
				yield(nil, err)
				return
			}
			i, shown, err := m.Info(fs.Root)
			if (err != nil || shown) && !yield(i, err) {
				return
			}
		}
	}
}

// Info returns what mountinfo says of m to a process whose root directory is root.
// shown is false for mounts that do not lie below it.
func (m *Mount) Info(root Path) (i *MountInfo, shown bool, err error) {
	i = &MountInfo{Mount: m, Options: m.options()}
	point, err := m.Point(root)
	if err != nil || point.Outside {
		return nil, false, err
	}
	i.Name = point.String()
	if i.ParentID, err = m.ParentID(); err != nil {
		return nil, false, err
	}
	if i.Super, err = m.SuperBlock(); err != nil {
		return nil, false, err
	}
	if i.RootName, err = m.rootName(i.Super); err != nil {
		return nil, false, err
	}
	if i.Propagation, err = m.propagation(root); err != nil {
		return nil, false, err
	}
	if i.FSType, err = i.Super.typeName(); err != nil {
		return nil, false, err
	}
	if i.SourceName, err = m.Source(); err != nil {
		return nil, false, err
	}
	i.SuperOptions, i.SuperComplete, err = i.Super.Options()
	return i, err == nil, err
}

// options is fs/proc_namespace.c:show_mnt_opts.
func (m *Mount) options() []string {
	o := []string{"rw"}
	if m.Flags&MntReadOnly != 0 {
		o[0] = "ro"
	}
	for _, f := range []struct {
		flag uint32
		name string
	}{
		{MntNoSuid, "nosuid"},
		{MntNoDev, "nodev"},
		{MntNoExec, "noexec"},
		{MntNoAtime, "noatime"},
		{MntNoDirAtime, "nodiratime"},
		{MntRelAtime, "relatime"},
		{MntNoSymFollow, "nosymfollow"},
	} {
		if m.Flags&f.flag != 0 {
			o = append(o, f.name)
		}
	}
	return o
}

// rootName is RootPath, but for file systems that name their roots themselves.
func (m *Mount) rootName(sb *SuperBlock) (string, error) {
	if sb.Magic == MagicNsfs {
		d, err := dentryLayout.Load(m.k, m.Root)
		if err != nil {
			return "", err
		}
		return m.k.nsfsName(d.Inode)
	}
	n, err := m.RootPath()
	return n.String(), err
}

// maxPropagation bounds the mounts that are looked at for one line: the mounts of
// one namespace are 100,000 at most by default (fs.mount-max).
const maxPropagation = 1 << 20

// propagation is the part of fs/proc_namespace.c:show_mountinfo on optional fields.
func (m *Mount) propagation(root Path) (p Propagation, err error) {
	if m.Flags&MntShared != 0 {
		p.Shared = m.GroupID
	}
	p.Unbindable = m.Flags&MntUnbindable != 0
	if m.Master == 0 {
		return p, nil
	}
	steps := 0
	for a, first := m.Master, true; a != 0; first = false {
		master, err := m.k.mountStructAt(a)
		if err != nil {
			return p, err
		}
		if first {
			p.Master = master.GroupID
		}
		peer, err := master.peerUnder(root, m.NS, &steps)
		if err != nil {
			return p, err
		}
		if peer != nil {
			if peer.GroupID != p.Master {
				p.PropagateFrom = peer.GroupID
			}
			return p, nil
		}
		a = master.Master
	}
	return p, nil
}

// peerUnder returns a mount of m's peer group that is in ns and can be reached from
// root, nil if there is none. Source: fs/pnode.c:get_peer_under_root.
func (m *Mount) peerUnder(root Path, ns Addr, steps *int) (*Mount, error) {
	off, err := m.k.offsetOf("mount", "mnt_share")
	if err != nil {
		return nil, err
	}
	for p := m; ; {
		if *steps++; *steps > maxPropagation {
			return nil, &PathError{Path: "mount.mnt_share", Addr: m.Addr, Err: ErrLimit}
		}
		if p.NS == ns {
			n, err := p.Point(root)
			if err != nil {
				return nil, err
			}
			if !n.Outside {
				return p, nil
			}
		}
		next, err := m.k.ReadAddr(p.Share)
		if err != nil {
			return nil, err
		}
		if p, err = m.k.mountStructAt(next - Addr(off)); err != nil {
			return nil, err
		}
		if p.Addr == m.Addr {
			return nil, nil
		}
	}
}
