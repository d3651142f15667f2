package locate

import (
	"errors"
	"fmt"

	"github.com/ovmigrate/ovmigrate/vmi"
)

var (
	// ErrNoKernel says that memory holds no trace of a Linux kernel.
	ErrNoKernel = errors.New("no Linux kernel found")

	// ErrCorrupt says that there are traces of a kernel but that they contradict
	// each other: a damaged or half-overwritten dump, or a kernel that is gone.
	ErrCorrupt = errors.New("traces of a Linux kernel do not fit together")

	// ErrAmbiguous says that there are several complete kernels, as after a
	// reboot that did not clear memory, and nothing that tells which one runs.
	ErrAmbiguous = errors.New("several Linux kernels in memory")
)

// noKernel is ErrNoKernel with the amount of memory that was searched.
func noKernel(mem vmi.Memory) error {
	var n uint64
	for _, r := range mem.Ranges() {
		n += r.Len()
	}
	return fmt.Errorf("%w in %d MiB of guest memory", ErrNoKernel, n>>20)
}

// rejected is a candidate that did not stand up, and why.
type rejected struct {
	who string
	err error
}

func (r rejected) Error() string { return fmt.Sprintf("%s: %v", r.who, r.err) }

func (r rejected) Unwrap() error { return r.err }
