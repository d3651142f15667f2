package kernel

import (
	"errors"
	"fmt"
)

// ErrNoFS is wrapped by errors about a task that has no root directory any more.
var ErrNoFS = errors.New("has no file system context")

// FSStruct is a task's view of the file tree.
type FSStruct struct {
	k     *Kernel
	Addr  Addr // of the fs_struct
	Root  Path
	PWD   Path
	Umask uint32
	Users int // tasks that share it
}

type fsStruct struct {
	Users      int32  `k:"users"`
	Umask      uint32 `k:"umask"`
	RootMnt    Addr   `k:"root.mnt"`
	RootDentry Addr   `k:"root.dentry"`
	PWDMnt     Addr   `k:"pwd.mnt"`
	PWDDentry  Addr   `k:"pwd.dentry"`
}

var fsStructLayout = LayoutOf[fsStruct]("fs_struct")

// FS returns t's root and working directory. The error wraps ErrNoFS for a task
// that has exited. Source: include/linux/fs_struct.h.
func (t *Task) FS() (*FSStruct, error) {
	a := t.FSAddr
	if a == 0 {
		return nil, fmt.Errorf("pid %d (%s): %w", t.PID, t.Comm, ErrNoFS)
	}
	f, err := fsStructLayout.Load(t.k, a)
	if err != nil {
		return nil, err
	}
	return &FSStruct{
		k: t.k, Addr: a, Users: int(f.Users), Umask: f.Umask,
		Root: Path{f.RootMnt, f.RootDentry},
		PWD:  Path{f.PWDMnt, f.PWDDentry},
	}, nil
}

// RootName returns the name of the root directory from the top of its mount tree,
// as readlink of /proc/PID/root shows it to a reader who is not chrooted.
func (f *FSStruct) RootName() (PathName, error) { return f.k.PathName(f.Root, Path{}) }

// PWDName is RootName for the working directory, /proc/PID/cwd. The name that the
// process itself sees is Kernel.PathName(f.PWD, f.Root).
func (f *FSStruct) PWDName() (PathName, error) { return f.k.PathName(f.PWD, Path{}) }

// Exe returns the program that the address space was made for, /proc/PID/exe; nil
// if there is none. Source: kernel/fork.c:get_mm_exe_file.
func (m *MM) Exe() (*File, error) {
	if m.ExeFile == 0 {
		return nil, nil
	}
	return m.k.FileAt(m.ExeFile)
}
