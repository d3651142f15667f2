package ramfile_test

import (
	"context"
	"fmt"
	"os"

	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/ramfile"
)

func Example() {
	f, err := os.CreateTemp("", "ram")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.Remove(f.Name())
	defer f.Close()
	f.Truncate(4 << 20) // RAM of a guest, all zeros yet
	f.WriteAt([]byte("Linux version"), 0x200000)

	m, err := vmi.Open(context.Background(), f.Name(), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer m.Close()
	p := make([]byte, 13)
	if _, err := m.ReadPhys(p, 0x200000); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%s\n%v\n", p, m.Ranges())
	_, err = m.ReadPhys(p, 0x400000)
	fmt.Println(err)
	// Output:
	// Linux version
	// [[0x0-0x400000)]
	// guest-physical 0x400000+13: not in guest RAM
}
