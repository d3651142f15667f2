package kernel

import (
	"fmt"
	"math/bits"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// Page is what the kernel knows of one page frame: the words of its struct page
// that say whom it belongs to, taken from the head of a compound page.
type Page struct {
	PFN     uint64
	Head    uint64 // PFN of the compound page's head; PFN itself if it is no tail
	Mapping uint64 // page->mapping of the head, tag bits included
	Index   uint64
}

type pageFields struct {
	Compound uint64 `k:"compound_info|compound_head"`
	Mapping  uint64 `k:"mapping"`
	Index    uint64 `k:"index|__folio_index"`
}

var pageLayout = LayoutOf[pageFields]("page")

// Tags in the low bits of page->mapping (include/linux/page-flags.h).
const (
	pageMappingAnon = 1
	pageMappingKSM  = 3
)

// Anon says whether the page is private memory of processes: anonymous, or a copy
// of a file page that was written to.
func (p *Page) Anon() bool { return p.Mapping&pageMappingAnon != 0 }

// KSM says whether the page is one that identical pages were merged into.
func (p *Page) KSM() bool { return p.Mapping&pageMappingKSM == pageMappingKSM }

// Page reads the struct page of a frame. Source: include/linux/mm.h:pfn_to_page.
func (k *Kernel) Page(pfn uint64) (Page, error) {
	if pfn >= uint64(k.maxPhys)/vmi.PageSize {
		return Page{}, fmt.Errorf("%w: page frame %#x is beyond RAM", ErrCorrupt, pfn)
	}
	if k.vmemmap == 0 {
		return Page{}, fmt.Errorf("%w: this kernel's struct pages were not found", ErrNoSymbol)
	}
	a := k.vmemmap.Add(int(pfn) * k.pageStruct)
	raw, err := pageLayout.Load(k, a)
	if err != nil {
		return Page{}, err
	}
	p := Page{PFN: pfn, Head: pfn, Mapping: raw.Mapping, Index: raw.Index}
	if raw.Compound&1 == 0 {
		return p, nil
	}
	head := Addr(raw.Compound - 1)
	if pageLayout.Has(k, "Compound") && k.compoundInfo() && bits.OnesCount(uint(k.pageStruct)) == 1 {
		head = a & Addr(raw.Compound-1) // 7.x: a mask, not a pointer
	}
	off := uint64(head - k.vmemmap)
	if head < k.vmemmap || off%uint64(k.pageStruct) != 0 || head > a {
		return Page{}, corrupt(a, "page", "head is %s", head)
	}
	h, err := pageLayout.Load(k, head)
	if err != nil {
		return Page{}, err
	}
	p.Head = off / uint64(k.pageStruct)
	p.Mapping, p.Index = h.Mapping, h.Index
	return p, nil
}

func (k *Kernel) compoundInfo() bool {
	_, err := k.offsetOf("page", "compound_info")
	return err == nil
}

// ZeroPages returns the frames of the pages of zeros that the kernel maps instead
// of giving memory to reads: the ordinary one, and the huge one (0 if none).
// Source: empty_zero_page, mm/huge_memory.c:huge_zero_pfn.
func (k *Kernel) ZeroPages() (small, huge uint64, err error) {
	a, err := k.Symbol("empty_zero_page")
	if err != nil {
		return 0, 0, err
	}
	p, err := k.Phys(a)
	if err != nil {
		return 0, 0, err
	}
	small = uint64(p) / vmi.PageSize
	if a, err := k.Symbol("huge_zero_pfn"); err == nil {
		if v, err := k.ReadU64(a); err == nil && v != ^uint64(0) {
			huge = v
		}
	}
	return small, huge, nil
}
