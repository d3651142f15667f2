package kernel

import (
	"errors"
	"fmt"
	"iter"
	"math/bits"
)

// ErrNoFD is wrapped by errors about a file descriptor that is not open.
var ErrNoFD = errors.New("bad file descriptor")

// FD is an open file descriptor.
type FD struct {
	Num         int
	CloseOnExec bool
	File        *File // nil if it could not be read
}

// LinkText returns what readlink of /proc/PID/fd/Num shows.
func (fd FD) LinkText() (string, error) { return fd.File.LinkText() }

// InfoFlags returns the flags line of /proc/PID/fdinfo/Num (an octal number
// there). Source: fs/proc/fd.c:seq_show.
func (fd FD) InfoFlags() uint32 {
	f := fd.File.Flags &^ OCloexec
	if fd.CloseOnExec {
		f |= OCloexec
	}
	return f
}

type filesStruct struct {
	FDT   Addr  `k:"fdt"`
	Count int32 `k:"count.counter"`
}

type fdtable struct {
	MaxFDs      uint32 `k:"max_fds"`
	FD          Addr   `k:"fd"`
	CloseOnExec Addr   `k:"close_on_exec"`
	OpenFDs     Addr   `k:"open_fds"`
}

var (
	filesLayout   = LayoutOf[filesStruct]("files_struct")
	fdtableLayout = LayoutOf[fdtable]("fdtable")
)

// maxFDs is more than sysctl_nr_open_max allows on any 64-bit machine that could
// hold the table in its memory.
const maxFDs = 1 << 28

// maxBadFDs is how many unreadable files make a table broken.
const maxBadFDs = 256

// FilesUsers returns how many tasks and others share t's descriptor table, 0 if it
// has none. More than the threads of the process means CLONE_FILES beyond it.
func (t *Task) FilesUsers() (int, error) {
	if t.FilesAddr == 0 {
		return 0, nil
	}
	f, err := filesLayout.Load(t.k, t.FilesAddr)
	return int(f.Count), err
}

// Files yields t's open file descriptors in order of their numbers. A descriptor
// whose file cannot be read is yielded with an error and its number, and the walk
// goes on; a broken table ends it with an FD whose Num is -1. A task that has
// exited, or a kernel thread, has none. Source: fs/proc/fd.c:proc_readfd_common,
// fs/file.c:files_lookup_fd_raw.
func (t *Task) Files() iter.Seq2[FD, error] {
	return func(yield func(FD, error) bool) {
		if t.FilesAddr == 0 {
			return
		}
		fail := func(err error) {
			yield(FD{Num: -1}, fmt.Errorf("file descriptors of pid %d: %w", t.PID, err))
		}
		k := t.k
		f, err := filesLayout.Load(k, t.FilesAddr)
		if err != nil {
			fail(err)
			return
		}
		tab, err := fdtableLayout.Load(k, f.FDT)
		if err != nil {
			fail(err)
			return
		}
		if tab.MaxFDs > maxFDs || tab.MaxFDs%64 != 0 {
			fail(corrupt(f.FDT, "fdtable", "max_fds is %d", tab.MaxFDs))
			return
		}
		bad := 0
		for word := 0; word < int(tab.MaxFDs)/64; word++ {
			open, err := k.ReadU64(tab.OpenFDs.Add(8 * word))
			if err != nil {
				fail(err)
				return
			}
			if open == 0 {
				continue
			}
			cloexec, err := k.ReadU64(tab.CloseOnExec.Add(8 * word))
			if err != nil {
				fail(err)
				return
			}
			for ; open != 0; open &= open - 1 {
				bit := bits.TrailingZeros64(open)
				fd := FD{Num: 64*word + bit, CloseOnExec: cloexec>>bit&1 != 0}
				a, err := k.ReadAddr(tab.FD.Add(8 * fd.Num))
				if err == nil && a == 0 {
					continue // reserved by an open(2) that is under way
				}
				if err == nil {
					fd.File, err = k.FileAt(a)
				}
				if err != nil {
					if bad++; bad > maxBadFDs {
						fail(corrupt(f.FDT, "fdtable", "%d files cannot be read", bad))
						return
					}
					err = fmt.Errorf("pid %d, fd %d: %w", t.PID, fd.Num, err)
				}
				if !yield(fd, err) {
					return
				}
			}
		}
	}
}

// File returns what descriptor fd of t refers to. The error wraps ErrNoFD if it is
// not open. Source: fs/file.c:fget_task.
func (t *Task) File(fd int) (FD, error) {
	none := fmt.Errorf("pid %d, fd %d: %w", t.PID, fd, ErrNoFD)
	if t.FilesAddr == 0 || fd < 0 {
		return FD{}, none
	}
	f, err := filesLayout.Load(t.k, t.FilesAddr)
	if err != nil {
		return FD{}, err
	}
	tab, err := fdtableLayout.Load(t.k, f.FDT)
	if err != nil {
		return FD{}, err
	}
	if uint64(fd) >= uint64(tab.MaxFDs) || tab.MaxFDs > maxFDs {
		return FD{}, none
	}
	a, err := t.k.ReadAddr(tab.FD.Add(8 * fd))
	if err != nil {
		return FD{}, err
	}
	if a == 0 {
		return FD{}, none
	}
	cloexec, err := t.k.ReadU64(tab.CloseOnExec.Add(fd / 64 * 8))
	if err != nil {
		return FD{}, err
	}
	file, err := t.k.FileAt(a)
	return FD{Num: fd, CloseOnExec: cloexec>>(fd%64)&1 != 0, File: file}, err
}
