package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/kernel"
)

func (a *app) fdsCommand() *cobra.Command {
	return a.jsonFlag(a.command("fds PID", "List the open files of a process", "",
		func(c *cobra.Command, args []string) error {
			return a.process(c.Context(), needRead, args[0], func(_ *guest, t *kernel.Task) error {
				all, err := readDescriptors(t)
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(all)
				}
				return printDescriptors(a, all)
			})
		}))
}

// descriptor is an element of what fds --json prints.
type descriptor struct {
	FD    int    `json:"fd"`
	Type  string `json:"type"`
	Path  string `json:"path"`
	Pos   int64  `json:"pos"`
	Flags string `json:"flags"` // octal, as in /proc/PID/fdinfo
	MntID int32  `json:"mnt_id"`
	Inode uint64 `json:"inode"`
	Dev   string `json:"dev"` // of the file system, major:minor, hexadecimal

	Socket *socketEnds `json:"socket,omitempty"` // only of sockets

	flags uint32
}

// readDescriptors returns the open files of t, read again if they change meanwhile.
func readDescriptors(t *kernel.Task) (all []descriptor, err error) {
	if t.IsKernelThread() {
		return nil, fmt.Errorf("pid %d (%s): a kernel thread has no files", t.PID, t.Comm)
	}
	for range walkTries {
		if all, err = tryDescriptors(t); err == nil || t.Refresh() != nil {
			break
		}
	}
	return all, err
}

func tryDescriptors(t *kernel.Task) ([]descriptor, error) {
	all := []descriptor{}
	for fd, err := range t.Files() {
		if err != nil {
			return nil, err
		}
		path, err := fd.LinkText()
		if err != nil {
			return nil, fmt.Errorf("pid %d, fd %d: %w", t.PID, fd.Num, err)
		}
		mnt, err := fd.File.MountID()
		if err != nil {
			return nil, fmt.Errorf("pid %d, fd %d: %w", t.PID, fd.Num, err)
		}
		f := fd.File
		d := descriptor{
			FD: fd.Num, Type: f.Kind.String(), Path: path, Pos: f.Pos, Flags: fmt.Sprintf("0%o", fd.InfoFlags()),
			MntID: mnt, Inode: f.Inode.Ino, Dev: f.SB.Dev.String(), flags: fd.InfoFlags(),
		}
		if f.Kind == kernel.KindSocket {
			if d.Socket, err = descriptorSocket(f); err != nil {
				return nil, fmt.Errorf("pid %d, fd %d: %w", t.PID, fd.Num, err)
			}
		}
		all = append(all, d)
	}
	return all, nil
}

// descriptorSocket returns the ends of a socket.
func descriptorSocket(f *kernel.File) (*socketEnds, error) {
	s, err := f.Socket()
	if err != nil {
		return nil, err
	}
	e, err := ends(s)
	return &e, err
}

// openFlags are the O_* flags that an open file keeps, beside its access mode.
var openFlags = []struct {
	bits uint32
	name string
}{
	{kernel.OAppend, "append"},
	{kernel.ONonblock, "nonblock"},
	{kernel.ODsync, "dsync"},
	{kernel.OAsync, "async"},
	{kernel.ODirect, "direct"},
	{kernel.ODirectory, "directory"},
	{kernel.ONofollow, "nofollow"},
	{kernel.ONoatime, "noatime"},
	{kernel.OCloexec, "cloexec"},
	{kernel.OPath, "path"},
}

func flagNames(f uint32) string {
	names := []string{[]string{"r", "w", "rw", "none"}[f&kernel.OAccMode]}
	for _, o := range openFlags {
		if f&o.bits == o.bits {
			names = append(names, o.name)
		}
	}
	return strings.Join(names, ",")
}

func printDescriptors(a *app, all []descriptor) error {
	t := newTable(a.stdout, "FD", "TYPE", "POS", "FLAGS", "PATH")
	for _, d := range all {
		path := d.Path
		if d.Socket != nil {
			path += " " + d.Socket.text()
		}
		t.row(d.FD, d.Type, d.Pos, flagNames(d.flags), path)
	}
	return t.flush()
}
