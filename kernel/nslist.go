package kernel

import (
	"errors"
	"slices"
	"strings"
)

// NamespaceInfo is a namespace with what is known of its place among others.
type NamespaceInfo struct {
	Namespace // Kind is one of the eight kinds, never "…_for_children"

	// Owner is the number of the user namespace whose capabilities count in it; of a
	// user namespace, its parent. 0 for the initial user namespace.
	Owner uint32
	// Parent is the number of the namespace above, 0 for kinds that have none.
	Parent uint32

	Tasks []PID // threads that are in it
	Sets  []PID // threads whose children will be in it (pid and time namespaces)
	FDs   []PID // processes that hold it by a file
	// Mounts are the numbers of the mount namespaces in which it is mounted (nsfs).
	Mounts []uint32
}

// namespaceKinds are the kinds of namespaces that NamespaceList looks for.
var namespaceKinds = []string{"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"}

// maxNamespaces bounds how many are listed; user.max_*_namespaces is some thousand
// per kind and user by default.
const maxNamespaces = 1 << 20

// NamespaceList returns all namespaces that can be found, ordered by kind and number:
// those that tasks are in, those that open files or mounts keep, those above them,
// and all network namespaces. Tasks and files that cannot be read are left out, and
// the error tells of the first: what was found is returned with it.
func (k *Kernel) NamespaceList() ([]*NamespaceInfo, error) {
	l := &nsList{k: k, byAddr: map[Addr]*NamespaceInfo{}}
	for t, err := range k.Tasks() {
		if err != nil {
			l.note(err)
			continue
		}
		l.addProcess(t)
	}
	for _, mnt := range l.ofKind("mnt") {
		l.addMounts(mnt)
	}
	l.addNets()
	l.addAbove()
	for _, n := range l.all {
		for _, p := range []*[]PID{&n.Tasks, &n.Sets, &n.FDs} {
			slices.Sort(*p)
			*p = slices.Compact(*p)
		}
		slices.Sort(n.Mounts)
		n.Mounts = slices.Compact(n.Mounts)
	}
	slices.SortFunc(l.all, func(a, b *NamespaceInfo) int {
		if c := strings.Compare(a.Kind, b.Kind); c != 0 {
			return c
		}
		return int(int64(a.Inum) - int64(b.Inum))
	})
	return l.all, l.err
}

type nsList struct {
	k      *Kernel
	all    []*NamespaceInfo
	byAddr map[Addr]*NamespaceInfo
	err    error // the first
}

func (l *nsList) note(err error) {
	if l.err == nil && !errors.Is(err, ErrNoNS) && !errors.Is(err, ErrNoTask) {
		l.err = err
	}
}

func (l *nsList) ofKind(kind string) (some []*NamespaceInfo) {
	for _, n := range l.all {
		if n.Kind == kind {
			some = append(some, n)
		}
	}
	return some
}

// add returns the entry of a namespace, nil if it cannot be read.
func (l *nsList) add(kind string, a Addr) *NamespaceInfo {
	if n := l.byAddr[a]; n != nil || a == 0 || len(l.all) >= maxNamespaces {
		return n
	}
	inum, err := l.k.nsInum(kind, a)
	if err != nil {
		l.note(err)
		return nil
	}
	n := &NamespaceInfo{Namespace: Namespace{Kind: kind, Addr: a, Inum: inum}}
	l.all = append(l.all, n)
	l.byAddr[a] = n
	return n
}

func (l *nsList) addProcess(t *Task) {
	for u, err := range t.Threads() {
		if err != nil {
			l.note(err)
			break
		}
		ns, err := u.Namespaces()
		if errors.Is(err, ErrNoNS) {
			l.addExited(u)
			continue
		}
		if err != nil {
			l.note(err)
			continue
		}
		for _, m := range ns.All {
			kind, children := strings.CutSuffix(m.Kind, "_for_children")
			n := l.add(kind, m.Addr)
			switch {
			case n == nil:
			case children:
				n.Sets = append(n.Sets, u.PID)
			default:
				n.Tasks = append(n.Tasks, u.PID)
			}
		}
	}
	for fd, err := range t.Files() {
		if err != nil {
			l.note(err)
			continue
		}
		if fd.File.Kind != KindNamespace {
			continue
		}
		if n := l.addCommon(fd.File.Inode.Private); n != nil {
			n.FDs = append(n.FDs, t.PID)
		}
	}
}

