package kdump

import (
	"context"
	"errors"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// Compression says how pages are stored.
type Compression uint8

// Compressions that Write knows.
const (
	Zlib Compression = iota // every tool reads it
	Zstd                    // smaller and faster; makedumpfile 1.7.1, crash 8.0.1 and newer
	None                    // only zero pages are saved
)

// WriteOptions says what Write writes. The zero value, and nil, write memory only,
// compressed with zlib.
type WriteOptions struct {
	vmi.DumpOptions
	Compression Compression
}

// Write writes all memory of mem to a kdump-compressed file at path.
func Write(ctx context.Context, path string, mem vmi.Memory, o *WriteOptions) error {
	return errors.New("kdump: not written yet")
}
