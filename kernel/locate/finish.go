package locate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/kernel/symbols"
)

const (
	maxImage  = 128 << 20 // of the kernel image is searched; they are 30 to 60 MiB
	maxBanner = 1024
	bannerTag = "Linux version "
)

// readSystemMap keeps the symbols for every candidate.
func (f *finder) readSystemMap() (err error) {
	const limit = 64 << 20
	if f.symfile = f.o.Symbols; f.symfile != nil || f.o.SystemMap == nil {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(f.o.SystemMap, limit+1))
	if err != nil {
		return fmt.Errorf("symbol file: %w", err)
	}
	if len(b) > limit {
		return fmt.Errorf("symbol file: %w: larger than %d MiB", symbols.ErrFormat, limit>>20)
	}
	if f.symfile, err = symbols.ParseSystemMap(bytes.NewReader(b), 0); err != nil {
		return fmt.Errorf("symbol file: %w", err)
	}
	return nil
}

// symbols opens the kernel's symbol table: at the addresses VMCOREINFO gives (6.0
// and newer), else by its content.
func (f *finder) symbols(g *Guest, img space, stext, root uint64) error {
	known := map[string]uint64{"_stext": stext, "init_top_pgt": root}
	if g.Arch == paging.ARM64 {
		known = map[string]uint64{"_stext": stext, "swapper_pg_dir": root}
	}
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
	if f.symfile != nil {
		return f.useSymbolFile(g, check, agreed)
	}
	if a, ok := kallsymsAddrs(g.VMCoreInfo); ok {
		t, layout, err := symbols.Open(img.read, a, check)
		if err == nil {
			g.Symbols = t
			g.step("symbols", fmt.Sprintf("kallsyms at VMCOREINFO's addresses: %v", layout), agreed)
			return nil
		}
		f.reject("kallsyms at VMCOREINFO's addresses", err)
	}
	b, err := f.imageBytes(img, stext, stext+maxImage)
	if err != nil {
		return err
	}
	return f.searchSymbols(g, img, b, stext, check, agreed)
}

func (f *finder) useSymbolFile(g *Guest, check func(*symbols.Table) bool, checked string) error {
	t := f.symfile.Slid(g.KASLROffset)
	if !check(t) {
		return errors.New("the symbol file belongs to another kernel: its addresses differ")
	}
	g.Symbols = t
	g.step("symbols", "file", checked)
	return nil
}

// searchSymbols looks for the symbol table in b, the part of the image from addr.
func (f *finder) searchSymbols(g *Guest, img space, b []byte, addr uint64, check func(*symbols.Table) bool, checked string) error {
	var layout symbols.Layout
	last := fmt.Errorf("%w from %#x", symbols.ErrFormat, uint64(img.phys(addr)))
	found := symbols.Search(b, addr, func(a symbols.Addrs) (ok bool) {
		g.Symbols, layout, last = symbols.Open(img.read, a, check)
		return last == nil
	})
	if !found {
		return last
	}
	g.step("symbols", fmt.Sprintf("kallsyms by content: %v", layout), checked)
	return nil
}

// imageBytes returns guest memory from addr to end, or to where RAM or patience ends.
func (f *finder) imageBytes(img space, addr, end uint64) ([]byte, error) {
	r, ok := img.ram(addr)
	if !ok {
		return nil, fmt.Errorf("%#x: %w", addr, errOutside)
	}
	n := int(min(maxImage, end-addr, uint64(r.End-img.phys(addr))))
	if f.viewer != nil {
		if b := f.viewer.View(img.phys(addr), n); len(b) >= n {
			return b[:n:n], nil
		}
	}
	return img.read(addr, min(n, maxRead)) // copied: kept small
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

// finish checks what the symbols lead to, and reads version, notes and types.
func (f *finder) finish(g *Guest, img space) error {
	finishArch := f.finishX86
	if g.Arch == paging.ARM64 {
		finishArch = f.finishARM64
	}
	if err := finishArch(g, img); err != nil {
		return err
	}
	if err := f.banner(g, img); err != nil {
		return err
	}
	if err := f.uts(g, img); err != nil {
		return err
	}
	f.attachInfo(g)
	f.btf(g, img)
	return nil
}

// finishX86 is the part of finish that belongs to an x86-64 kernel.
func (f *finder) finishX86(g *Guest, img space) error {
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
		g.step(fmt.Sprintf("phys_base %#x", g.PhysBase), "place of the kernel image", "the variable phys_base says the same")
	}
	return nil
}

