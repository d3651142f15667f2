package qmp_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/ovmigrate/ovmigrate/vmi/qmp"
)

func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := qmp.Dial(ctx, "/run/no-such-vm.sock")
	if err != nil {
		fmt.Println("no VM:", errors.Is(err, fs.ErrNotExist))
		return
	}
	defer c.Close()
	var status struct{ Status string }
	if err := c.Execute(ctx, "query-status", nil, &status); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(status.Status)
	// Output: no VM: true
}
