package kernel

import (
	"errors"
	"fmt"
	"strings"
)

// FileKind says what an open file is, by what CRIU and other tools would treat
// alike.
type FileKind uint8

// Kinds of files.
const (
	KindUnknown    FileKind = iota
	KindRegular             // also files of proc, sysfs and such: see File.SB
	KindDir                 //
	KindSymlink             // O_PATH only
	KindCharDev             // other than ttys
	KindBlockDev            //
	KindTTY                 // character device of the tty layer
	KindPipe                // pipe(2)
	KindFIFO                // pipe with a name
	KindSocket              // socket(2)
	KindSocketNode          // O_PATH on a bound name
	KindEventFD             //
	KindEpoll               //
	KindTimerFD             //
	KindSignalFD            //
	KindInotify             //
	KindFanotify            //
	KindPidFD               //
	KindMemFD               // memfd_create, also on hugetlbfs
	KindShm                 // MAP_SHARED|MAP_ANONYMOUS and /dev/zero: "/dev/zero (deleted)"
	KindSysVShm             // "/SYSV00000000 (deleted)"
	KindNamespace           // /proc/PID/ns/*
	KindIOUring             //
	KindUserFault           // userfaultfd
	KindPerf                // perf_event_open
	KindBPF                 // map, program, link, …
	KindAnon                // another anonymous inode: see its name
)

var kindNames = [...]string{
	"unknown", "reg", "dir", "symlink", "chr", "blk", "tty", "pipe", "fifo", "socket", "socketnode",
	"eventfd", "epoll", "timerfd", "signalfd", "inotify", "fanotify", "pidfd", "memfd", "shm", "sysvshm",
	"ns", "io_uring", "userfaultfd", "perf", "bpf", "anon",
}

func (k FileKind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind%d", uint8(k))
}

// anonKinds are the names of anonymous inodes, without brackets. Source: the
// callers of fs/anon_inodes.c:anon_inode_getfile.
var anonKinds = map[string]FileKind{
	"eventfd":     KindEventFD,
	"eventpoll":   KindEpoll,
	"timerfd":     KindTimerFD,
	"signalfd":    KindSignalFD,
	"inotify":     KindInotify,
	"fanotify":    KindFanotify,
	"pidfd":       KindPidFD,
	"io_uring":    KindIOUring,
	"userfaultfd": KindUserFault,
	"perf_event":  KindPerf,
	"bpf-map":     KindBPF,
	"bpf-prog":    KindBPF,
	"bpf_link":    KindBPF,
	"bpf_iter":    KindBPF,
	"btf":         KindBPF,
}

// kind tells files apart by file system and name, which needs no symbols of
// variables (a kernel may lack them).
func (f *File) kind() (FileKind, error) {
	switch f.SB.Type {
	case "pipefs":
		return KindPipe, nil
	case "sockfs":
		return KindSocket, nil
	case "nsfs":
		return KindNamespace, nil
	case "pidfs":
		return KindPidFD, nil
	case "anon_inodefs":
		name, err := f.k.DentryName(f.Dentry)
		if err != nil {
			return KindUnknown, err
		}
		if kind, ok := anonKinds[strings.Trim(name, "[]")]; ok {
			return kind, nil
		}
		return KindAnon, nil
	}
	switch f.Inode.Type() {
	case ModeRegular:
		return f.regularKind()
	case ModeDir:
		return KindDir, nil
	case ModeChar:
		return f.charKind()
	case ModeBlock:
		return KindBlockDev, nil
	case ModeFIFO:
		return KindFIFO, nil
	case ModeSymlink:
		return KindSymlink, nil
	case ModeSocket:
		return KindSocketNode, nil
	}
	return KindUnknown, nil
}

// regularKind finds files that the kernel made in its own mounts of tmpfs and
// hugetlbfs. Source: mm/memfd.c:memfd_create, mm/shmem.c:shmem_zero_setup,
// ipc/shm.c:newseg.
func (f *File) regularKind() (FileKind, error) {
	if f.SB.Magic != MagicTmpfs && f.SB.Magic != MagicHugetlbfs {
		return KindRegular, nil
	}
	d, err := dentryLayout.Load(f.k, f.Dentry)
	if err != nil {
		return KindUnknown, err
	}
	n, ok, err := f.k.pseudoName(f.Path, &d)
	switch {
	case err != nil:
		return KindUnknown, err
	case !ok:
		return KindRegular, nil
	case strings.HasPrefix(n.Name, "/memfd:"):
		return KindMemFD, nil
	case strings.HasPrefix(n.Name, "/SYSV"):
		return KindSysVShm, nil
	case n.Name == "/dev/zero" || n.Name == "/anon_hugepage":
		return KindShm, nil
	}
	return KindRegular, nil
}

// charKind asks the driver's functions: the device numbers of ttys are many, and
// functions always have symbols.
func (f *File) charKind() (FileKind, error) {
	if f.IsPath() || f.Op == 0 {
		return KindCharDev, nil
	}
	ops, err := fileOpsLayout.Load(f.k, f.Op)
	if err != nil {
		return KindUnknown, err
	}
	if f.k.isFunc(ops.Release, "tty_release") {
		return KindTTY, nil
	}
	return KindCharDev, nil
}

// isFunc says whether a is the start of the kernel function called name, under
// any name that compilers and control-flow integrity give it.
func (k *Kernel) isFunc(a Addr, name string) bool {
	if a == 0 {
		return false
	}
	s, off, ok := k.SymbolAt(a)
	if !ok || off != 0 {
		// Several symbols may start at one address; ask the other way round.
		b, err := k.Symbol(name)
		return err == nil && a == b
	}
	if s == name || strings.HasPrefix(s, name+".") {
		return true
	}
	b, err := k.Symbol(name)
	return err == nil && a == b
}

// ErrWrongKind is wrapped by errors about a file that is not of the kind asked for.
var ErrWrongKind = errors.New("file is of another kind")

func (f *File) wrongKind(want string) error {
	return &PathError{Path: "file", Addr: f.Addr, Err: fmt.Errorf("%w: %s, not %s", ErrWrongKind, f.Kind, want)}
}
