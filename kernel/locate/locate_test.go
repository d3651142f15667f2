package locate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel/symbols/symbolstest"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// check compares what was found with what is there.
func check(t *testing.T, g *Guest, k *kernelImage, mem vmi.Memory) {
	t.Helper()
	if g.Release != k.release || g.Banner != k.banner() || g.VirtBase != k.text || g.KASLROffset != k.text-textBase ||
		g.PhysBase != k.physBase() || uint64(g.Root) != k.phys+atRoot || g.Levels != k.levels {
		t.Fatalf("found %+v", g)
	}
	if !bytes.Equal(g.BTF, k.btf()) {
		t.Errorf("BTF of %d bytes, want %d", len(g.BTF), len(k.btf()))
	}
	want := k.symbols()
	for i, s := range want {
		if i%16 != 0 && s.Type == 't' {
			continue
		}
		if got, ok := g.Symbols.Lookup(s.Name); !ok || got != s.Addr {
			t.Fatalf("%s is %#x, %v, want %#x", s.Name, got, ok, s.Addr)
		}
	}
	if g.Symbols.Len() != len(want) {
		t.Errorf("%d symbols, want %d", g.Symbols.Len(), len(want))
	}
	pa, _, err := g.Tables(mem).Translate(k.text + 0x1234)
	if ip, ok := g.ImagePhys(k.text + 0x1234); err != nil || !ok || pa != ip || uint64(pa) != k.phys+0x1234 {
		t.Errorf("text is at %#x by page tables (%v), %#x by ImagePhys", pa, err, ip)
	}
	if s, err := g.VMCoreInfo.String("OSRELEASE"); err != nil || s != k.release {
		t.Errorf("OSRELEASE %q, %v", s, err)
	}
	if len(g.Found) < 4 {
		t.Errorf("steps %v", g.Found)
	}
}

func find(mem vmi.Memory) (*Guest, error) { return Find(context.Background(), mem, nil) }

// TestFind finds every layout in every way.
func TestFind(t *testing.T) {
	for i, l := range symbolstest.Layouts {
		k := defaultKernel()
		k.layout, k.levels, k.text = l, 4+i%2, textBase+uint64(i/2%2)*0x1e60_0000
		m := guest(k)
		if testing.Short() && i%3 != 0 {
			continue
		}
		for _, mem := range []vmi.Memory{m, viewed{m}} {
			for name, rung := range map[string]func(*finder) ([]*Guest, error){
				"trampoline": (*finder).byTrampoline, "vmcoreinfo": (*finder).byVMCoreInfo, "content": (*finder).byContent,
			} {
				f := &finder{ctx: t.Context(), mem: mem, o: &Options{}, log: (*Options)(nil).log()}
				f.viewer, _ = mem.(vmi.Viewer)
				found, err := rung(f)
				if err != nil || len(found) != 1 {
					t.Fatalf("%s, %d levels, %s: %d kernels, %v, %v", l.Name, k.levels, name, len(found), err, f.rejects)
				}
				check(t, found[0], k, mem)
			}
		}
	}
}

// TestFindWithout takes away what there are substitutes for.
func TestFindWithout(t *testing.T) {
	for name, change := range map[string]func(*kernelImage){
		"nothing":                    func(*kernelImage) {},
		"a trampoline":               func(k *kernelImage) { k.trampoline = false },
		"kallsyms in vmcoreinfo":     func(k *kernelImage) { k.trampoline, k.noInfoSyms = false, true },
		"variables in kallsyms":      func(k *kernelImage) { k.noVars = true },
		"variables or a name there":  func(k *kernelImage) { k.noVars, k.noInfoSyms = true, true },
		"place-relative without all": func(k *kernelImage) { k.noVars, k.layout = true, symbolstest.Layouts[7] },
	} {
		t.Run(name, func(t *testing.T) {
			k := defaultKernel()
			change(k)
			m := guest(k)
			g, err := find(viewed{m})
			if err != nil {
				t.Fatal(err)
			}
			check(t, g, k, viewed{m})
		})
	}
}

func TestFindWithoutVMCoreInfo(t *testing.T) {
	for _, trampoline := range []bool{true, false} {
		k := defaultKernel()
		k.trampoline = trampoline
		m := guest(k)
		clear(m[k.info:][:2*vmi.PageSize])
		g, err := find(viewed{m})
		if err != nil {
			t.Fatal(err)
		}
		var missing *MissingKeyError
		if _, err := g.VMCoreInfo.Size("page"); !errors.As(err, &missing) {
			t.Errorf("error %v", err)
		}
		g.VMCoreInfo = ParseVMCoreInfo([]byte("OSRELEASE=" + k.release + "\n"))
		check(t, g, k, viewed{m})
	}
}

