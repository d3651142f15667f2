package lime_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/lime"
	"github.com/ovmigrate/ovmigrate/vmi/vmitest"
)

func ExampleWrite() {
	m := vmitest.New(vmi.Range{Start: 0x1000, End: 0x9f000}, vmi.Range{Start: 1 << 20, End: 2 << 20})
	m.Set(0x180000, []byte("Linux version"))

	path := filepath.Join(os.TempDir(), "ovmigrate-example.lime")
	if err := lime.Write(context.Background(), path, m, nil); err != nil {
		fmt.Println(err)
		return
	}
	defer os.Remove(path)
	back, err := vmi.Open(context.Background(), path, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer back.Close()
	p := make([]byte, 13)
	if _, err := back.ReadPhys(p, 0x180000); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%s\n%v\n", p, back.Ranges())
	// Output:
	// Linux version
	// [[0x1000-0x9f000) [0x100000-0x200000)]
}
