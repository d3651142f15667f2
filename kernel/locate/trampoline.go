package locate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/kernel/symbols"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// lowMemory is where an x86 processor can start: below 1 MiB.
const lowMemory = 1 << 20

// byTrampoline finds the kernel that booted last, whatever the size of memory. To
// start further processors Linux puts code below 1 MiB and beside it a top-level
// page table, trampoline_pgd, whose last entry is that of init_top_pgt
// (arch/x86/realmode/init.c:setup_real_mode). It maps the kernel image. A kernel
// booted later puts its own in the same place, so that one that is gone is not found.
func (f *finder) byTrampoline() ([]*Guest, error) {
	var kernels []*Guest
	raw := space{mem: f.mem, viewer: f.viewer}
	for at := vmi.Phys(0); at < lowMemory; at += vmi.PageSize {
		top, ok := f.topOf(at)
		if !ok {
			continue
		}
		if _, ok := raw.ram(top); !ok {
			continue
		}
		for _, levels := range []int{4, 5} {
			m, ok := f.imageMap(paging.Tables{Mem: f.mem, Root: at, Levels: levels})
			if !ok {
				continue
			}
			if f.nmapped++; f.nmapped > maxMapped {
				return kernels, nil
			}
			g, err := f.fromMap(m, top, at)
			if err != nil {
				f.reject(fmt.Sprintf("trampoline at %#x", uint64(at)), err)
			} else if !slices.ContainsFunc(kernels, g.same) {
				kernels = append(kernels, g)
			}
		}
	}
	return kernels, f.ctx.Err()
}

// imageMap is what page tables tell about the kernel image.
type imageMap struct {
	levels            int
	text, rodata, end uint64 // text and what follows that cannot be executed
	phys              vmi.Phys
}

// imageMap reads the mapping of the kernel image. All of it must be in one piece.
func (f *finder) imageMap(t paging.Tables) (m imageMap, ok bool) {
	ok = true
	m.levels = t.Levels
	err := t.Walk(startKernelMap, startKernelMap+imageSpace, func(e paging.Entry) bool {
		switch {
		case e.Kind != paging.Present:
			ok = e.Kind != paging.Bad
		case m.end == 0:
			m.text, m.phys = e.VA, e.Phys()
			ok = !e.NX() && e.VA%textAlign == 0 && e.Phys()%textAlign == 0
		default:
			ok = uint64(e.Phys()-m.phys) == e.VA-m.text
		}
		if e.Kind == paging.Present {
			m.end = e.VA + e.Size
			if m.rodata == 0 && e.NX() {
				m.rodata = e.VA
			}
		}
		return ok
	})
	if m.rodata == 0 {
		m.rodata = m.text // rodata=off
	}
	return m, ok && err == nil && m.end != 0
}

// fromMap follows a mapping of the kernel image to the symbol table in it.
func (f *finder) fromMap(m imageMap, top uint64, at vmi.Phys) (*Guest, error) {
	g := &Guest{
		VirtBase: m.text, KASLROffset: m.text - textBase, Levels: m.levels,
		PhysBase: int64(m.phys) - int64(m.text-startKernelMap),
	}
	img := f.image(g)
	if err := f.openSymbols(g, img, m); err != nil {
		return nil, err
	}
	root, ok1 := g.Symbols.Lookup("init_top_pgt")
	stext, ok2 := g.Symbols.Lookup("_stext")
	if !ok1 || !ok2 {
		return nil, errors.New("its symbol table has no variables (CONFIG_KALLSYMS_ALL=n)")
	}
	if err := f.mapped(g, img, stext, root); err != nil {
		return nil, err
	}
	if got, _ := f.topOf(g.Root); got != top {
		return nil, fmt.Errorf("init_top_pgt at %#x leads elsewhere", uint64(g.Root))
	}
	g.step("page tables", fmt.Sprintf("init_top_pgt at %#x", uint64(g.Root)),
		fmt.Sprintf("the boot trampoline at %#x leads to the same kernel image", uint64(at)))
	return g, f.finish(g, img)
}

// openSymbols opens the symbols of a kernel of which the mapping is known.
func (f *finder) openSymbols(g *Guest, img space, m imageMap) error {
	check := func(t *symbols.Table) bool {
		text, ok := t.Lookup("_text")
		return ok && text == m.text
	}
	const checked = "_text is where page tables have it"
	if f.symfile != nil {
		return f.useSymbolFile(g, check, checked)
	}
	if a, ok := f.noted(g); ok {
		t, layout, err := symbols.Open(img.read, a, check)
		if err == nil {
			g.Symbols = t
			g.step("symbols", fmt.Sprintf("kallsyms where the dump file's VMCOREINFO has it: %v", layout), checked)
			return nil
		}
		f.reject("kallsyms at the addresses of the dump file's VMCOREINFO", err)
	}
	b, err := f.imageBytes(img, m.rodata, m.end)
	if err != nil {
		return err
	}
	return f.searchSymbols(g, img, b, m.rodata, check, checked)
}

// noted returns where the VMCOREINFO of the dump file has the symbol table, if it is of
// the kernel at g's place. To search for it takes most of the kernel's image, which a
// compressed dump would have to unpack.
func (f *finder) noted(g *Guest) (a symbols.Addrs, ok bool) {
	m, ok := f.mem.(VMCoreInfoer)
	if !ok {
		return a, false
	}
	v := ParseVMCoreInfo(m.VMCoreInfo())
	offset, err := v.KernelOffset()
	if err != nil || offset != g.KASLROffset {
		return a, false
	}
	return kallsymsAddrs(v)
}

// topEntry is the last entry of a top-level table: it maps the kernel image.
const topEntry = 511 * 8

// topOf returns the table that the last entry of a top-level table points to.
func (f *finder) topOf(root vmi.Phys) (uint64, bool) {
	const frame = 0x000f_ffff_ffff_f000
	b, err := space{mem: f.mem, viewer: f.viewer}.read(uint64(root)+topEntry, 8)
	if err != nil {
		return 0, false
	}
	e := binary.LittleEndian.Uint64(b)
	return e & frame, e&1 != 0
}
