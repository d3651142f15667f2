package locate_test

import (
	"context"
	"fmt"

	"github.com/ovmigrate/ovmigrate/kernel/locate"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// zeros is a machine that was never switched on.
type zeros struct{}

func (zeros) Ranges() []vmi.Range { return []vmi.Range{{Start: 0, End: 4 << 20}} }

func (zeros) ReadPhys(p []byte, _ vmi.Phys) (int, error) {
	clear(p)
	return len(p), nil
}

func Example() {
	var mem vmi.Memory = zeros{} // of a real guest: vmi.Open

	g, err := locate.Find(context.Background(), mem, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	addr, _ := g.Symbols.Lookup("init_task")
	pa, _, _ := g.Tables(mem).Translate(addr)
	fmt.Printf("Linux %s, init_task at %#x, in memory at %#x\n", g.Release, addr, pa)
	for _, s := range g.Found {
		fmt.Printf("%s: %s; %s\n", s.What, s.How, s.Check)
	}
	// Output: no Linux kernel found in 4 MiB of guest memory
}
