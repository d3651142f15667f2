package locate

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/kernel/symbols"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// Bounds on traces that memory may be full of: how many are looked at, and how many
// whose page tables fit are looked into.
const (
	maxCandidates = 64
	maxMapped     = 8
)

// finder is the state of one Find.
type finder struct {
	ctx    context.Context
	mem    vmi.Memory
	viewer vmi.Viewer
	o      *Options
	log    *slog.Logger

	symfile *symbols.Table // given by the user, at the addresses of its file

	nmapped int // candidates whose page tables fit
	mu      sync.Mutex
	rejects []error
}

var errTooMany = errors.New("too many kernels to look into")

// candidate is one VMCOREINFO text and the places it stands at.
type candidate struct {
	info  VMCoreInfo
	where []string
}

func (f *finder) find() (*Guest, error) {
	if err := f.readSystemMap(); err != nil {
		return nil, err
	}
	var kernels []*Guest
	for _, rung := range []func() ([]*Guest, error){f.byTrampoline, f.byRodata, f.byVMCoreInfo, f.byContent} {
		var err error
		if kernels, err = rung(); err != nil {
			return nil, err
		}
		if len(kernels) > 0 {
			break
		}
	}
	switch {
	case len(kernels) == 1:
		return kernels[0], nil
	case len(kernels) > 1:
		return f.running(kernels)
	case len(f.rejects) > 0:
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, f.rejects[0])
	}
	return nil, noKernel(f.mem)
}

// same says whether two finds are one kernel.
func (g *Guest) same(o *Guest) bool {
	return g.PhysBase == o.PhysBase && g.ARM64 == o.ARM64 && g.VirtBase == o.VirtBase && g.Root == o.Root
}

func (f *finder) reject(who string, err error) {
	f.log.Debug("not a kernel", "candidate", who, "reason", err)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rejects = append(f.rejects, rejected{who, err})
}

// byVMCoreInfo finds the kernels that left VMCOREINFO anywhere in memory.
func (f *finder) byVMCoreInfo() ([]*Guest, error) {
	cands, err := f.candidates()
	if err != nil {
		return nil, err
	}
	var kernels []*Guest
	for _, c := range cands {
		if err := f.ctx.Err(); err != nil {
			return nil, err
		}
		g, err := f.fromInfo(c)
		if err != nil {
			f.reject("vmcoreinfo "+c.where[0], err)
		} else if !slices.ContainsFunc(kernels, g.same) {
			kernels = append(kernels, g)
		}
	}
	return kernels, nil
}

// candidates returns the different VMCOREINFO texts in memory, the one given from
// outside first.
func (f *finder) candidates() ([]candidate, error) {
	var all []candidate
	add := func(text []byte, where string) {
		v := ParseVMCoreInfo(text)
		if _, err := v.KernelOffset(); err != nil {
			return
		}
		for i := range all {
			if bytes.Equal(all[i].info.raw, v.raw) {
				all[i].where = append(all[i].where, where)
				return
			}
		}
		if len(all) < maxCandidates {
			all = append(all, candidate{info: v, where: []string{where}})
		}
	}
	if m, ok := f.mem.(VMCoreInfoer); ok {
		if text := m.VMCoreInfo(); len(text) > 0 {
			add(text, "of the dump file")
		}
	}
	hits, err := scanInfo(f.ctx, f.mem, f.viewer)
	if err != nil {
		return nil, err
	}
	raw := space{mem: f.mem, viewer: f.viewer}
	for _, h := range hits {
		n := maxInfo
		if h%vmi.PageSize == 24 {
			// An ELF note: its header has the length of the text.
			if b, err := raw.read(uint64(h)-24, 24); err == nil {
				n = int(min(binary.LittleEndian.Uint32(b[4:]), maxInfo))
			}
		}
		if text, err := raw.upTo(uint64(h), n); err == nil {
			add(text, fmt.Sprintf("at %#x", uint64(h)))
		}
	}
	return all, nil
}

// fromInfo follows one VMCOREINFO to a kernel and checks that all of it is there.
func (f *finder) fromInfo(c candidate) (*Guest, error) {
	v := c.info
	g := &Guest{VMCoreInfo: v, Levels: 4}
	var err error
	if g.Release, err = v.String("OSRELEASE"); err != nil {
		return nil, err
	}
	if g.KASLROffset, err = v.KernelOffset(); err != nil {
		return nil, err
	}
	fromArch, says := g.fromInfoX86, "phys_base"
	if _, err := v.Number("kimage_voffset"); err == nil {
		fromArch, says = g.fromInfoARM64, "kimage_voffset"
	}
	if err := fromArch(); err != nil {
		return nil, err
	}
	stext, err := v.Symbol("_stext")
	if err != nil {
		return nil, err
	}
	root, err := v.Symbol("init_top_pgt")
	if err != nil {
		if root, err = v.Symbol("swapper_pg_dir"); err != nil {
			return nil, err
		}
	}
	where := c.where[0]
	if n := len(c.where); n > 1 {
		where += fmt.Sprintf(" and %d more", n-1)
	}
	img := f.image(g)
	if err := f.mapped(g, img, stext, root); err != nil {
		return nil, err
	}
	if f.nmapped++; f.nmapped > 2*maxMapped {
		return nil, errTooMany
	}
	g.step("vmcoreinfo", where, fmt.Sprintf("page tables at %#x map _stext %#x to %#x as %s says",
		uint64(g.Root), stext, uint64(img.phys(stext)), says))
	if err := f.symbols(g, img, stext, root); err != nil {
		return nil, err
	}
	return g, f.finish(g, img)
}

// fromInfoX86 is the part of fromInfo that belongs to an x86-64 kernel.
func (g *Guest) fromInfoX86() (err error) {
	v := g.VMCoreInfo
	if g.PhysBase, err = v.Number("phys_base"); err != nil {
		return err
	}
	if l5, err := v.Number("pgtable_l5_enabled"); err == nil && l5 == 1 {
		g.Levels = 5
	}
	if mask, err := v.Number("sme_mask"); err == nil {
		g.EncMask = uint64(mask)
	}
	return nil
}

// image returns the mapping of g's kernel image.
func (f *finder) image(g *Guest) space {
	delta := startKernelMap - uint64(g.PhysBase)
	if g.Arch == paging.ARM64 {
		delta = g.ARM64.ImageOffset
	}
	return space{mem: f.mem, viewer: f.viewer, delta: delta}
}

// mapped sets g.Root and checks that its page tables have _stext where the image's
// place puts it: two sources that know nothing of each other.
func (f *finder) mapped(g *Guest, img space, stext, root uint64) error {
	want, ok := g.ImagePhys(stext)
	if !ok {
		return fmt.Errorf("_stext %#x is no address of a kernel image", stext)
	}
	if g.Root, ok = g.ImagePhys(root); !ok {
		return fmt.Errorf("page tables %#x are not in the kernel image", root)
	}
	if _, ok := img.ram(stext); !ok {
		return fmt.Errorf("_stext would be at %#x, which is not RAM", uint64(want))
	}
	got, _, err := g.Tables(f.mem).Translate(stext)
	if err != nil {
		return fmt.Errorf("its page tables at %#x: %w", uint64(g.Root), err)
	}
	if got != want {
		return fmt.Errorf("its page tables map _stext to %#x, not %#x", uint64(got), uint64(want))
	}
	return nil
}
