// Command guest-checkpoint saves a process of a running guest as images that "criu
// restore" accepts in another machine, and lets it run on.
//
//	guest-checkpoint qmp:/run/vm.sock 1234 images
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strconv"

	"github.com/ovmigrate/ovmigrate/checkpoint"
	"github.com/ovmigrate/ovmigrate/criuimg"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/sources"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("guest-checkpoint: ")
	if len(os.Args) != 4 {
		log.Fatal("usage: guest-checkpoint GUEST PID DIR")
	}
	pid, err := strconv.Atoi(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	// The process is held while it is saved. When the context ends, Save lets it go.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1], kernel.PID(pid), os.Args[3]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, guest string, pid kernel.PID, dir string) error {
	mem, err := vmi.Open(ctx, guest, &vmi.Options{Writable: true})
	if err != nil {
		return err
	}
	defer mem.Close()
	k, err := kernel.Open(ctx, mem, nil)
	if err != nil {
		return err
	}
	saved, err := checkpoint.Save(ctx, k, pid, dir, nil)
	if err != nil {
		return err
	}
	for _, issue := range saved.Issues {
		fmt.Println(issue)
	}
	set, err := criuimg.OpenDir(dir)
	if err != nil {
		return err
	}
	for _, problem := range set.Verify() {
		fmt.Println(problem)
	}
	fmt.Printf("%s: %d threads, %d bytes of memory, %d images, in %s\n",
		saved.Comm, saved.Threads, saved.Bytes, len(set.Images()), saved.Total)
	return nil
}
