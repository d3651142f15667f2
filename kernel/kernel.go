package kernel

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/ovmigrate/ovmigrate/kernel/debugfile"
	"github.com/ovmigrate/ovmigrate/kernel/locate"
	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/kernel/symbols"
	"github.com/ovmigrate/ovmigrate/kernel/types"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// Kernel is an opened guest kernel. It is safe for concurrent use and holds no
// resources of its own: closing the memory it was opened on ends its life.
type Kernel struct {
	mem    vmi.Memory
	viewer vmi.Viewer // nil if mem cannot be viewed
	guest  *locate.Guest
	types  types.Source
	extra  []*symbols.Table // of debug files
	tables paging.Tables
	linear []linear
	log    *slog.Logger

	pageOffset  Addr // start of the direct map
	vmemmap     Addr // struct page of PFN 0
	pageStruct  int  // sizeof(struct page)
	maxPhys     vmi.Phys
	perCPUStart Addr

	layouts sync.Map // *layoutKey -> *plan
	symbols sync.Map // string -> Addr; those that were asked for and exist
	lazy    lazies
	debug   []*debugfile.File
}

// Options changes how Open works. Nil is the zero value: everything is found in
// the guest's own memory.
type Options struct {
	Types  types.Source // instead of the BTF in guest memory
	Logger *slog.Logger // nil: no log

	// Debug are files of the kernel's build. Types of the first that has some are
	// used instead of the BTF in guest memory, unless Types is set; symbols where
	// the guest's memory has none of that name, or none at all; call frame information
	// where its own tables have none, and line numbers. They must stay
	// open as long as the Kernel is used.
	Debug []*debugfile.File
}

// Open finds the Linux kernel in a guest's memory and makes it readable. The
// guest may be running. Errors: locate.ErrNotLinux if there is no kernel to be
// found, ErrNoType if the kernel carries no type information and none was given,
// ErrMismatch if a debug file is of another kernel, *PathError for memory that cannot be read.
func Open(ctx context.Context, mem vmi.Memory, o *Options) (*Kernel, error) {
	if o == nil {
		o = &Options{}
	}
	k := &Kernel{mem: mem, types: o.Types, log: o.Logger}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	k.viewer, _ = mem.(vmi.Viewer)
	var err error
	k.guest, err = locate.Find(ctx, mem, &locate.Options{Logger: o.Logger})
	if t := debugSymbols(o.Debug); err != nil && ctx.Err() == nil && t != nil {
		k.guest, err = locate.Find(ctx, mem, &locate.Options{Logger: o.Logger, Symbols: t})
	}
	if err != nil {
		return nil, err
	}
	k.tables = k.guest.Tables(mem)
	if err := k.mapImage(); err != nil {
		return nil, err
	}
	if err := k.useDebug(o.Debug); err != nil {
		return nil, err
	}
	if k.types == nil {
		if k.guest.BTF == nil {
			return nil, fmt.Errorf("%w: kernel %s carries no BTF; give its debug file", ErrNoType, k.guest.Release)
		}
		if k.types, err = types.ParseBTF(k.guest.BTF); err != nil {
			return nil, err
		}
	}
	if err := k.mapBases(); err != nil {
		return nil, err
	}
	return k, k.checkInitTask()
}

// mapImage makes the kernel image readable.
func (k *Kernel) mapImage() error {
	if k.Arch() == paging.ARM64 {
		return k.mapImageARM64()
	}
	text, err := k.Symbol("_text")
	if err != nil {
		return err
	}
	end, err := k.Symbol("_end")
	if err != nil {
		return err
	}
	if end <= text || end-text > 1<<30 || text < imageBase {
		return corrupt(text, "_text", "kernel image ends at %s", end)
	}
	k.linear = []linear{{text, end, uint64(k.guest.PhysBase) - uint64(imageBase)}}
	return nil
}

// mapBases reads where KASLR put the kernel's big regions.
func (k *Kernel) mapBases() (err error) {
	if k.Arch() == paging.ARM64 {
		return k.mapBasesARM64()
	}
	for _, r := range k.mem.Ranges() {
		k.maxPhys = max(k.maxPhys, r.End)
	}
	base := func(symbol string) (Addr, error) {
		a, err := k.Symbol(symbol)
		if err != nil {
			return 0, err
		}
		return k.ReadAddr(a)
	}
	if k.pageOffset, err = base("page_offset_base"); err != nil {
		return err
	}
	if k.vmemmap, err = base("vmemmap_base"); err != nil {
		return err
	}
	if !k.pageOffset.IsKernel() || k.pageOffset%vmi.PageSize != 0 {
		return corrupt(k.pageOffset, "page_offset_base", "not a kernel address")
	}
	// The direct map is the commoner case by far.
	direct := linear{k.pageOffset, k.pageOffset + Addr(k.maxPhys), -uint64(k.pageOffset)}
	k.linear = []linear{direct, k.linear[0]}

	page, err := k.types.Struct("page")
	if err != nil {
		return err
	}
	k.pageStruct = page.Size
	k.perCPUStart, err = k.Symbol("__per_cpu_start")
	return err
}

// checkInitTask is the last proof that memory, types and symbols belong together.
func (k *Kernel) checkInitTask() error {
	a, err := k.Symbol("init_task")
	if err != nil {
		return err
	}
	t, err := k.TaskAt(a)
	if err != nil {
		return err
	}
	if t.PID != 0 || t.Comm != "swapper/0" && t.Comm != "swapper" {
		return corrupt(a, "init_task", "pid %d, comm %q", t.PID, t.Comm)
	}
	return nil
}

// Release returns the kernel's release as uname -r prints it.
func (k *Kernel) Release() string { return k.guest.Release }

// Guest returns how and where the kernel was found.
func (k *Kernel) Guest() *locate.Guest { return k.guest }

// Memory returns the guest memory that k reads.
func (k *Kernel) Memory() vmi.Memory { return k.mem }

// Types returns the description of the kernel's types.
func (k *Kernel) Types() types.Source { return k.types }

// Symbol returns the address of a kernel symbol. The error wraps ErrNoSymbol.
// For per-CPU variables it is the value to add to a CPU's offset: see PerCPU. The
// symbols of a module are named as /proc/kallsyms and oopses do: "tun_fops [tun]".
func (k *Kernel) Symbol(name string) (Addr, error) {
	// Finding a name in kallsyms takes tens of microseconds.
	if a, ok := k.symbols.Load(name); ok {
		return a.(Addr), nil
	}
	a, ok := k.guest.Symbols.Lookup(name)
	for i := 0; i < len(k.extra) && !ok; i++ {
		a, ok = k.extra[i].Lookup(name)
	}
	if !ok {
		// Not kept: modules come and go.
		return k.moduleSymbol(name)
	}
	k.symbols.Store(name, Addr(a))
	return Addr(a), nil
}

// SymbolAt returns the symbol that a lies in and the distance from its start. Those
// of modules have the module's name behind them: "tun_fops [tun]".
func (k *Kernel) SymbolAt(a Addr) (name string, offset uint64, ok bool) {
	if name, offset, ok = k.guest.Symbols.At(uint64(a)); ok {
		return name, offset, ok
	}
	return k.moduleSymbolAt(a)
}
