// Command vmcore-ps lists every thread in a memory dump with its priority, the CPU
// time it has used and where its kernel stack is. The library has no field for
// these: the program names members of C structures itself, in both ways that
// package kernel offers, an Object for one value and a Layout for many.
//
//	vmcore-ps dump.elf
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/sources"
)

// sched is read with one access to memory for each thread. Its members are looked
// up once, in the type information of the very kernel that was dumped.
type sched struct {
	Prio    int32       `k:"prio"`
	Runtime uint64      `k:"se.sum_exec_runtime"`
	SP      kernel.Addr `k:"thread.sp"`
}

var schedLayout = kernel.LayoutOf[sched]("task_struct")

func main() {
	log.SetFlags(0)
	log.SetPrefix("vmcore-ps: ")
	if len(os.Args) != 2 {
		log.Fatal("usage: vmcore-ps DUMP")
	}
	if err := run(context.Background(), os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, dump string) error {
	mem, err := vmi.Open(ctx, dump, nil)
	if err != nil {
		return err
	}
	defer mem.Close()
	k, err := kernel.Open(ctx, mem, nil)
	if err != nil {
		return err
	}
	uts, err := k.Global("init_uts_ns", "uts_namespace")
	if err != nil {
		return err
	}
	node, err := uts.Field("name.nodename")
	if err != nil {
		return err
	}
	host, err := node.CString(65)
	if err != nil {
		return err
	}
	fmt.Printf("%q, Linux %s\n%7s %7s S PRIO %14s %18s NAME\n", host, k.Release(), "PID", "TID", "CPU TIME", "KERNEL STACK")
	for p, err := range k.Tasks() {
		if err != nil {
			return err
		}
		for t, err := range p.Threads() {
			if err != nil {
				return err
			}
			s, err := schedLayout.Load(k, t.Addr)
			if err != nil {
				return err
			}
			fmt.Printf("%7d %7d %c %4d %14s %18s %q\n", t.TGID, t.PID, t.StateChar(), s.Prio,
				time.Duration(s.Runtime).Round(time.Microsecond), s.SP, t.Comm)
		}
	}
	return nil
}
