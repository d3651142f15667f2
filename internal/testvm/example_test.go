package testvm_test

import (
	"context"
	"fmt"
	"log"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

// A program boots a guest, starts a process in it and knows where to look at the
// guest's memory from outside. Tests use Start or StartShared instead.
func ExampleBoot() {
	ctx := context.Background()
	vm, err := testvm.Boot(ctx, testvm.Config{Suite: "trixie"})
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Stop()
	pid, err := vm.StartProcess(ctx, testvm.Process{Argv: []string{"/opt/ovm/counter"}, Stdout: "/root/log"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(pid, vm.RAMPath(), vm.QMPSocket())
}
