package locate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/ovmigrate/ovmigrate/kernel/symbols"
)

const (
	maxImage  = 256 << 20 // of the kernel image is searched; they are 30 to 60 MiB
	maxBanner = 1024
	bannerTag = "Linux version "
)

// readSystemMap keeps the file for every candidate.
func (f *finder) readSystemMap() error {
	const limit = 64 << 20
	if f.o.SystemMap == nil {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(f.o.SystemMap, limit+1))
	if err != nil {
		return fmt.Errorf("System.map: %w", err)
	}
	if len(b) > limit {
		return fmt.Errorf("System.map: %w: larger than %d MiB", symbols.ErrFormat, limit>>20)
	}
	f.sysmap = b
	return nil
}

// symbols opens the kernel's symbol table: at the addresses VMCOREINFO gives (6.0
// and newer), else by its content.
func (f *finder) symbols(g *Guest, img space, stext, root uint64) error {
	known := map[string]uint64{"_stext": stext, "init_top_pgt": root}
	if uts, err := g.VMCoreInfo.Symbol("init_uts_ns"); err == nil {
		known["init_uts_ns"] = uts
	}
	check := func(t *symbols.Table) bool {
		for name, want := range known {
			if got, ok := t.Lookup(name); ok && got != want || !ok && name == "_stext" {
				return false
			}
		}
		return true
	}
	const agreed = "_stext and other addresses are those of VMCOREINFO"
	if f.sysmap != nil {
		t, err := symbols.ParseSystemMap(bytes.NewReader(f.sysmap), g.KASLROffset)
		if err != nil {
			return fmt.Errorf("System.map: %w", err)
		}
		if !check(t) {
			return errors.New("System.map belongs to another kernel: _stext differs")
		}
		g.Symbols = t
		g.step("symbols", "System.map", agreed)
		return nil
	}
	var layout symbols.Layout
	a, ok := kallsymsAddrs(g.VMCoreInfo)
	if ok {
		var err error
		g.Symbols, layout, err = symbols.Open(img.read, a, check)
		if err == nil {
			g.step("symbols", fmt.Sprintf("kallsyms at VMCOREINFO's addresses: %v", layout), agreed)
			return nil
		}
		f.reject("kallsyms at VMCOREINFO's addresses", err)
	}
	b, err := f.imageBytes(img, stext)
	if err != nil {
		return err
	}
	var last error
	found := symbols.Search(b, stext, func(a symbols.Addrs) bool {
		g.Symbols, layout, last = symbols.Open(img.read, a, check)
		return last == nil
	})
	if !found {
		if last == nil {
			last = symbols.ErrFormat
		}
		return fmt.Errorf("kernel %s at %#x: %w", g.Release, uint64(img.phys(stext)), last)
	}
	g.step("symbols", fmt.Sprintf("kallsyms by content: %v", layout), agreed)
	return nil
}

// imageBytes returns guest memory from addr to where the image must have ended.
func (f *finder) imageBytes(img space, addr uint64) ([]byte, error) {
	if f.viewer == nil {
		return img.upTo(addr, maxRead) // copied: kept small
	}
	r, ok := img.ram(addr)
	if !ok {
		return nil, fmt.Errorf("%#x: %w", addr, errOutside)
	}
	n := int(min(maxImage, uint64(r.End-img.phys(addr))))
	if b := f.viewer.View(img.phys(addr), n); len(b) >= n {
		return b[:n:n], nil
	}
	return img.upTo(addr, maxRead)
}

func kallsymsAddrs(v VMCoreInfo) (a symbols.Addrs, ok bool) {
	ok = true
	get := func(name string, required bool) uint64 {
		s, err := v.Symbol("kallsyms_" + name)
		ok = ok && (err == nil || !required)
		return s
	}
	a.NumSyms = get("num_syms", true)
	a.Names = get("names", true)
	a.TokenTable = get("token_table", true)
	a.TokenIndex = get("token_index", true)
	a.Addresses = get("addresses", false)
	a.Offsets = get("offsets", a.Addresses == 0)
	a.RelativeBase = get("relative_base", false)
	return a, ok
}

// finish checks what the symbols lead to, and reads banner and types.
func (f *finder) finish(g *Guest, img space) error {
	text, ok := g.Symbols.Lookup("_text")
	if !ok {
		text = textBase + g.KASLROffset
	}
	g.VirtBase = text
	if want := textBase + g.KASLROffset; text != want {
		return fmt.Errorf("_text is %#x, but KERNELOFFSET says %#x", text, want)
	}
	if addr, ok := g.Symbols.Lookup("phys_base"); ok {
		b, err := img.read(addr, 8)
		if err != nil {
			return fmt.Errorf("phys_base: %w", err)
		}
		if v := int64(binary.LittleEndian.Uint64(b)); v != g.PhysBase {
			return fmt.Errorf("the variable phys_base is %#x, not %#x", v, g.PhysBase)
		}
		g.step(fmt.Sprintf("phys_base %#x", g.PhysBase), "the variable", "the same as was used to find it")
	}
	if err := f.banner(g, img); err != nil {
		return err
	}
	f.btf(g, img)
	return nil
}

// banner reads linux_banner, a constant, and checks that it is of g.Release.
func (f *finder) banner(g *Guest, img space) error {
	tag := bannerTag + g.Release + " "
	addr, ok := g.Symbols.Lookup("linux_banner")
	how := "linux_banner"
	if !ok {
		how = "content of the kernel image"
		b, err := f.imageBytes(img, g.VirtBase)
		if err != nil {
			return err
		}
		i := bytes.Index(b, []byte(tag))
		if i < 0 {
			return fmt.Errorf("no %q in the kernel image", tag)
		}
		addr = g.VirtBase + uint64(i)
	}
	s, err := img.cstring(addr, maxBanner)
	if err != nil {
		return fmt.Errorf("linux_banner: %w", err)
	}
	if !strings.HasPrefix(s, tag) {
		return fmt.Errorf("linux_banner is %.60q, not of %s", s, g.Release)
	}
	g.Banner = strings.TrimSuffix(s, "\n")
	g.step("banner", how, "it names release "+g.Release)
	return nil
}
