package kernel

import (
	"errors"
	"fmt"

	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// Arch returns the architecture of the guest.
func (k *Kernel) Arch() paging.Arch { return k.guest.Arch }

// onlyX86 returns an error that wraps ErrArch on another architecture than x86-64.
func (k *Kernel) onlyX86(what string) error {
	if k.Arch() == paging.X86_64 {
		return nil
	}
	return fmt.Errorf("%s: %w: this guest is %v", what, ErrArch, k.Arch())
}

// mapImageARM64 is mapImage for arm64.
func (k *Kernel) mapImageARM64() error {
	start := Addr(k.guest.VirtBase)
	end, err := k.imageEndARM64(start)
	if err != nil {
		return err
	}
	k.linear = []linear{{start, end, -k.guest.ARM64.ImageOffset}}
	return nil
}

// mapBasesARM64 is mapBases for arm64, where one variable and the width of addresses
// say where everything is. Source: arch/arm64/include/asm/memory.h.
func (k *Kernel) mapBasesARM64() error {
	a, image := &k.guest.ARM64, k.linear[0]
	low := ^vmi.Phys(0)
	for _, r := range k.mem.Ranges() {
		low, k.maxPhys = min(low, r.Start), max(k.maxPhys, r.End)
	}
	delta := a.PhysOffset - a.PageOffset()
	direct := linear{Addr(uint64(low) - delta), Addr(uint64(k.maxPhys) - delta), delta}
	k.pageOffset = Addr(a.PageOffset())
	// The linear map covers the image too: the page tables must agree.
	phys, err := k.Phys(image.start + armTextOffset)
	if err != nil {
		return err
	}
	alias := uint64(phys) - delta
	if got, _, err := k.tables.Translate(alias); err != nil {
		return &PathError{Path: "linear map", Addr: Addr(alias), Err: err}
	} else if got != phys || direct.start >= direct.end || !direct.start.IsKernel() {
		return corrupt(direct.start, "linear map", "the page tables have %#x at %#x, not %#x", uint64(got), alias, uint64(phys))
	}
	k.linear = []linear{direct, image}

	page, err := k.types.Struct("page")
	if err != nil {
		return err
	}
	k.pageStruct = page.Size
	k.vmemmap = k.vmemmapARM64(uint64(phys) / vmi.PageSize)
	if k.perCPUStart, err = k.perCPUBase(); errors.Is(err, ErrNoSymbol) {
		err = nil // PerCPU then knows exported variables only
	}
	return err
}

// armTextOffset is how far behind the begin of the image there surely is text.
const armTextOffset = 64 << 10

// imageEndARM64 returns the end of the kernel image: the symbol, or in a kernel
// without symbols of variables where the page tables end that map it. Initialisation
// code in its middle may be gone.
func (k *Kernel) imageEndARM64(start Addr) (Addr, error) {
	const maxImage = 128 << 20
	if end, err := k.Symbol("_end"); err == nil {
		if end <= start || end-start > maxImage {
			return 0, corrupt(start, "_text", "kernel image ends at %s", end)
		}
		return end, nil
	}
	var end Addr
	err := k.tables.Walk(uint64(start), uint64(start)+maxImage, func(e paging.Entry) bool {
		if want, ok := k.guest.ImagePhys(e.VA); ok && e.Present() && e.Phys() == want {
			end = Addr(e.VA + e.Size)
		}
		return true
	})
	if err != nil || end == 0 {
		return 0, corrupt(start, "_text", "the page tables do not map the kernel image (%v)", err)
	}
	return end, nil
}

// vmemmapARM64 returns the address of the struct page of frame 0, which is only a
// number to add to: the array begins with the first frame of the linear map. pfn is
// a frame that has a struct page. Kernels before 6.1 do not say where the array is;
// the page tables tell which of its places it is. 0 if none of them is mapped.
func (k *Kernel) vmemmapARM64(pfn uint64) Addr {
	a := &k.guest.ARM64
	size := uint64(1) << uint(a.VABits-1) / vmi.PageSize * 64 // half the address space, a struct page takes at most 64 bytes
	first := uint64(int64(a.PhysOffset)>>12) * uint64(k.pageStruct)
	for _, start := range []uint64{a.Vmemmap, -size - 2<<20, -(2 * size)} {
		base := start - first
		if start == 0 {
			continue
		}
		if _, _, err := k.tables.Translate(base + pfn*uint64(k.pageStruct)); err == nil {
			return Addr(base)
		}
	}
	k.log.Warn("no array of struct page found")
	return 0
}
