// Command guest-cat prints a file that a guest's process has open, from outside the
// virtual machine: from the guest's page cache, so that it sees what the guest sees,
// written to disk or not, and files that were deleted or never had a name.
//
//	guest-cat qmp:/run/vm.sock 1234 3
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"strconv"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/sources"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("guest-cat: ")
	if len(os.Args) != 4 {
		log.Fatal("usage: guest-cat GUEST PID FD > FILE")
	}
	pid, err := strconv.Atoi(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	fd, err := strconv.Atoi(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	if err := run(context.Background(), os.Stdout, os.Args[1], kernel.PID(pid), fd); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, w io.Writer, guest string, pid kernel.PID, fd int) error {
	mem, err := vmi.Open(ctx, guest, nil)
	if err != nil {
		return err
	}
	defer mem.Close()
	k, err := kernel.Open(ctx, mem, nil)
	if err != nil {
		return err
	}
	task, err := k.Task(pid)
	if err != nil {
		return err
	}
	open, err := task.File(fd)
	if err != nil {
		return err
	}
	name, err := open.LinkText()
	if err != nil {
		return err
	}
	cache, err := open.File.Inode.PageCache()
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	if _, err := io.Copy(w, io.NewSectionReader(cache, 0, cache.Size)); err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	return nil
}
