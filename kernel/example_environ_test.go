package kernel_test

import (
	"context"
	"fmt"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// What a process has open, as ls -l /proc/PID/fd shows it inside the guest.
func ExampleTask_Files() {
	mem, err := vmi.Open(context.Background(), "qmp:/run/vm.qmp", nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer mem.Close()
	k, err := kernel.Open(context.Background(), mem, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	t, err := k.Task(1)
	if err != nil {
		fmt.Println(err)
		return
	}
	for fd, err := range t.Files() {
		if err != nil {
			fmt.Println(err)
			continue
		}
		name, err := fd.LinkText()
		fmt.Println(fd.Num, "->", name, fd.File.Kind, fd.File.Pos, err)
	}
}
