package kernel

import (
	"encoding/binary"
	"fmt"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// imageBase is where x86-64 maps the kernel image, before the KASLR slide
// (__START_KERNEL_map, arch/x86/include/asm/page_64_types.h).
const imageBase Addr = 0xffffffff80000000

// linear is a range of kernel addresses that maps to guest-physical memory by
// addition alone.
type linear struct {
	start, end Addr
	delta      uint64 // phys = virt + delta, modulo 2^64
}

// Phys translates a kernel address. The kernel image and the direct map are
// computed; everything else (vmalloc, vmemmap, modules) walks the page tables.
// The error is a *PathError over *paging.NotMappedError or *vmi.FaultError.
func (k *Kernel) Phys(a Addr) (vmi.Phys, error) {
	p, _, err := k.extent(a)
	return p, err
}

// extent translates a and says how many bytes from there on are contiguous.
func (k *Kernel) extent(a Addr) (vmi.Phys, uint64, error) {
	for i := range k.linear {
		if l := &k.linear[i]; a >= l.start && a < l.end {
			return vmi.Phys(uint64(a) + l.delta), uint64(l.end - a), nil
		}
	}
	p, size, err := k.tables.Translate(uint64(a))
	if err != nil {
		return 0, 0, &PathError{Path: "kernel memory", Addr: a, Err: err}
	}
	return p, size - uint64(a)&(size-1), nil
}

// ReadAt fills p with the bytes at the kernel address a. n < len(p) implies an
// error, a *PathError.
func (k *Kernel) ReadAt(p []byte, a Addr) (n int, err error) {
	for n < len(p) {
		phys, ext, err := k.extent(a + Addr(n))
		if err != nil {
			return n, err
		}
		chunk := p[n:]
		if uint64(len(chunk)) > ext {
			chunk = chunk[:ext]
		}
		m, err := k.mem.ReadPhys(chunk, phys)
		n += m
		if err != nil {
			return n, &PathError{Path: "kernel memory", Addr: a + Addr(n), Err: err}
		}
	}
	return n, nil
}

// view returns guest memory itself where that is possible, else nil.
func (k *Kernel) view(a Addr, n int) []byte {
	if k.viewer == nil {
		return nil
	}
	phys, ext, err := k.extent(a)
	if err != nil || ext < uint64(n) {
		return nil
	}
	return k.viewer.View(phys, n)
}

// bytesAt returns n bytes at a, as a view or in buf if that is large enough to
// hold them. The result must not be written to.
func (k *Kernel) bytesAt(a Addr, n int, buf []byte) ([]byte, error) {
	if v := k.view(a, n); v != nil {
		return v, nil
	}
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	_, err := k.ReadAt(buf, a)
	return buf, err
}

// ReadU64 returns the little-endian 64-bit word at a.
func (k *Kernel) ReadU64(a Addr) (uint64, error) {
	if v := k.view(a, 8); v != nil {
		return binary.LittleEndian.Uint64(v), nil
	}
	var b [8]byte // escapes: not on the way above, which every list takes
	_, err := k.ReadAt(b[:], a)
	return binary.LittleEndian.Uint64(b[:]), err
}

// ReadU32 returns the little-endian 32-bit word at a.
func (k *Kernel) ReadU32(a Addr) (uint32, error) {
	if v := k.view(a, 4); v != nil {
		return binary.LittleEndian.Uint32(v), nil
	}
	var b [4]byte
	_, err := k.ReadAt(b[:], a)
	return binary.LittleEndian.Uint32(b[:]), err
}

// ReadAddr returns the pointer at a.
func (k *Kernel) ReadAddr(a Addr) (Addr, error) {
	v, err := k.ReadU64(a)
	return Addr(v), err
}

// CString returns the bytes at a up to a NUL, at most max. A string without NUL
// within max bytes is cut there.
func (k *Kernel) CString(a Addr, max int) (string, error) {
	var out []byte
	for len(out) < max {
		// Page by page, as the string may end just before an unmapped one.
		n := min(int(vmi.PageSize-uint64(a)%vmi.PageSize), max-len(out), 256)
		b, err := k.bytesAt(a, n, nil)
		if err != nil {
			return "", err
		}
		for i, c := range b {
			if c == 0 {
				return string(append(out, b[:i]...)), nil
			}
		}
		out = append(out, b...)
		a += Addr(n)
	}
	return string(out), nil
}

// WriteAt stores p at the kernel address a of a guest opened writable. It is the
// bottom of package signal, which plans, compares and verifies; writing a live
// kernel's memory otherwise is asking for trouble.
func (k *Kernel) WriteAt(p []byte, a Addr) (n int, err error) {
	w, ok := k.mem.(vmi.Writer)
	if !ok {
		return 0, &PathError{Path: "kernel memory", Addr: a, Err: fmt.Errorf("this memory source is read-only")}
	}
	for n < len(p) {
		phys, ext, err := k.extent(a + Addr(n))
		if err != nil {
			return n, err
		}
		chunk := p[n:]
		if uint64(len(chunk)) > ext {
			chunk = chunk[:ext]
		}
		m, err := w.WritePhys(chunk, phys)
		n += m
		if err != nil {
			return n, &PathError{Path: "kernel memory", Addr: a + Addr(n), Err: err}
		}
	}
	return n, nil
}
