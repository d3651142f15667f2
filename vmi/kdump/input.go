package kdump

import (
	"fmt"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/hostmap"
)

// input is the content of a mapped kdump, put in order if the file is flattened.
type input struct {
	m    *hostmap.Map
	flat *flat // nil: the file is as it should be
	size uint64
}

// read fills p from offset off.
func (in *input) read(p []byte, off uint64) error {
	if off > in.size || uint64(len(p)) > in.size-off {
		return fmt.Errorf("%w: %d bytes at offset %#x of %#x", vmi.ErrTruncated, len(p), off, in.size)
	}
	if in.flat == nil {
		return in.m.Read(p, off)
	}
	return in.flat.read(in.m, p, off)
}
