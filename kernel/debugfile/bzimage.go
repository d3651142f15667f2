package debugfile

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Offsets in the header of an x86 boot image, Documentation/arch/x86/boot.rst.
const (
	setupSects    = 0x1f1
	bootMagic     = 0x202
	payloadOffset = 0x248
	payloadLength = 0x24c
	leastHeader   = 0x260
)

// maxKernel bounds a decompressed kernel.
const maxKernel = 1 << 30

func isBzImage(b []byte) bool {
	return len(b) >= leastHeader && string(b[bootMagic:bootMagic+4]) == "HdrS"
}

// payload returns the kernel inside a boot image, decompressed: an ELF file without
// symbols, with BTF if the kernel has it.
func payload(b []byte) ([]byte, error) {
	off, n := uint64(binary.LittleEndian.Uint32(b[payloadOffset:])), uint64(binary.LittleEndian.Uint32(b[payloadLength:]))
	sects := uint64(b[setupSects])
	if sects == 0 {
		sects = 4
	}
	off += (sects + 1) * 512
	if n == 0 || off+n > uint64(len(b)) {
		return nil, fmt.Errorf("%w: a boot image whose kernel lies outside", ErrFormat)
	}
	b = b[off : off+n]
	r, name, err := decompressor(b)
	if err != nil {
		return nil, err
	}
	out, err := readAll(r, maxKernel)
	if !bytes.HasPrefix(out, []byte("\x7fELF")) {
		if err == nil {
			err = fmt.Errorf("what is compressed is no ELF file")
		}
		return nil, fmt.Errorf("%w: a boot image (%s): %w", ErrFormat, name, err)
	}
	// The size of the kernel, four bytes, follows some of the streams, and reading
	// them as a further stream fails.
	return out, nil
}

func decompressor(b []byte) (r io.Reader, name string, err error) {
	switch {
	case bytes.HasPrefix(b, []byte("\x1f\x8b")):
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, "", fmt.Errorf("%w: %w", ErrFormat, err)
		}
		z.Multistream(false)
		return z, "gzip", nil
	case bytes.HasPrefix(b, []byte("\x28\xb5\x2f\xfd")):
		z, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(1<<28))
		if err != nil {
			return nil, "", fmt.Errorf("%w: %w", ErrFormat, err)
		}
		return z.IOReadCloser(), "zstd", nil
	case bytes.HasPrefix(b, []byte("\x02\x21\x4c\x18")):
		return lz4.NewReader(bytes.NewReader(b)), "lz4", nil
	case bytes.HasPrefix(b, []byte("BZh")):
		return bzip2.NewReader(bytes.NewReader(b)), "bzip2", nil
	case bytes.HasPrefix(b, []byte("\xfd7zXZ\x00")):
		return nil, "", fmt.Errorf("%w: a boot image compressed by xz, which is not supported: unpack it with the kernel's extract-vmlinux", ErrFormat)
	}
	return nil, "", fmt.Errorf("%w: a boot image compressed by an unknown method (%x): unpack it with the kernel's extract-vmlinux", ErrFormat, b[:min(4, len(b))])
}
