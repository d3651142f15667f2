package locate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/ovmigrate/ovmigrate/kernel/symbols"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// byContent finds kernels without VMCOREINFO: every symbol table in memory is
// opened where it lies, and is right if the page tables it names map the kernel as
// it says and the variables phys_base and linux_banner agree.
func (f *finder) byContent() ([]*Guest, error) {
	const (
		window  = 32 << 20
		overlap = 16 << 20 // more than the tables of one kernel
	)
	var windows []vmi.Range
	for _, r := range dataRanges(f.mem) {
		for a := r.Start; a < r.End; a += window - overlap {
			windows = append(windows, vmi.Range{Start: a, End: min(a+window, r.End)})
			if a+window >= r.End {
				break
			}
		}
	}
	var (
		next    atomic.Int64
		mu      sync.Mutex
		kernels []*Guest
		wg      sync.WaitGroup
		tries   atomic.Int64
	)
	raw := space{mem: f.mem, viewer: f.viewer}
	for range min(runtime.GOMAXPROCS(0), 4, len(windows)) {
		wg.Go(func() {
			windowed := raw
			windowed.buf = new([]byte)
			for f.ctx.Err() == nil {
				i := int(next.Add(1) - 1)
				if i >= len(windows) {
					return
				}
				w := windows[i]
				b, err := windowed.read(uint64(w.Start), int(w.Len()))
				if err != nil {
					continue
				}
				symbols.Search(b, uint64(w.Start), func(a symbols.Addrs) bool {
					if tries.Add(1) > maxCandidates {
						return true
					}
					g, err := f.fromTables(raw, a, 0)
					if err != nil {
						f.reject(fmt.Sprintf("symbol table at %#x", a.TokenTable), err)
						return false
					}
					mu.Lock()
					defer mu.Unlock()
					if !slices.ContainsFunc(kernels, g.same) {
						kernels = append(kernels, g)
					}
					return false
				})
			}
		})
	}
	wg.Wait()
	return kernels, f.ctx.Err()
}

var errNoBanner = errors.New("no linux_banner that fits its addresses")

// fromTables follows a symbol table that lies at guest-physical addresses a. rodata is
// where the kernel's read-only data begins, 0 if that is not known.
func (f *finder) fromTables(raw space, a symbols.Addrs, rodata uint64) (*Guest, error) {
	t, layout, err := symbols.Open(raw.read, a, func(t *symbols.Table) bool { return plausible(t, a.TokenTable) })
	if err != nil {
		return nil, err
	}
	sym := t.Resolve("_stext", "_text", "linux_banner", "init_top_pgt", "phys_base", "sme_me_mask", "__start_rodata")
	for _, n := range []string{"linux_banner", "init_top_pgt", "phys_base"} {
		if _, ok := sym[n]; !ok {
			return nil, fmt.Errorf("it has no %s", n)
		}
	}
	g := &Guest{Symbols: t}
	how := fmt.Sprintf("kallsyms at %#x by content: %v", a.TokenTable, layout)
	if sym["_text"] < startKernelMap {
		// 7.0: every address is relative to its slot, so that what came out is
		// guest-physical. Page tables tell the virtual address.
		if err := f.placeRelative(g, sym); err != nil {
			return nil, err
		}
		delta := g.VirtBase - sym["_text"]
		g.Symbols = t.Moved(delta)
		for n := range sym {
			sym[n] += delta
		}
	} else if err := f.place(g, raw, sym, a, rodata); err != nil {
		return nil, err
	}
	g.VirtBase = sym["_text"]
	g.KASLROffset = g.VirtBase - textBase
	img := f.image(g)
	if p, ok := sym["sme_me_mask"]; ok {
		if b, err := img.read(p, 8); err == nil {
			g.EncMask = binary.LittleEndian.Uint64(b)
		}
	}
	g.step("symbols", how, fmt.Sprintf("page tables at %#x map _stext %#x to %#x as its place says",
		uint64(g.Root), sym["_stext"], uint64(img.phys(sym["_stext"]))))
	return g, f.finish(g, img)
}

// plausible accepts the reading of a symbol table in which the kernel begins on a
// boundary it can be loaded at: at a virtual address of a kernel image, or before the
// table itself if addresses are relative to that.
func plausible(t *symbols.Table, table uint64) bool {
	text, ok1 := t.Lookup("_text")
	stext, ok2 := t.Lookup("_stext")
	virtual := text >= startKernelMap && text < startKernelMap+imageSpace
	near := text > 0 && text < table && table-text < maxImage
	return ok1 && ok2 && (virtual || near) && text%textAlign == 0 && stext-text < textAlign
}

// place finds where the kernel lies: the symbol table has the virtual address of
// read-only data, or of the banner, whose text is somewhere near the table.
func (f *finder) place(g *Guest, raw space, sym map[string]uint64, a symbols.Addrs, rodata uint64) error {
	if start, ok := sym["__start_rodata"]; ok && rodata != 0 {
		return f.placeAt(g, sym, start-rodata)
	}
	return f.byBanner(g, raw, sym, a)
}

// placeAt checks that the kernel is mapped delta above where it lies.
func (f *finder) placeAt(g *Guest, sym map[string]uint64, delta uint64) (err error) {
	g.PhysBase = int64(startKernelMap - delta)
	for _, g.Levels = range []int{4, 5} {
		if err = f.mapped(g, f.image(g), sym["_stext"], sym["init_top_pgt"]); err == nil {
			return nil
		}
	}
	return err
}

// byBanner finds where the kernel lies: the symbol table says the banner's virtual
// address, and the text itself is somewhere near the table.
func (f *finder) byBanner(g *Guest, raw space, sym map[string]uint64, a symbols.Addrs) error {
	const near = 32 << 20
	if sym["_text"] >= startKernelMap+imageSpace {
		return fmt.Errorf("_text %#x is no address of a kernel image", sym["_text"])
	}
	from := a.Names - min(near, a.Names)
	r, ok := raw.ram(a.Names)
	if !ok {
		return errNoBanner
	}
	from = max(from, uint64(r.Start))
	b, err := raw.upTo(from, 2*near)
	if err != nil {
		return err
	}
	err = errNoBanner
	for at := 0; ; at++ {
		i := bytes.Index(b[at:], []byte(bannerTag))
		if i < 0 {
			return err
		}
		at += i
		delta := sym["linux_banner"] - (from + uint64(at))
		if delta%textAlign != 0 {
			continue
		}
		if err = f.placeAt(g, sym, delta); err == nil {
			return nil
		}
	}
}

// placeRelative finds the virtual address of a kernel whose guest-physical
// addresses are known, in its own page tables.
func (f *finder) placeRelative(g *Guest, sym map[string]uint64) error {
	g.Root = vmi.Phys(sym["init_top_pgt"])
	for _, g.Levels = range []int{4, 5} {
		t := g.Tables(f.mem)
		for va := uint64(startKernelMap); va < startKernelMap+imageSpace; va += textAlign {
			pa, _, err := t.Translate(va)
			if err == nil && uint64(pa) == sym["_text"] {
				g.VirtBase = va
				g.PhysBase = int64(sym["_text"] - (va - startKernelMap))
				return nil
			}
		}
	}
	return fmt.Errorf("its page tables at %#x do not map it", uint64(g.Root))
}
