package locate

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// maxRead bounds one read of the kernel image.
const maxRead = 64 << 20

var errOutside = errors.New("outside the kernel image")

// space is an address space in which all of guest memory is in one piece, shifted:
// phys = addr - delta. With delta 0 it is guest-physical memory, else the mapping of
// the kernel image.
type space struct {
	mem    vmi.Memory
	viewer vmi.Viewer
	delta  uint64

	buf *[]byte // if not nil, what read copies into instead of new memory
}

func (s space) phys(addr uint64) vmi.Phys { return vmi.Phys(addr - s.delta) }

// ram returns the range of RAM that addr is in.
func (s space) ram(addr uint64) (vmi.Range, bool) {
	p := s.phys(addr)
	for _, r := range s.mem.Ranges() {
		if r.Contains(p, 1) {
			return r, true
		}
	}
	return vmi.Range{}, false
}

// read returns the n bytes at addr, a view where there is one. It is a
// symbols.Reader.
func (s space) read(addr uint64, n int) ([]byte, error) {
	r, ok := s.ram(addr)
	if !ok || n < 0 || n > maxRead || !r.Contains(s.phys(addr), n) {
		return nil, fmt.Errorf("%d bytes at %#x: %w", n, addr, errOutside)
	}
	if s.viewer != nil {
		if b := s.viewer.View(s.phys(addr), n); len(b) >= n {
			return b[:n:n], nil
		}
	}
	var b []byte
	switch {
	case s.buf == nil:
		b = make([]byte, n)
	case len(*s.buf) < n:
		*s.buf = make([]byte, n)
		fallthrough
	default:
		b = (*s.buf)[:n]
	}
	if _, err := s.mem.ReadPhys(b, s.phys(addr)); err != nil {
		return nil, err
	}
	return b, nil
}

// upTo is read of at most n bytes, fewer where RAM ends.
func (s space) upTo(addr uint64, n int) ([]byte, error) {
	r, ok := s.ram(addr)
	if !ok {
		return nil, fmt.Errorf("%#x: %w", addr, errOutside)
	}
	return s.read(addr, int(min(uint64(n), uint64(r.End-s.phys(addr)))))
}

// cstring returns the zero-terminated string at addr, at most limit bytes.
func (s space) cstring(addr uint64, limit int) (string, error) {
	b, err := s.upTo(addr, limit)
	if err != nil {
		return "", err
	}
	i := bytes.IndexByte(b, 0)
	if i < 0 {
		return "", fmt.Errorf("%#x: no end of string in %d bytes", addr, len(b))
	}
	return string(b[:i]), nil
}
