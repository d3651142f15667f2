package locate

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/ovmigrate/ovmigrate/kernel/symbols"
	"github.com/ovmigrate/ovmigrate/kernel/symbols/symbolstest"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// ram is guest memory from address 0 on, without views.
type ram []byte

func (m ram) Ranges() []vmi.Range { return []vmi.Range{{End: vmi.Phys(len(m))}} }

func (m ram) ReadPhys(p []byte, a vmi.Phys) (int, error) {
	if !m.Ranges()[0].Contains(a, len(p)) {
		return 0, &vmi.FaultError{Addr: a, Len: len(p)}
	}
	return copy(p, m[a:]), nil
}

// viewed is ram that can be seen without a copy.
type viewed struct{ ram }

func (m viewed) View(a vmi.Phys, n int) []byte {
	if !m.Ranges()[0].Contains(a, n) {
		return nil
	}
	return m.ram[a:][:n]
}

// kernelImage is a made-up kernel: all that locate looks at is in it, nothing else.
type kernelImage struct {
	layout  symbolstest.Layout
	levels  int
	text    uint64 // virtual address
	phys    uint64 // of text
	info    uint64 // physical address of the VMCOREINFO page; the note is in the next one
	release string
	clock   uint64

	trampoline bool
	noVars     bool // CONFIG_KALLSYMS_ALL=n
	noInfoSyms bool // VMCOREINFO does not name the kallsyms tables, as before 6.0
	sysmap     string
}

const (
	mib       = 1 << 20
	imageSize = 6 * mib

	// Offsets in the image: two MiB each of text, read-only data and data.
	atBanner   = 2*mib + 0x200
	atKallsyms = 2*mib + 0x1000
	atBTF      = 3 * mib
	atRoot     = 4 * mib
	atTables   = atRoot + 0x1000 // p4d, pud, pmd; direct map: p4d, pud
	atUTS      = 4*mib + 0x8000
	atPhysBase = 4*mib + 0x9000
	atInfoPtr  = 4*mib + 0x9008
	atClock    = 4*mib + 0xa000
)

func defaultKernel() *kernelImage {
	return &kernelImage{
		layout: symbolstest.Layouts[5], levels: 4, text: 0xffff_ffff_9f60_0000, phys: 8 * mib, info: 15 * mib,
		release: "6.4.0-1-test", clock: 1_700_000_000, trampoline: true,
	}
}

func (k *kernelImage) physBase() int64 { return int64(k.phys) - int64(k.text-startKernelMap) }

// directMap is where Linux maps all memory.
func (k *kernelImage) directMap() uint64 {
	if k.levels == 5 {
		return 0xff11_0000_0000_0000
	}
	return 0xffff_8880_0000_0000
}

func (k *kernelImage) banner() string {
	return "Linux version " + k.release + " (test@example.org) (gcc-12) #1 SMP PREEMPT_DYNAMIC"
}

// btf is a header, four bytes of types and strings.
func (k *kernelImage) btf() []byte {
	b := []byte{0x9f, 0xeb, 1, 0}
	for _, v := range []uint32{24, 0, 4, 4, 1 << 17} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	b = append(b, 1, 2, 3, 4)
	return append(b, slices.Concat([]byte{0}, bytes.Repeat([]byte("name\x00"), 1<<17/5), make([]byte, 5))[:1<<17]...)
}

func (k *kernelImage) symbols() []symbols.Symbol {
	s := []symbols.Symbol{{Name: "_text", Addr: k.text, Type: 'T'}, {Name: "_stext", Addr: k.text, Type: 'T'}}
	for i := range uint64(1500) {
		s = append(s, symbols.Symbol{Name: fmt.Sprintf("do_%d_thing", i*7), Addr: k.text + 0x40 + i*0x100, Type: 't'})
	}
	if k.noVars {
		return s
	}
	for name, at := range map[string]uint64{
		"linux_banner": atBanner, "init_top_pgt": atRoot, "init_uts_ns": atUTS, "phys_base": atPhysBase,
		"vmcoreinfo_data": atInfoPtr, "tk_core": atClock, "__start_BTF": atBTF, "__stop_BTF": atBTF + uint64(len(k.btf())), "_end": imageSize,
	} {
		s = append(s, symbols.Symbol{Name: name, Addr: k.text + at, Type: 'D'})
	}
	return s
}