// TestFindContradicting damages what is needed: better no kernel than a wrong one.
func TestFindContradicting(t *testing.T) {
	for name, damage := range map[string]func(*kernelImage, ram){
		"phys_base":        func(k *kernelImage, m ram) { m[k.phys+atPhysBase+2] ^= 0x40 },
		"banner":           func(k *kernelImage, m ram) { m[k.phys+atBanner+3] ^= 1 },
		"version variable": func(k *kernelImage, m ram) { m[k.phys+atUTS+131] ^= 1 },
		"page tables":      func(k *kernelImage, m ram) { clear(m[k.phys+atTables:][:0x3000]) },
		"top table":        func(k *kernelImage, m ram) { clear(m[k.phys+atRoot:][:0x1000]) },
		"symbols":          func(k *kernelImage, m ram) { clear(m[k.phys+atKallsyms:][:0x3000]) },
		"mapping": func(k *kernelImage, m ram) {
			m[k.phys+atTables+0x2000+(k.text>>21&511)*8+2] ^= 0x20
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := defaultKernel()
			m := guest(k)
			damage(k, m)
			g, err := find(viewed{m})
			if !errors.Is(err, ErrCorrupt) || strings.Contains(err.Error(), "\n") {
				t.Errorf("found %+v, error %v, want ErrCorrupt", g, err)
			}
		})
	}
}

func TestFindNone(t *testing.T) {
	m := make(ram, 16*mib)
	want := "no Linux kernel found in 16 MiB of guest memory"
	if _, err := find(viewed{m}); !errors.Is(err, ErrNoKernel) || err.Error() != want {
		t.Errorf("zeros: error %v, want %s", err, want)
	}
	if _, err := find(m[:0]); !errors.Is(err, ErrNoKernel) {
		t.Errorf("nothing: error %v", err)
	}
	if _, err := find(guest()); !errors.Is(err, ErrNoKernel) {
		t.Errorf("noise: error %v", err)
	}
	for i := 0; i < len(m); i += 16 {
		copy(m[i:], "0\x001\x002\x003\x004\x005\x006\x007\x00")
	}
	if _, err := find(viewed{m}); !errors.Is(err, ErrNoKernel) {
		t.Errorf("digits: error %v", err)
	}
	for i := 0; i < len(m); i += vmi.PageSize {
		copy(m[i:], fmt.Sprintf("OSRELEASE=%d\nKERNELOFFSET=0\nSYMBOL(_stext)=ffffffff81000000\nSYMBOL(init_top_pgt)=ffffffff82000000\nNUMBER(phys_base)=0\n\x00", i))
	}
	begin := time.Now()
	if _, err := find(viewed{m}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("many vmcoreinfos: error %v", err)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("many vmcoreinfos: took %v", d)
	}
}

// two returns a kernel that is gone and the one that runs after it.
func two() (old, now *kernelImage) {
	old, now = defaultKernel(), defaultKernel()
	old.text, old.phys, old.info, old.clock, old.trampoline = textBase, 2*mib, 14*mib+64<<10, 1_600_000_000, false
	return old, now
}

func TestFindAfterReboot(t *testing.T) {
	for _, trampoline := range []bool{true, false} {
		old, now := two()
		now.trampoline = trampoline
		if trampoline {
			now.clock = 0 // not looked at
		}
		m := guest(old, now)
		g, err := find(viewed{m})
		if err != nil {
			t.Fatal(err)
		}
		check(t, g, now, viewed{m})
	}
}

// withCPUs is memory of a live guest.
type withCPUs struct {
	viewed
	cr3 []uint64
}

func (m withCPUs) CPUs(context.Context) ([]vmi.CPU, error) {
	var c []vmi.CPU
	for i, r := range m.cr3 {
		c = append(c, vmi.CPU{ID: i, CR3: r})
	}
	return c, nil
}

func TestFindByCR3(t *testing.T) {
	old, now := two()
	now.trampoline = false
	m := guest(old, now)
	// A process's table: only its upper half is the kernel's. Its copy for user
	// mode is one page behind.
	process := uint64(14*mib + 128<<10)
	copy(m[process+511*8:], m[old.phys+atRoot+511*8:][:8])
	clear(m[process+vmi.PageSize:][:vmi.PageSize])
	g, err := find(withCPUs{viewed{m}, []uint64{process + vmi.PageSize | 5, 0}})
	if err != nil {
		t.Fatal(err)
	}
	check(t, g, old, viewed{m})

	g, err = find(withCPUs{viewed{m}, []uint64{process, now.phys + atRoot}})
	if err != nil { // the processors contradict each other: the clock decides
		t.Fatal(err)
	}
	check(t, g, now, viewed{m})
}

func TestFindAmbiguous(t *testing.T) {
	old, now := two()
	now.trampoline = false
	old.clock = now.clock
	if g, err := find(viewed{guest(old, now)}); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("found %+v, error %v", g, err)
	}
}

func TestSystemMap(t *testing.T) {
	k := defaultKernel()
	for _, trampoline := range []bool{true, false} {
		k.trampoline = trampoline
		m := guest(k)
		clear(m[k.phys+atKallsyms:][:0x8000])
		g, err := Find(t.Context(), viewed{m}, &Options{SystemMap: strings.NewReader(k.sysmap)})
		if err != nil {
			t.Fatal(err)
		}
		check(t, g, k, viewed{m})
		other := strings.Replace(k.sysmap, "ffffffff81200200 D linux_banner", "ffffffff81200240 D linux_banner", 1)
		if _, err := Find(t.Context(), viewed{m}, &Options{SystemMap: strings.NewReader(other)}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("wrong System.map: error %v", err)
		}
	}
}

