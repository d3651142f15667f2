package kernel

import (
	"errors"
	"fmt"
	"time"
)

// ErrNoNS is wrapped by errors about a task that has left its namespaces, as
// exiting ones do.
var ErrNoNS = errors.New("has no namespaces")

// Namespace is one namespace of a task.
type Namespace struct {
	Kind string // the name in /proc/PID/ns, such as "mnt" or "pid_for_children"
	Addr Addr   // of the struct, for example mnt_namespace
	Inum uint32 // the number that /proc/PID/ns shows
}

// String returns the namespace as readlink of /proc/PID/ns/Kind shows it.
func (n Namespace) String() string {
	kind := n.Kind
	switch kind {
	case "pid_for_children":
		kind = "pid"
	case "time_for_children":
		kind = "time"
	}
	return fmt.Sprintf("%s:[%d]", kind, n.Inum)
}

type nsproxy struct {
	UTS          Addr `k:"uts_ns"`
	IPC          Addr `k:"ipc_ns"`
	Mnt          Addr `k:"mnt_ns"`
	PIDChildren  Addr `k:"pid_ns_for_children"`
	Net          Addr `k:"net_ns"`
	Time         Addr `k:"time_ns,opt"`
	TimeChildren Addr `k:"time_ns_for_children,opt"`
	Cgroup       Addr `k:"cgroup_ns"`
}

var nsproxyLayout = LayoutOf[nsproxy]("nsproxy")

// nsStructs are the C structures of the kinds of namespaces; all have a member ns
// of type ns_common.
var nsStructs = map[string]string{
	"cgroup": "cgroup_namespace", "ipc": "ipc_namespace", "mnt": "mnt_namespace", "net": "net",
	"pid": "pid_namespace", "pid_for_children": "pid_namespace",
	"time": "time_namespace", "time_for_children": "time_namespace",
	"user": "user_namespace", "uts": "uts_namespace",
}

// Namespaces are the namespaces of a task. Those that the kernel was built without
// are absent.
type Namespaces struct {
	k *Kernel
	// All is sorted by Kind.
	All []Namespace
}

// Get returns the namespace of one kind, the zero value if there is none.
func (n *Namespaces) Get(kind string) Namespace {
	for _, ns := range n.All {
		if ns.Kind == kind {
			return ns
		}
	}
	return Namespace{}
}

// Namespaces returns the namespaces of t. The error wraps ErrNoNS for a task that
// has exited. Source: fs/proc/namespaces.c:ns_entries.
func (t *Task) Namespaces() (*Namespaces, error) {
	if t.NSProxy == 0 {
		return nil, fmt.Errorf("pid %d (%s): %w", t.PID, t.Comm, ErrNoNS)
	}
	k := t.k
	p, err := nsproxyLayout.Load(k, t.NSProxy)
	if err != nil {
		return nil, err
	}
	cred, err := credLayout.Load(k, t.RealCred)
	if err != nil {
		return nil, err
	}
	var pid Addr
	if t.ThreadPID != 0 {
		nums, err := k.pidNumbers(t.ThreadPID)
		if err != nil {
			return nil, err
		}
		pid = nums[len(nums)-1].NS
	}
	n := &Namespaces{k: k}
	for _, ns := range []Namespace{
		{"cgroup", p.Cgroup, 0},
		{"ipc", p.IPC, 0},
		{"mnt", p.Mnt, 0},
		{"net", p.Net, 0},
		{"pid", pid, 0},
		{"pid_for_children", p.PIDChildren, 0},
		{"time", p.Time, 0},
		{"time_for_children", p.TimeChildren, 0},
		{"user", cred.UserNSAddr, 0},
		{"uts", p.UTS, 0},
	} {
		if ns.Addr == 0 {
			continue
		}
		if ns.Inum, err = k.nsInum(ns.Kind, ns.Addr); err != nil {
			return nil, err
		}
		n.All = append(n.All, ns)
	}
	return n, nil
}

func (k *Kernel) nsInum(kind string, a Addr) (uint32, error) {
	off, err := k.offsetOf(nsStructs[kind], "ns.inum")
	if err != nil {
		return 0, err
	}
	inum, err := k.ReadU32(a.Add(off))
	if err != nil {
		return 0, &PathError{Path: nsStructs[kind], Addr: a, Err: err}
	}
	return inum, nil
}

