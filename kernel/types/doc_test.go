package types_test

import (
	"fmt"
	"os"

	"github.com/ovmigrate/ovmigrate/kernel/types"
)

func ExampleParseBTF() {
	blob, err := os.ReadFile("/sys/kernel/btf/vmlinux")
	if err != nil {
		return
	}
	b, err := types.ParseBTF(blob)
	if err != nil {
		fmt.Println(err)
		return
	}
	task, err := b.Struct("task_struct")
	if err != nil {
		fmt.Println(err)
		return
	}
	comm, err := task.Lookup("comm")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("task_struct.comm is %s at byte %d\n", comm.Type, comm.Offset())
}
