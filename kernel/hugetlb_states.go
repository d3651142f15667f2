package kernel

import (
	"bytes"
	"errors"
	"fmt"
)

// maxHugePageSizes is above HUGE_MAX_HSTATE: 2 on x86-64, 4 on arm64.
const maxHugePageSizes = 8

type hstate struct {
	Order uint32   `k:"order"`
	Name  [32]byte `k:"name"` // HSTATE_NAME_LEN
}

var hstateLayout = LayoutOf[hstate]("hstate")

// hstates are the sizes of huge pages that the kernel knows. Source: mm/hugetlb.c:hstates.
type hstates struct {
	base Addr
	n    int
}

func (k *Kernel) hugePageSizes() (hstates, error) {
	n, missing := k.symbolU32("hugetlb_max_hstate")
	if errors.Is(missing, ErrNoSymbol) {
		return k.searchHugePageSizes(missing)
	}
	if missing != nil {
		return hstates{}, missing
	}
	a, err := k.Symbol("hstates")
	if err == nil && n > maxHugePageSizes {
		err = corrupt(a, "hstates", "%d sizes of page", n)
	}
	return hstates{a, int(n)}, err
}

// searchHugePageSizes finds the sizes in a kernel without symbols of variables by their
// names, which say what their orders do. missing is the error if there is none.
func (k *Kernel) searchHugePageSizes(missing error) (hstates, error) {
	if h, ok := k.lazy.hugePages.Load().(hstates); ok {
		return h, nil
	}
	size, err := hstateLayout.Size(k)
	if err != nil {
		return hstates{}, err
	}
	at, err := k.offsetOf("hstate", "name")
	if err != nil {
		return hstates{}, err
	}
	const chunk = 1 << 20
	tag := []byte("hugepages-")
	image := k.linear[len(k.linear)-1]
	for begin := image.start; begin < image.end; begin += chunk {
		b, err := k.bytesAt(begin, int(min(chunk+Addr(len(tag)), image.end-begin)), nil)
		if err != nil {
			continue // initialisation code that is gone
		}
		for from := 0; ; {
			i := bytes.Index(b[from:], tag)
			if i < 0 {
				break
			}
			h := hstates{base: begin.Add(from + i - at)}
			for h.n < maxHugePageSizes && k.isHugePageSize(h.base.Add(h.n*size)) {
				h.n++
			}
			if h.n > 0 {
				k.lazy.hugePages.Store(h)
				return h, nil
			}
			from += i + len(tag)
		}
	}
	return hstates{}, missing
}

func (k *Kernel) isHugePageSize(a Addr) bool {
	if a%8 != 0 {
		return false
	}
	s, err := hstateLayout.Load(k, a)
	return err == nil && s.Order <= 40 && cstring(s.Name[:]) == fmt.Sprintf("hugepages-%dkB", uint64(4)<<s.Order)
}