func (k *kernelImage) infoText(a symbols.Addrs) string {
	at := func(off uint64) string { return fmt.Sprintf("%x", k.text+off) }
	s := "OSRELEASE=" + k.release + "\nBUILD-ID=00\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=" + at(atUTS) +
		"\nSYMBOL(_stext)=" + at(0) + "\nSYMBOL(init_top_pgt)=" + at(atRoot) +
		fmt.Sprintf("\nNUMBER(phys_base)=%d\nNUMBER(pgtable_l5_enabled)=%d\nKERNELOFFSET=%x\nOFFSET(page.flags)=0\n",
			k.physBase(), k.levels-4, k.text-textBase)
	if k.noInfoSyms {
		return s
	}
	for _, v := range []struct {
		name string
		addr uint64
	}{
		{"names", a.Names},
		{"num_syms", a.NumSyms},
		{"token_table", a.TokenTable},
		{"token_index", a.TokenIndex},
		{"offsets", a.Offsets},
		{"relative_base", a.RelativeBase},
		{"addresses", a.Addresses},
	} {
		if v.addr != 0 {
			s += fmt.Sprintf("SYMBOL(kallsyms_%s)=%x\n", v.name, v.addr)
		}
	}
	return s
}

// load puts the kernel into memory.
func (k *kernelImage) load(m ram) {
	put := func(at uint64, v uint64) { binary.LittleEndian.PutUint64(m[at:], v) }
	img := m[k.phys:][:imageSize]
	clear(img)
	syms, addrs := symbolstest.Write(k.layout, k.symbols(), k.text+atKallsyms, k.text)
	copy(img[atKallsyms:], syms)
	copy(img[atBanner:], k.banner()+"\n\x00")
	copy(img[atBTF:], k.btf())
	copy(img[atUTS:], "Linux")
	copy(img[atUTS+65:], "testhost")
	copy(img[atUTS+130:], k.release)
	put(k.phys+atPhysBase, uint64(k.physBase()))
	put(k.phys+atInfoPtr, k.directMap()+k.info)
	put(k.phys+atClock+48, 1_999_000_000) // looks like seconds
	put(k.phys+atClock+56, k.clock*1e9)
	put(k.phys+atClock+64, 1<<63-1)

	const (
		table, leaf, nx = 0x67, 0x1e1, 1 << 63
	)
	root, p4d, pud, pmd := k.phys+atRoot, k.phys+atTables, k.phys+atTables+0x1000, k.phys+atTables+0x2000
	dp4d, dpud := pmd+0x1000, pmd+0x2000
	down := func(top, mid uint64, va uint64, pud uint64) {
		if k.levels == 5 {
			put(top+va>>48&511*8, mid|table)
			top = mid
		}
		put(top+va>>39&511*8, pud|table)
	}
	down(root, p4d, startKernelMap, pud)
	put(pud+510*8, pmd|table)
	for i := range uint64(3) {
		e := k.phys + i*2*mib | leaf
		if i > 0 {
			e |= nx
		}
		put(pmd+(k.text>>21+i)&511*8, e)
	}
	down(root, dp4d, k.directMap(), dpud)
	put(dpud, leaf|nx)

	text := k.infoText(addrs)
	copy(m[k.info:], text+"\x00")
	note := m[k.info+vmi.PageSize:]
	binary.LittleEndian.PutUint32(note, 11)
	binary.LittleEndian.PutUint32(note[4:], uint32(len(text)))
	copy(note[12:], "VMCOREINFO\x00\x00"+text)

	if k.trampoline {
		put(0x9c000+511*8, uint64(binary.LittleEndian.Uint64(m[root+511*8:])))
	}
	var sm bytes.Buffer
	for _, s := range k.symbols() {
		fmt.Fprintf(&sm, "%x %c %s\n", s.Addr-(k.text-textBase), s.Type, s.Name)
	}
	k.sysmap = sm.String()
}

// guest returns 16 MiB of memory with kernels in it and noise around them.
func guest(kernels ...*kernelImage) ram {
	m := noise()
	copy(m[5*mib:], "Linux version 5.0.0-decoy (nobody) \x00")
	for _, k := range kernels {
		k.load(m)
	}
	return m
}

var noise = func() func() ram {
	m := sync.OnceValue(makeNoise)
	return func() ram { return slices.Clone(m()) }
}()

// makeNoise fills most pages above 2 MiB with random numbers.
func makeNoise() ram {
	m := make(ram, 16*mib)
	r := rand.New(rand.NewPCG(1, 2))
	for i := 2 * mib; i < len(m); i += 8 {
		if i>>12&7 != 0 {
			binary.LittleEndian.PutUint64(m[i:], r.Uint64())
		}
	}
	return m
}
