package signal_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/signal"
	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/sources"
)

// Stop a process of a running QEMU guest, and let it go on.
func Example() {
	ctx := context.Background()
	mem, err := vmi.Open(ctx, "qmp:/run/vm.sock", &vmi.Options{Writable: true})
	if err != nil {
		log.Fatal(err)
	}
	defer mem.Close()
	k, err := kernel.Open(ctx, mem, nil)
	if err != nil {
		log.Fatal(err)
	}
	task, err := k.Task(1234)
	if err != nil {
		log.Fatal(err)
	}
	r, err := signal.Stop(ctx, task, nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s by %s after %v: %s\n", r.Signal, r.Strategy, r.Latency, r.Effect)
	if _, err := signal.Continue(ctx, task, nil); err != nil {
		log.Fatal(err)
	}
}

// Hold a process while its memory is read, and find out if it was held all along.
func ExampleFreeze() {
	var ctx context.Context
	var task *kernel.Task
	frozen, err := signal.Freeze(ctx, task, nil)
	if errors.Is(err, signal.ErrTimeout) {
		log.Fatalf("not now: %v", err)
	} else if err != nil {
		log.Fatal(err)
	}
	defer frozen.Thaw(context.WithoutCancel(ctx))
	for _, thread := range frozen.Threads() {
		fmt.Println(thread.PID, thread.Comm)
	}
	if err := frozen.Verify(); err != nil {
		log.Fatal(err)
	}
}
