package locate

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/kernel/symbols"
)

const (
	// armSegment is SEGMENT_ALIGN: the text begins that far behind the image's
	// header (arch/arm64/kernel/vmlinux.lds.S).
	armSegment = 64 << 10

	// armImageAlign is what a boot loader aligns the image to
	// (Documentation/arch/arm64/booting.rst), since 5.8 with no offset.
	armImageAlign = 2 << 20
)

// ARM64 is what an arm64 kernel's mappings depend on. The zero value is that of a
// kernel of another architecture.
type ARM64 struct {
	// ImageOffset is kimage_voffset: what a virtual address of the kernel image is
	// above the guest-physical one.
	ImageOffset uint64

	// VABits is CONFIG_ARM64_VA_BITS, by which the address space is laid out. The
	// processor may have fewer: see Guest.Levels.
	VABits int

	// PhysOffset is memstart_addr, the guest-physical address that the first
	// address of the linear map stands for, modulo 2^64: with KASLR it may lie
	// below zero.
	PhysOffset uint64

	// Vmemmap is VMEMMAP_START, 0 if the kernel does not say (before 6.1).
	Vmemmap uint64

	PhysBits int // MAX_PHYSMEM_BITS, 0 if the kernel does not say
	Format   paging.Format
}

// PageOffset returns PAGE_OFFSET, the begin of the linear map as the kernel counts
// it. Where the processor has fewer bits than VABits nothing is mapped there.
func (a *ARM64) PageOffset() uint64 { return -(uint64(1) << uint(a.VABits)) }

// fromInfoARM64 is the part of fromInfo that belongs to an arm64 kernel: it sets what
// g.Tables and g.ImagePhys need.
func (g *Guest) fromInfoARM64() error {
	v := g.VMCoreInfo
	g.Arch = paging.ARM64
	offset, err := v.Number("kimage_voffset")
	if err != nil {
		return err
	}
	phys, err := v.Number("PHYS_OFFSET")
	if err != nil {
		return err
	}
	bits, err := v.Number("VA_BITS")
	if err != nil {
		return err
	}
	used := bits
	if t1sz, err := v.Number("TCR_EL1_T1SZ"); err == nil {
		used = 64 - t1sz
	}
	if size, err := v.PageSize(); err == nil && size != 4096 {
		return fmt.Errorf("its pages have %d bytes; only 4096 are supported", size)
	}
	switch used {
	case 39:
		g.Levels = 3
	case 48:
		g.Levels = 4
	case 52:
		g.Levels = 5
	default:
		return fmt.Errorf("%d bits of virtual address are not supported with pages of 4096 bytes", used)
	}
	if bits < used || bits > 52 {
		return fmt.Errorf("VA_BITS is %d, but the processor translates %d", bits, used)
	}
	g.ARM64 = ARM64{
		ImageOffset: uint64(offset), VABits: int(bits), PhysOffset: uint64(phys), Format: armFormat(g.Release),
	}
	if n, err := v.Number("VMEMMAP_START"); err == nil {
		g.ARM64.Vmemmap = uint64(n)
	}
	if n, err := v.Number("MAX_PHYSMEM_BITS"); err == nil && n >= 32 && n <= 52 {
		g.ARM64.PhysBits = int(n)
	}
	stext, err := v.Symbol("_stext")
	if err != nil {
		return err
	}
	// Kernels without symbols of variables have no symbol _text either.
	g.VirtBase = stext - armSegment
	if at := g.VirtBase - g.ARM64.ImageOffset; at%armImageAlign != 0 {
		return fmt.Errorf("the image would begin at %#x, which is not on a boundary of 2 MiB", at)
	}
	return nil
}

// armFormat returns the format of page-table entries of a release. They are macros,
// of which no type tells; see checkFormat.
func armFormat(release string) paging.Format {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return paging.FormatARM64v6_10
	}
	switch v := major*1000 + minor; {
	case v < 5019:
		return paging.FormatARM64v5_10
	case v < 6010:
		return paging.FormatARM64v5_19
	}
	return paging.FormatARM64v6_10
}

// finishARM64 is the part of finish that belongs to an arm64 kernel.
func (f *finder) finishARM64(g *Guest, img space) error {
	if _, ok := g.Symbols.Lookup("swapper_pg_dir"); !ok {
		if err := f.exports(g, img); err != nil {
			return err
		}
	}
	if text, ok := g.Symbols.Lookup("_text"); ok && text != g.VirtBase {
		return fmt.Errorf("_text is %#x, but _stext says %#x", text, g.VirtBase)
	}
	for name, want := range map[string]uint64{"kimage_voffset": g.ARM64.ImageOffset, "memstart_addr": g.ARM64.PhysOffset} {
		addr, ok := g.Symbols.Lookup(name)
		if !ok {
			continue
		}
		b, err := img.read(addr, 8)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if got := binary.LittleEndian.Uint64(b); got != want {
			return fmt.Errorf("the variable %s is %#x, but VMCOREINFO says %#x", name, got, want)
		}
		g.step(fmt.Sprintf("%s %#x", name, want), "VMCOREINFO", "the variable says the same")
	}
	return f.checkFormat(g, img)
}

// exports adds the variables that the kernel exports, or names in VMCOREINFO, to its
// symbols.
func (f *finder) exports(g *Guest, img space) error {
	b, err := f.imageBytes(img, g.VirtBase, g.VirtBase+maxImage)
	if err != nil {
		return err
	}
	more, err := symbols.Exported(b, g.VirtBase)
	if err != nil {
		return err
	}
	exported := len(more)
	for _, key := range g.VMCoreInfo.Keys() {
		name := strings.TrimSuffix(strings.TrimPrefix(key, "SYMBOL("), ")")
		a, err := g.VMCoreInfo.Symbol(name)
		known := slices.ContainsFunc(more, func(s symbols.Symbol) bool { return s.Name == name })
		if err == nil && !known {
			more = append(more, symbols.Symbol{Name: name, Addr: a, Type: 'D'})
		}
	}
	all, err := g.Symbols.With(more)
	if err != nil {
		return err
	}
	g.step("symbols of variables", fmt.Sprintf("%d exported symbols by content, %d more of VMCOREINFO", exported, len(more)-exported), "functions that are exported are where kallsyms has them")
	g.Symbols = all
	return nil
}

// checkFormat asks the kernel which bits it puts into a page that nobody may touch.
// Source: arch/arm64/mm/mmap.c:protection_map.
func (f *finder) checkFormat(g *Guest, img space) error {
	const (
		valid = 1 << 0
		nG    = 1 << 11
		old   = 1 << 58 // PTE_PROT_NONE before 6.10
	)
	addr, ok := g.Symbols.Lookup("protection_map")
	if !ok {
		return nil
	}
	b, err := img.read(addr, 8)
	if err != nil {
		return fmt.Errorf("protection_map: %w", err)
	}
	none := binary.LittleEndian.Uint64(b)
	isOld := g.ARM64.Format != paging.FormatARM64v6_10
	if none&valid != 0 || none&nG == 0 || none&old != 0 != isOld {
		return fmt.Errorf("PAGE_NONE is %#x, which is not that of Linux %s", none, g.Release)
	}
	g.step("page-table entries", "release "+g.Release, "the kernel's PAGE_NONE has the bits of that time")
	return nil
}
