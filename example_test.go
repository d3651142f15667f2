package ovmigrate_test

import (
	"context"
	"fmt"
	"log"

	"github.com/ovmigrate/ovmigrate/checkpoint"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/sources"
)

// Find a process of a running guest by its name, save it as a CRIU image set, and
// let it run on. README.md shows this function.
func Example() {
	ctx := context.Background()
	mem, err := vmi.Open(ctx, "qmp:/run/vm.sock", &vmi.Options{Writable: true})
	if err != nil {
		log.Fatal(err)
	}
	defer mem.Close()
	k, err := kernel.Open(ctx, mem, nil) // finds the kernel: no symbols needed
	if err != nil {
		log.Fatal(err)
	}
	for t, err := range k.Tasks() {
		if err != nil {
			log.Fatal(err)
		}
		if t.Comm == "memcached" {
			r, err := checkpoint.Save(ctx, k, t.PID, "images", nil)
			if err != nil {
				log.Fatal(err)
			}
			fmt.Println(r.Comm, r.Threads, "threads", r.Bytes, "bytes", r.Total)
		}
	}
}
