package ramfile

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net/url"
	"strconv"
	"strings"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// Block says that the Len bytes of the file at Off are guest memory at Phys.
type Block struct {
	Phys vmi.Phys
	Off  uint64
	Len  uint64
}

// fourGiB is where RAM goes on above the PCI hole of a PC.
const fourGiB = 1 << 32

// maxIdentity is the largest RAM of which no PC machine type of QEMU, unless told
// so, puts a part above the PCI hole.
const maxIdentity = 2 << 30

var errLayout = errors.New("does not say where its PCI hole is; add ?below4g=2G (QEMU q35), " +
	"?below4g=3G (QEMU pc, Firecracker, Cloud Hypervisor) or ?layout=identity (a dump that includes the hole)")

// Below4G returns the layout of a PC with size bytes of RAM: the first below bytes
// of the file at 0, the others from 4 GiB on. QEMU calls below "below-4g-mem-size".
func Below4G(size, below uint64) []Block {
	if size <= below {
		return []Block{{0, 0, size}}
	}
	return []Block{{0, 0, below}, {fourGiB, below, size - below}}
}

// parseLayout returns the layout that the parameters ask for, or else the file tells.
func parseLayout(params url.Values, file io.ReaderAt, size uint64) ([]Block, error) {
	for key := range params {
		if key != "below4g" && key != "layout" && key != "base" {
			return nil, fmt.Errorf("unknown parameter %q (known: base, below4g, layout)", key)
		}
	}
	below, layout, base := params.Get("below4g"), params.Get("layout"), params.Get("base")
	switch {
	case len(params) > 1:
		return nil, errors.New("base, below4g and layout exclude each other")
	case base != "":
		n, err := parseSize(base)
		if err != nil {
			return nil, fmt.Errorf("base: %w", err)
		}
		if n%vmi.PageSize != 0 || n+size < n {
			return nil, fmt.Errorf("base=%s: must be whole pages, and %d MiB must have room behind it", base, size>>20)
		}
		return []Block{{vmi.Phys(n), 0, size}}, nil
	case below != "":
		n, err := parseSize(below)
		if err != nil {
			return nil, fmt.Errorf("below4g: %w", err)
		}
		if n == 0 || n > fourGiB || n%vmi.PageSize != 0 {
			return nil, fmt.Errorf("below4g=%s: must be whole pages, at most 4G", below)
		}
		return Below4G(size, n), nil
	case layout == "identity":
		return []Block{{0, 0, size}}, nil
	case layout != "":
		return parseBlocks(layout)
	case size > maxIdentity:
		if layout, ok := BootLayout(file, size); ok {
			return layout, nil
		}
		return nil, fmt.Errorf("raw RAM of %d MiB %w", size>>20, errLayout)
	}
	return []Block{{0, 0, size}}, nil
}

// parseBlocks parses "PHYS:OFF:LEN,…".
func parseBlocks(s string) ([]Block, error) {
	var out []Block
	for item := range strings.SplitSeq(s, ",") {
		fields := strings.Split(item, ":")
		if len(fields) != 3 {
			return nil, fmt.Errorf("layout %q: want PHYS:OFFSET:LENGTH", item)
		}
		var v [3]uint64
		for i, f := range fields {
			var err error
			if v[i], err = parseSize(f); err != nil {
				return nil, fmt.Errorf("layout %q: %w", item, err)
			}
		}
		out = append(out, Block{vmi.Phys(v[0]), v[1], v[2]})
	}
	return out, nil
}

// parseSize parses "2G", "0x80000000", "512M".
func parseSize(s string) (uint64, error) {
	digits, unit := s, uint64(1)
	if i := len(s) - 1; i > 0 {
		if k := strings.IndexByte("KMGT", s[i]&^0x20); k >= 0 {
			digits, unit = s[:i], 1<<(10*(k+1))
		}
	}
	n, err := strconv.ParseUint(digits, 0, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no size", s)
	}
	hi, lo := bits.Mul64(n, unit)
	if hi != 0 {
		return 0, fmt.Errorf("%q is too large", s)
	}
	return lo, nil
}
