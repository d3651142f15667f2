package paging_test

import (
	"fmt"

	"github.com/ovmigrate/ovmigrate/kernel/paging"
)

func Example() {
	// A process with two pages, one of them in swap. Real tables come from the
	// guest: Mem is its memory, Root what mm->pgd leads to.
	b := build(1<<20, 4)
	b.set(0x7000_0000, 1, 0x1234000|p|rw|us|d)
	b.set(0x7000_1000, 1, swap(0, 77))
	tables := paging.Tables{Mem: b.m, Root: page, Levels: 4}

	for e := range tables.Entries(0, 1<<47) {
		switch {
		case e.Present():
			fmt.Printf("%#x at %#x, dirty %v\n", e.VA, e.Phys(), e.Dirty())
		case e.Kind == paging.Swap:
			fmt.Printf("%#x in swap %d at %d\n", e.VA, e.SwapType(), e.SwapOffset())
		}
	}
	pa, _, err := tables.Translate(0x7000_0123)
	fmt.Printf("%#x %v\n", pa, err)
	// Output:
	// 0x70000000 at 0x1234000, dirty true
	// 0x70001000 in swap 0 at 77
	// 0x1234123 <nil>
}
