// Package locate finds a Linux kernel in the memory of a virtual machine, with
// nothing known about it: its version, where it was loaded, how far its addresses
// were randomised, its page tables, its symbols and its types.
//
// There is no header to read. Three traces lead to the kernel, tried in this order:
// the page table below 1 MiB with which it starts further processors, which takes
// the same time whatever the size of memory; the text it leaves for crash dumps
// (VMCOREINFO), somewhere in memory; its symbol table, known by its content.
//
// Memory also holds traces that are wrong: a kernel that ran before a reboot, a
// decompressed copy, a file in the page cache. So nothing is believed that is not
// found twice: symbols must be where the page tables map them, the variable
// phys_base must say what was computed, the version must be the same in the banner,
// in a variable and in VMCOREINFO. [Guest.Found] records each step.
//
// Kernels are x86-64 or arm64; which, they say themselves: VMCOREINFO has other keys.
// What differs is how [Find] comes from it to [Guest.Tables] and [Guest.ImagePhys]. An
// arm64 kernel is found by VMCOREINFO only.
package locate

import (
	"context"
	"io"
	"log/slog"

	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/kernel/symbols"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// Layout of the x86-64 kernel image, Documentation/arch/x86/x86_64/mm.rst.
const (
	startKernelMap = 0xffff_ffff_8000_0000 // __START_KERNEL_map
	imageSpace     = 1 << 30               // KERNEL_IMAGE_SIZE with KASLR
	textBase       = 0xffff_ffff_8100_0000 // _text without KASLR
	textAlign      = 2 << 20               // CONFIG_PHYSICAL_ALIGN
)

// Guest is a kernel found in guest memory. Its fields are not to be modified.
type Guest struct {
	// Release is what uname -r prints; Banner the first line of the kernel log.
	Release, Banner string

	Arch        paging.Arch
	VirtBase    uint64 // virtual address of _text
	KASLROffset uint64 // distance of _text from where it was linked; 0 with nokaslr
	PhysBase    int64  // x86-64's phys_base: see ImagePhys
	ARM64       ARM64  // arm64's mappings

	Root    vmi.Phys // init_top_pgt or swapper_pg_dir, the kernel's own top-level page table
	Levels  int      // 4 or 5; 3 on an arm64 with 39 bits of virtual address
	EncMask uint64   // sme_mask, 0 in a guest whose memory is not encrypted

	Symbols    *symbols.Table
	VMCoreInfo VMCoreInfo // empty if it is damaged or missing

	// BTF is the type description of vmlinux, nil if the kernel has none
	// (CONFIG_DEBUG_INFO_BTF). It may be guest memory itself: valid until the
	// Memory is closed, and a hostile guest can change it under its reader.
	BTF []byte

	// Found says how each thing was found, in order.
	Found []Step
}

// Step is one thing that Find found: What it is, How it was found, and the Check
// by which it was confirmed.
type Step struct{ What, How, Check string }

// Options changes how Find works. The zero value and nil are right for nearly all.
type Options struct {
	// SystemMap replaces the symbol table in guest memory, for a kernel built
	// without CONFIG_KALLSYMS. Its addresses are those of the file; it must
	// belong to the very kernel that runs, which is checked.
	SystemMap io.Reader

	// Symbols is the same, read already: of a vmlinux, say. It has precedence.
	Symbols *symbols.Table

	Logger *slog.Logger // nil: no log
}

func (o *Options) log() *slog.Logger {
	if o == nil || o.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Logger
}

// VMCoreInfoer is a Memory that was given VMCOREINFO from outside the guest's RAM:
// the note of an ELF or kdump file.
type VMCoreInfoer interface {
	// VMCoreInfo returns the text, nil if there is none.
	VMCoreInfo() []byte
}

// Sparse is a Memory that knows which of its bytes were never written.
type Sparse interface {
	// Data returns the ranges outside of which all memory reads as zeros: sorted,
	// disjoint, within Ranges.
	Data() []vmi.Range
}

// Tables returns the kernel's own page tables: they map the kernel image, the
// direct map, vmalloc, vmemmap and modules, and no process.
func (g *Guest) Tables(mem vmi.Memory) paging.Tables {
	t := paging.Tables{Mem: mem, Root: g.Root, Levels: g.Levels, EncMask: g.EncMask}
	if g.Arch == paging.ARM64 {
		t.Format, t.Upper, t.PhysBits = g.ARM64.Format, true, g.ARM64.PhysBits
		t.LPA2 = g.Levels == 5 // 52 bits with pages of 4 KiB take LPA2
	}
	return t
}

// ImagePhys returns the guest-physical address behind a virtual address of the
// kernel image, without a page walk: va - 0xffffffff80000000 + phys_base, or on arm64
// va - kimage_voffset. ok is false outside the 1 GiB that the image may lie in.
func (g *Guest) ImagePhys(va uint64) (pa vmi.Phys, ok bool) {
	if g.Arch == paging.ARM64 {
		return vmi.Phys(va - g.ARM64.ImageOffset), va >= g.VirtBase && va-g.VirtBase < imageSpace
	}
	if va < startKernelMap || va-startKernelMap >= imageSpace {
		return 0, false
	}
	return vmi.Phys(va - startKernelMap + uint64(g.PhysBase)), true
}

func (g *Guest) step(what, how, check string) {
	g.Found = append(g.Found, Step{What: what, How: how, Check: check})
}

// Find looks for the Linux kernel in mem. It may have to read a few bytes of every
// page, or everything. mem's abilities VMCoreInfoer, Sparse, vmi.Viewer and vmi.CPUs are
// used where it has them.
//
// The error wraps ErrNoKernel if there is no trace of one, ErrCorrupt if there are
// traces that contradict each other, ErrAmbiguous if there are several kernels, or is
// ctx's.
func Find(ctx context.Context, mem vmi.Memory, o *Options) (*Guest, error) {
	if o == nil {
		o = &Options{}
	}
	f := &finder{ctx: ctx, mem: mem, o: o, log: o.log()}
	f.viewer, _ = mem.(vmi.Viewer)
	return f.find()
}