// banner reads linux_banner, a constant. It sets g.Release, or checks it.
func (f *finder) banner(g *Guest, img space) error {
	tag := bannerTag
	if g.Release != "" {
		tag += g.Release + " "
	}
	addr, ok := g.Symbols.Lookup("linux_banner")
	how := "linux_banner"
	if !ok {
		how = "content of the kernel image"
		b, err := f.imageBytes(img, g.VirtBase, g.VirtBase+maxImage)
		if err != nil {
			return err
		}
		i := f.bannerIn(g, img, b, tag)
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
		return fmt.Errorf("linux_banner is %.60q, not %q", s, tag)
	}
	release, _, _ := strings.Cut(s[len(bannerTag):], " ")
	check := "the symbols have it here"
	if g.Release != "" {
		check = "it is of the release in OSRELEASE"
	}
	g.Release, g.Banner = release, strings.TrimSuffix(s, "\n")
	g.step("banner", how, check)
	return nil
}

// bannerIn returns where in b the banner begins that tag begins, or -1. There may be
// several, made at different times of the build: the right one ends with the version
// that the first UTS namespace has.
func (f *finder) bannerIn(g *Guest, img space, b []byte, tag string) int {
	var uts []byte
	if addr, err := g.VMCoreInfo.Symbol("init_uts_ns"); err == nil {
		uts, _ = img.read(addr, utsSize)
	}
	first := -1
	for at := 0; ; at += len(tag) {
		i := bytes.Index(b[at:], []byte(tag))
		if i < 0 {
			return first
		}
		at += i
		line, _, _ := bytes.Cut(b[at:min(at+maxBanner, len(b))], []byte("\n"))
		if j := bytes.LastIndexByte(line, '#'); j >= 0 && bytes.Contains(uts, append(bytes.Clone(line[j:]), 0)) {
			return at
		}
		if first < 0 {
			first = at
		}
	}
}

// utsSize is that of struct uts_namespace, as far as it is looked at: six strings of 65
// bytes near its begin.
const utsSize = 512

// uts checks the release in the kernel's first UTS namespace, a variable.
func (f *finder) uts(g *Guest, img space) error {
	const system = "Linux\x00"
	addr, ok := g.Symbols.Lookup("init_uts_ns")
	if !ok {
		var err error
		if addr, err = g.VMCoreInfo.Symbol("init_uts_ns"); err != nil {
			return nil
		}
	}
	b, err := img.read(addr, utsSize)
	if err != nil {
		return fmt.Errorf("init_uts_ns: %w", err)
	}
	if !bytes.Contains(b, []byte(system)) || !bytes.Contains(b, []byte(g.Release+"\x00")) {
		return fmt.Errorf("init_uts_ns at %#x does not say Linux %s", uint64(img.phys(addr)), g.Release)
	}
	g.step("release "+g.Release, "linux_banner", "the variable init_uts_ns says the same")
	return nil
}

// attachInfo reads VMCOREINFO where the kernel's variable vmcoreinfo_data points,
// for a kernel that was found without. It must be of this very kernel.
func (f *finder) attachInfo(g *Guest) {
	if len(g.VMCoreInfo.values) != 0 {
		return
	}
	text, how, err := f.infoText(g)
	if err == nil {
		v := ParseVMCoreInfo(text)
		if err = g.agrees(v); err == nil {
			g.VMCoreInfo = v
			g.step("vmcoreinfo", how, "its OSRELEASE, KERNELOFFSET, phys_base and _stext are those found")
			return
		}
	}
	f.reject("vmcoreinfo of the kernel", err)
	g.step("vmcoreinfo", "not usable", err.Error())
}

func (f *finder) infoText(g *Guest) (text []byte, how string, err error) {
	if m, ok := f.mem.(VMCoreInfoer); ok {
		if text := m.VMCoreInfo(); len(text) > 0 {
			return text, "of the dump file", nil
		}
	}
	img := f.image(g)
	addr, ok := g.Symbols.Lookup("vmcoreinfo_data")
	if !ok {
		return nil, "", errors.New("there is no symbol vmcoreinfo_data")
	}
	p, err := img.read(addr, 8)
	if err != nil {
		return nil, "", err
	}
	at, _, err := g.Tables(f.mem).Translate(binary.LittleEndian.Uint64(p))
	if err != nil {
		return nil, "", err
	}
	text, err = space{mem: f.mem, viewer: f.viewer}.upTo(uint64(at), maxInfo)
	return text, fmt.Sprintf("at %#x, where vmcoreinfo_data points", uint64(at)), err
}

// agrees says whether v describes the kernel g.
func (g *Guest) agrees(v VMCoreInfo) error {
	release, err := v.String("OSRELEASE")
	if err != nil {
		return err
	}
	offset, err := v.KernelOffset()
	if err != nil {
		return err
	}
	phys, err := v.Number("phys_base")
	if err != nil {
		return err
	}
	stext, err := v.Symbol("_stext")
	if err != nil {
		return err
	}
	known, _ := g.Symbols.Lookup("_stext")
	if release != g.Release || offset != g.KASLROffset || phys != g.PhysBase || stext != known {
		return fmt.Errorf("it is of kernel %s, KERNELOFFSET=%x, phys_base %#x", release, offset, phys)
	}
	return nil
}