// withNote is a dump that brings VMCOREINFO along, and has holes.
type withNote struct {
	ram
	note  []byte
	holes []vmi.Range
}

func (m withNote) VMCoreInfo() []byte { return m.note }

func (m withNote) ReadPhys(p []byte, a vmi.Phys) (int, error) {
	for _, h := range m.holes {
		if a < h.End && a+vmi.Phys(len(p)) > h.Start {
			n := 0
			if a < h.Start {
				n, _ = m.ram.ReadPhys(p[:h.Start-a], a)
			}
			return n, &vmi.FaultError{Addr: max(a, h.Start), Len: len(p) - n}
		}
	}
	return m.ram.ReadPhys(p, a)
}

func TestFindInDump(t *testing.T) {
	k := defaultKernel()
	m := guest(k)
	note := bytes.Clone(m[k.info:][:vmi.PageSize])
	clear(m[k.info:][:2*vmi.PageSize])
	holes := []vmi.Range{{Start: 0, End: mib}, {Start: 3 * mib, End: 3*mib + 1}, {Start: 5 * mib, End: 6 * mib}}
	g, err := find(withNote{m, note, holes})
	if err != nil {
		t.Fatal(err)
	}
	check(t, g, k, m)

	// Without the note, with its page behind the holes.
	copy(m[k.info:], note)
	if g, err = find(withNote{m, nil, holes}); err != nil {
		t.Fatal(err)
	}
	check(t, g, k, m)
}

func TestFindCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Find(ctx, viewed{guest(defaultKernel())}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// TestARM64Refused has VMCOREINFO of arm64 kernels that are not there, or that this
// package does not read. Real ones are in TestGuest.
func TestARM64Refused(t *testing.T) {
	const text = "OSRELEASE=6.1.0-1-arm64\nPAGESIZE=4096\nKERNELOFFSET=0\nSYMBOL(_stext)=ffff800008010000\n" +
		"SYMBOL(swapper_pg_dir)=ffff800008180000\nNUMBER(VA_BITS)=48\nNUMBER(TCR_EL1_T1SZ)=0x10\n" +
		"NUMBER(PHYS_OFFSET)=0x0\nNUMBER(kimage_voffset)=0xffff800008000000\n"
	for _, tt := range []struct{ old, now, want string }{
		{"", "", "page tables at 0x180000"},
		{"NUMBER(PHYS_OFFSET)=0x0\n", "", "no NUMBER(PHYS_OFFSET)"},
		{"NUMBER(VA_BITS)=48\n", "", "no NUMBER(VA_BITS)"},
		{"SYMBOL(_stext)=ffff800008010000\n", "", "no SYMBOL(_stext)"},
		{"PAGESIZE=4096", "PAGESIZE=16384", "pages have 16384 bytes"},
		{"T1SZ)=0x10", "T1SZ)=0x11", "47 bits of virtual address"},
		{"VA_BITS)=48", "VA_BITS)=47", "VA_BITS is 47, but the processor translates 48"},
		{"stext)=ffff800008010000", "stext)=ffff800008020000", "not on a boundary"},
		{"swapper_pg_dir)=ffff80", "swapper_pg_dir)=ffff81", "not in the kernel image"},
	} {
		m := make(ram, 4*mib)
		copy(m[mib:], strings.Replace(text, tt.old, tt.now, 1)+"\x00")
		if _, err := find(m); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q for %q: error %v", tt.now, tt.old, err)
		}
	}
}

// FuzzFind damages a guest. Whatever is found must be consistent.
func FuzzFind(f *testing.F) {
	k := defaultKernel()
	small := guest(k)
	f.Add(uint64(1), uint16(3), true)
	f.Add(uint64(2), uint16(300), false)
	f.Fuzz(func(t *testing.T, seed uint64, flips uint16, trampoline bool) {
		m := slices.Clone(small)
		r := rand.New(rand.NewPCG(seed, 0))
		if !trampoline {
			clear(m[:mib])
		}
		hot := []uint64{k.phys + atKallsyms, k.phys + atRoot, k.phys + atTables, k.phys + atPhysBase, k.phys + atBTF, k.info, 0x9c000 + 511*8}
		for range flips % 64 {
			at := hot[r.IntN(len(hot))] + r.Uint64N(1<<r.IntN(15))
			m[at] = byte(r.Uint32())
		}
		g, err := find(viewed{m})
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNoKernel) && !errors.Is(err, ErrAmbiguous) {
				t.Fatal(err)
			}
			return
		}
		if _, _, err := g.Tables(viewed{m}).Translate(g.VirtBase); err != nil || !strings.HasPrefix(g.Banner, "Linux version "+g.Release+" ") {
			t.Fatalf("%+v, %v", g, err)
		}
	})
}

func BenchmarkFind(b *testing.B) {
	k := defaultKernel()
	k.trampoline = false
	m := viewed{guest(k)}
	for b.Loop() {
		if _, err := find(m); err != nil {
			b.Fatal(err)
		}
	}
}
