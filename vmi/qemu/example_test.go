package qemu_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/qemu"
)

func Example() {
	ctx := context.Background()
	m, err := qemu.Open(ctx, "/run/no-such-vm.sock", &vmi.Options{Writable: true})
	if err != nil {
		fmt.Println("no such guest:", errors.Is(err, fs.ErrNotExist))
		return
	}
	defer m.Close()
	g := m.(*qemu.WritableGuest)
	resume, err := g.Pause(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resume()
	cpus, err := g.CPUs(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, c := range cpus {
		fmt.Printf("CPU %d at %#x\n", c.ID, c.RIP)
	}
	// Output: no such guest: true
}