// IsInit says whether the namespace of that kind is the one that the system
// started with.
func (n *Namespaces) IsInit(kind string) (bool, error) {
	a, err := n.k.Symbol("init_task")
	if err != nil {
		return false, err
	}
	swapper, err := n.k.TaskAt(a)
	if err != nil {
		return false, err
	}
	first, err := swapper.Namespaces()
	if err != nil {
		return false, err
	}
	if kind == "pid" {
		kind = "pid_for_children" // task 0 has no struct pid on every kernel
		return n.Get("pid").Addr == first.Get(kind).Addr, nil
	}
	return n.Get(kind).Addr == first.Get(kind).Addr, nil
}

type utsNamespace struct {
	SysName    [65]byte `k:"name.sysname"`
	NodeName   [65]byte `k:"name.nodename"`
	Release    [65]byte `k:"name.release"`
	Version    [65]byte `k:"name.version"`
	Machine    [65]byte `k:"name.machine"`
	DomainName [65]byte `k:"name.domainname"`
}

type timeNamespace struct {
	MonoSec  int64 `k:"offsets.monotonic.tv_sec"`
	MonoNsec int64 `k:"offsets.monotonic.tv_nsec"`
	BootSec  int64 `k:"offsets.boottime.tv_sec"`
	BootNsec int64 `k:"offsets.boottime.tv_nsec"`
}

var (
	utsLayout    = LayoutOf[utsNamespace]("uts_namespace")
	timeNSLayout = LayoutOf[timeNamespace]("time_namespace")
)

// UTSName is what uname(2) tells.
type UTSName struct{ SysName, NodeName, Release, Version, Machine, DomainName string }

// UTS returns the names of the task's uts namespace.
func (n *Namespaces) UTS() (UTSName, error) {
	u, err := utsLayout.Load(n.k, n.Get("uts").Addr)
	if err != nil {
		return UTSName{}, err
	}
	s := func(b [65]byte) string { return cstring(b[:]) }
	return UTSName{s(u.SysName), s(u.NodeName), s(u.Release), s(u.Version), s(u.Machine), s(u.DomainName)}, nil
}

// TimeOffsets returns what the task's time namespace adds to the system's
// CLOCK_MONOTONIC and CLOCK_BOOTTIME; zero in the initial namespace.
func (n *Namespaces) TimeOffsets() (monotonic, boottime time.Duration, err error) {
	a := n.Get("time").Addr
	if a == 0 {
		return 0, 0, nil
	}
	t, err := timeNSLayout.Load(n.k, a)
	if err != nil {
		return 0, 0, err
	}
	return time.Duration(t.MonoSec)*time.Second + time.Duration(t.MonoNsec),
		time.Duration(t.BootSec)*time.Second + time.Duration(t.BootNsec), nil
}

func cstring(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

type nsCommon struct {
	Inum uint32 `k:"inum"`
	Ops  Addr   `k:"ops"`
}

type procNSOperations struct {
	Name Addr `k:"name"`
}

var (
	nsCommonLayout  = LayoutOf[nsCommon]("ns_common")
	procNSOpsLayout = LayoutOf[procNSOperations]("proc_ns_operations")
)

// nsfsName is fs/nsfs.c:ns_dname for an inode of nsfs.
func (k *Kernel) nsfsName(inode Addr) (string, error) {
	in, err := k.InodeAt(inode)
	if err != nil {
		return "", err
	}
	ns, err := nsCommonLayout.Load(k, in.Private)
	if err != nil {
		return "", err
	}
	ops, err := procNSOpsLayout.Load(k, ns.Ops)
	if err != nil {
		return "", err
	}
	name, err := k.CString(ops.Name, 32)
	return fmt.Sprintf("%s:[%d]", name, ns.Inum), err
}

// Namespace returns the namespace that a file of KindNamespace stands for. Its
// Addr is that of the struct ns_common inside it.
func (f *File) Namespace() (Namespace, error) {
	if f.Kind != KindNamespace {
		return Namespace{}, f.wrongKind("namespace")
	}
	ns, err := nsCommonLayout.Load(f.k, f.Inode.Private)
	if err != nil {
		return Namespace{}, err
	}
	ops, err := procNSOpsLayout.Load(f.k, ns.Ops)
	if err != nil {
		return Namespace{}, err
	}
	name, err := f.k.CString(ops.Name, 32)
	return Namespace{Kind: name, Addr: f.Inode.Private, Inum: ns.Inum}, err
}