// addExited adds the namespaces that a zombie is still in: those of its number and
// of its credentials.
func (l *nsList) addExited(t *Task) {
	if nums, err := t.NSPIDs(); err == nil {
		if n := l.add("pid", nums[len(nums)-1].NS); n != nil {
			n.Tasks = append(n.Tasks, t.PID)
		}
	}
	if c, err := t.Cred(); err == nil {
		if n := l.add("user", c.UserNSAddr); n != nil {
			n.Tasks = append(n.Tasks, t.PID)
		}
	}
}

// addCommon adds a namespace by the struct ns_common in it, which a file of nsfs
// points to.
func (l *nsList) addCommon(a Addr) *NamespaceInfo {
	kind, err := l.k.nsKind(a)
	if err != nil {
		l.note(err)
		return nil
	}
	off, err := l.k.offsetOf(nsStructs[kind], "ns")
	if err != nil {
		l.note(err)
		return nil
	}
	return l.add(kind, a-Addr(off))
}

// nsKind returns what kind of namespace a struct ns_common is of.
func (k *Kernel) nsKind(a Addr) (string, error) {
	ns, err := nsCommonLayout.Load(k, a)
	if err != nil {
		return "", err
	}
	ops, err := procNSOpsLayout.Load(k, ns.Ops)
	if err != nil {
		return "", err
	}
	name, err := k.CString(ops.Name, 32)
	if err == nil && !slices.Contains(namespaceKinds, name) {
		err = corrupt(a, "ns_common", "kind %q", name)
	}
	return name, err
}

func (l *nsList) addMounts(in *NamespaceInfo) {
	for m, err := range l.k.Mounts(in.Addr) {
		if err != nil {
			l.note(err)
			return
		}
		sb, err := m.SuperBlock()
		if err != nil || sb.Magic != MagicNsfs {
			l.note(err)
			continue
		}
		d, err := dentryLayout.Load(l.k, m.Root)
		if err != nil {
			l.note(err)
			continue
		}
		i, err := l.k.InodeAt(d.Inode)
		if err != nil {
			l.note(err)
			continue
		}
		if n := l.addCommon(i.Private); n != nil {
			n.Mounts = append(n.Mounts, in.Inum)
		}
	}
}

// addNets adds the network namespaces that nothing else leads to, such as those that
// only sockets keep. Source: include/net/net_namespace.h:for_each_net.
func (l *nsList) addNets() {
	head, err := l.k.Symbol("net_namespace_list")
	if err != nil {
		l.note(err)
		return
	}
	off, err := l.k.offsetOf("net", "list")
	if err != nil {
		l.note(err)
		return
	}
	for node, err := range l.k.List(head) {
		if err != nil {
			l.note(err)
			return
		}
		l.add("net", node-Addr(off))
	}
}

// addAbove adds the namespaces that those found belong to and lie in. The list grows
// while it is walked.
func (l *nsList) addAbove() {
	for i := 0; i < len(l.all); i++ {
		n := l.all[i]
		owner, member := Addr(0), "user_ns"
		if n.Kind == "user" {
			member = "parent"
		}
		owner, err := l.pointer(n, member)
		if err != nil {
			l.note(err)
			continue
		}
		if o := l.add("user", owner); o != nil {
			n.Owner = o.Inum
		}
		if n.Kind != "pid" && n.Kind != "user" {
			continue
		}
		parent, err := l.pointer(n, "parent")
		if err != nil {
			l.note(err)
			continue
		}
		if p := l.add(n.Kind, parent); p != nil {
			n.Parent = p.Inum
		}
	}
}

func (l *nsList) pointer(n *NamespaceInfo, member string) (Addr, error) {
	off, err := l.k.offsetOf(nsStructs[n.Kind], member)
	if err != nil {
		return 0, err
	}
	return l.k.ReadAddr(n.Addr.Add(off))
}
