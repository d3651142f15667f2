// Command guest-ps lists the processes of a Linux guest from outside its virtual
// machine: the library's "hello, world".
//
//	guest-ps qmp:/run/vm.sock
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/sources"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("guest-ps: ")
	if len(os.Args) != 2 {
		log.Fatal("usage: guest-ps GUEST")
	}
	if err := run(context.Background(), os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, guest string) error {
	mem, err := vmi.Open(ctx, guest, nil)
	if err != nil {
		return err
	}
	defer mem.Close()
	k, err := kernel.Open(ctx, mem, nil)
	if err != nil {
		return err
	}
	fmt.Println("Linux", k.Release())
	for t, err := range k.Tasks() {
		if err != nil {
			return err
		}
		ppid, err := t.PPID()
		if err != nil {
			return err
		}
		fmt.Printf("%7d %7d %c %q\n", t.PID, ppid, t.StateChar(), t.Comm)
	}
	return nil
}
