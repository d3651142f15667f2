package elfcore_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/elfcore"
)

func Example() {
	// The first bytes of a dump whose copying was interrupted.
	head := append([]byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x04\x00\x3e\x00"), make([]byte, 20)...)
	path := filepath.Join(os.TempDir(), "ovmigrate-example-core")
	if err := os.WriteFile(path, head, 0o600); err != nil {
		fmt.Println(err)
		return
	}
	defer os.Remove(path)
	_, err := vmi.Open(context.Background(), path, nil)
	fmt.Println(errors.Is(err, vmi.ErrTruncated))
	// Output: true
}
