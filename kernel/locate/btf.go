package locate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	btfMagic   = 0xeb9f
	btfHeader  = 24 // struct btf_header up to 7.2; later ones are longer
	maxBTFHead = 256
)

// btf sets g.BTF to the kernel's type description, between the symbols __start_BTF
// and __stop_BTF. There are look-alikes in memory, left by the decompressor; a kernel
// without these symbols (CONFIG_KALLSYMS_ALL=n) is searched within its image only.
func (f *finder) btf(g *Guest, img space) {
	start, ok1 := g.Symbols.Lookup("__start_BTF")
	stop, ok2 := g.Symbols.Lookup("__stop_BTF")
	if !ok1 || !ok2 {
		f.btfByContent(g, img)
		return
	}
	if stop <= start || stop-start > maxRead {
		f.reject("BTF", fmt.Errorf("from %#x to %#x", start, stop))
		return
	}
	b, err := img.read(start, int(stop-start))
	if err == nil {
		var n int
		if n, err = checkBTF(b); err == nil {
			g.BTF = b[:n:n]
			g.step("types", fmt.Sprintf("BTF at __start_BTF, %d KiB", n>>10), "its header and length fit")
			return
		}
	}
	f.reject("BTF at __start_BTF", err)
}

var errBTF = errors.New("not BTF")

// checkBTF checks the header of the BTF at the begin of b and returns its length.
func checkBTF(b []byte) (int, error) {
	if len(b) < btfHeader {
		return 0, fmt.Errorf("%w: %d bytes", errBTF, len(b))
	}
	u32 := func(at int) uint64 { return uint64(binary.LittleEndian.Uint32(b[at:])) }
	hdr, typeOff, typeLen, strOff, strLen := u32(4), u32(8), u32(12), u32(16), u32(20)
	switch {
	case binary.LittleEndian.Uint16(b) != btfMagic || b[2] != 1:
		return 0, fmt.Errorf("%w: magic %#x version %d", errBTF, binary.LittleEndian.Uint16(b), b[2])
	case hdr < btfHeader || hdr > maxBTFHead || typeOff != 0 || typeLen%4 != 0 || strOff != typeLen || strLen < 2:
		return 0, fmt.Errorf("%w: header of %d bytes, types %d+%d, strings %d+%d", errBTF, hdr, typeOff, typeLen, strOff, strLen)
	}
	begin, end := hdr+strOff, hdr+strOff+strLen
	if end > uint64(len(b)) {
		return 0, fmt.Errorf("%w: %d bytes, but there are %d", errBTF, end, len(b))
	}
	if b[begin] != 0 || b[end-1] != 0 {
		return 0, fmt.Errorf("%w: its strings do not begin and end with a zero byte", errBTF)
	}
	return int(end), nil
}

// btfByContent looks for BTF between _stext and _end.
func (f *finder) btfByContent(g *Guest, img space) {
	b, err := f.imageBytes(img, g.VirtBase, g.VirtBase+maxImage)
	if err != nil {
		return
	}
	if end, ok := g.Symbols.Lookup("_end"); ok && end > g.VirtBase && end-g.VirtBase < uint64(len(b)) {
		b = b[:end-g.VirtBase]
	}
	magic := []byte{0x9f, 0xeb, 1, 0}
	const least = 1 << 16 // a module's would be smaller
	for at := 0; ; at += len(magic) {
		i := bytes.Index(b[at:], magic)
		if i < 0 {
			return
		}
		at += i
		if n, err := checkBTF(b[at:]); err == nil && n >= least {
			g.BTF = b[at : at+n : at+n]
			g.step("types", fmt.Sprintf("BTF by content of the kernel image, %d KiB", n>>10), "its header and length fit")
			return
		}
	}
}
