package symbolstest_test

import (
	"errors"
	"fmt"

	"github.com/ovmigrate/ovmigrate/kernel/symbols"
	"github.com/ovmigrate/ovmigrate/kernel/symbols/symbolstest"
)

func Example() {
	const at, text = 0xffff_ffff_8200_0000, 0xffff_ffff_8100_0000
	syms := []symbols.Symbol{
		{Name: "_text", Addr: text, Type: 'T'},
		{Name: "start_kernel", Addr: text + 0x50, Type: 'T'},
	}
	for _, l := range symbolstest.Layouts {
		tables, addrs := symbolstest.Write(l, syms, at, text)
		read := func(addr uint64, n int) ([]byte, error) {
			if addr < at || addr-at+uint64(n) > uint64(len(tables)) {
				return nil, errors.New("not in the image")
			}
			return tables[addr-at:][:n], nil
		}
		t, _, err := symbols.Open(read, addrs, func(t *symbols.Table) bool {
			a, ok := t.Lookup("_text")
			return ok && a == text
		})
		if err != nil {
			fmt.Println(l.Name, err)
			continue
		}
		name, off, _ := t.At(text + 0x50)
		fmt.Printf("%s: %s+%d\n", l.Name, name, off)
	}
	// Output:
	// 5.10 absolute: start_kernel+0
	// 5.10: start_kernel+0
	// 5.10 arm64: start_kernel+0
	// 6.1: start_kernel+0
	// 6.2: start_kernel+0
	// 6.4: start_kernel+0
	// 6.15: start_kernel+0
	// 7.0: start_kernel+0
}
