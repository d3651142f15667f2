// Package avml reads the compressed memory dumps of AVML (Acquire Volatile Memory
// for Linux). Uncompressed, AVML writes LiME's format: package lime.
//
// A dump is a sequence of ranges of memory, each with a header that says where it
// was, then a stream in the Snappy framing format that holds it, then the length of
// that stream:
//
//	u32 magic "AVML"   u32 version 2   u64 first address   u64 last address   u64 0
//	chunks: u8 type, u24 length, and in data chunks u32 CRC-32C and at most 64 KiB of memory
//	u64 bytes of all chunks
//
// Opening goes from chunk to chunk and notes which part of memory each holds: 24
// bytes of memory for 64 KiB of the guest's. Reading decompresses the chunks it
// needs, of which a few are kept, and checks their sums.
//
// What lies in no range is a fault: AVML leaves out stretches of 16 MiB that are all
// zeros, and nothing in the file tells them from what was no RAM.
//
// Source: avml's src/image.rs and src/io/snappy.rs; Snappy's framing_format.txt.
package avml

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"sort"
	"sync/atomic"

	"github.com/klauspost/compress/snappy"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/blockcache"
	"github.com/ovmigrate/ovmigrate/vmi/internal/hostmap"
)

// cached is how many decompressed chunks are kept: 8 MiB.
const cached = 128

// ErrCorrupt is wrapped by the fault of memory whose chunk does not decompress to
// what its sum says.
var ErrCorrupt = errors.New("the dump is damaged")

func init() {
	vmi.Register(vmi.Source{
		Name:  "AVML",
		Sniff: func(head []byte, _ int64) bool { return bytes.HasPrefix(head, []byte(magic)) },
		Open:  Open,
	})
}

// File is an AVML dump, a [vmi.Image]. Its methods are safe for concurrent use.
type File struct {
	m      *hostmap.Map
	index  index
	cache  *blockcache.Cache
	closed atomic.Bool // what is in the cache would still be read
}

// Open opens the dump at path and returns a *File. A dump cannot be written to:
// Options.Writable is an error. Errors: as os.Open; vmi.ErrFormat for what makes no
// sense; vmi.ErrTruncated; the context's.
func Open(ctx context.Context, path string, o *vmi.Options) (vmi.Image, error) {
	if o != nil && o.Writable {
		return nil, fmt.Errorf("open %s: a dump cannot be written to", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	m, err := hostmap.New(f, false)
	if err != nil {
		return nil, err
	}
	file := &File{m: m, cache: blockcache.New(cached)}
	if file.index, err = readIndex(ctx, m); err != nil {
		m.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return file, nil
}

// Ranges implements [vmi.Memory]: what the dump holds.
func (f *File) Ranges() []vmi.Range { return f.index.ranges }

// ReadPhys implements [vmi.Memory]. Damage is a fault that wraps ErrCorrupt.
func (f *File) ReadPhys(p []byte, addr vmi.Phys) (n int, err error) {
	if f.closed.Load() {
		return 0, &vmi.FaultError{Addr: addr, Len: len(p), Err: fs.ErrClosed}
	}
	all := f.index.chunks
	i := sort.Search(len(all), func(i int) bool { return all[i].end() > addr })
	for ; n < len(p); i++ {
		if i == len(all) || all[i].addr > addr {
			return n, &vmi.FaultError{Addr: addr, Len: len(p) - n}
		}
		c := &all[i]
		b, err := f.cache.Get(uint64(i), func() ([]byte, error) { return f.decompress(c) })
		if err != nil {
			return n, &vmi.FaultError{Addr: addr, Len: len(p) - n, Err: err}
		}
		k := copy(p[n:], b[addr-c.addr:])
		n, addr = n+k, addr+vmi.Phys(k)
	}
	return n, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// decompress returns the memory that a chunk holds.
func (f *File) decompress(c *chunk) ([]byte, error) {
	stored := make([]byte, c.stored)
	if err := f.m.Read(stored, c.off); err != nil {
		return nil, err
	}
	sum, b := binary.LittleEndian.Uint32(stored), stored[sumSize:]
	if c.compressed {
		var err error
		if b, err = snappy.Decode(make([]byte, c.n), b); err != nil {
			return nil, fmt.Errorf("%w: chunk at offset %#x: %w", ErrCorrupt, c.off, err)
		}
	}
	crc := crc32.Checksum(b, castagnoli)
	if masked := (crc>>15 | crc<<17) + 0xa282ead8; masked != sum || len(b) != int(c.n) {
		return nil, fmt.Errorf("%w: chunk at offset %#x: wrong sum", ErrCorrupt, c.off)
	}
	return b, nil
}

// Close unmaps the file.
func (f *File) Close() error {
	f.closed.Store(true)
	return f.m.Close()
}
