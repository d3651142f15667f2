package kernel

import (
	"errors"
	"fmt"
	"iter"

	"github.com/ovmigrate/ovmigrate/kernel/types"
)

// ErrNoModule: no module of that name is loaded.
var ErrNoModule = errors.New("no such module")

// Module is a struct module: code that was loaded into the kernel.
type Module struct {
	k    *Kernel
	Addr Addr // of the struct module
	Name string
	moduleFields
	Memory []ModuleMemory // where its code and data lie, code first
}

type moduleFields struct {
	State  ModuleState `k:"state"`
	Taints uint64      `k:"taints"` // a bit each: see TaintLetters
	Refs   int32       `k:"refcnt"` // plus one while it is not being removed: see RefCount

	RawName      [56]byte `k:"name"`
	Init         Addr     `k:"init"`
	Exit         Addr     `k:"exit"`
	VersionPtr   Addr     `k:"version"`
	SrcVersion   Addr     `k:"srcversion"`
	Sources      Addr     `k:"&source_list"`
	Kallsyms     Addr     `k:"kallsyms"`
	Syms         Addr     `k:"syms"`
	NumSyms      uint32   `k:"num_syms"`
	Notes        Addr     `k:"notes_attrs,opt"`
	Mem          Addr     `k:"&mem,opt"`         // an array since 6.4
	CoreLayout   Addr     `k:"&core_layout,opt"` // before
	InitLayout   Addr     `k:"&init_layout,opt"`
	DataLayout   Addr     `k:"&data_layout,opt"` // 6.0 to 6.3, where data has its own memory
	KernelParams Addr     `k:"kp"`
	NumParams    uint32   `k:"num_kp"`
}

// ModuleMemory is one stretch of a module's memory.
type ModuleMemory struct {
	Base Addr   `k:"base"`
	Size uint32 `k:"size"` // bytes
}

type moduleUse struct {
	Source Addr `k:"source"`
}

var (
	moduleLayout       = LayoutOf[moduleFields]("module")
	moduleMemoryLayout = LayoutOf[ModuleMemory]("module_memory|module_layout")
	moduleUseLayout    = LayoutOf[moduleUse]("module_use")
)

// ModuleState is the enum module_state of include/linux/module.h.
type ModuleState uint32

// States of a module.
const (
	ModuleLive     ModuleState = iota // in use
	ModuleComing                      // being initialised
	ModuleGoing                       // being removed
	ModuleUnformed                    // not yet loaded; the kernel itself hides these
)

// String returns the state as /proc/modules has it.
func (s ModuleState) String() string {
	switch s {
	case ModuleLive:
		return "Live"
	case ModuleComing:
		return "Loading"
	case ModuleGoing:
		return "Unloading"
	}
	return "Unformed"
}

// Modules yields the loaded modules in the order of /proc/modules, the last loaded
// first. Modules that are still being set up (ModuleUnformed) are left out, as the
// kernel does. A module that cannot be read does not end the walk. Source:
// kernel/module/procfs.c:m_show (kernel/module.c before 5.19).
func (k *Kernel) Modules() iter.Seq2[*Module, error] {
	return func(yield func(*Module, error) bool) {
		head, err := k.moduleList()
		if err != nil {
			yield(nil, err)
			return
		}
		off, err := k.offsetOf("module", "list")
		if err != nil {
			yield(nil, err)
			return
		}
		for node, err := range k.List(head) {
			if err != nil {
				yield(nil, err)
				return
			}
			m, err := k.ModuleAt(node - Addr(off))
			if err == nil && m.State == ModuleUnformed {
				continue
			}
			if !yield(m, err) {
				return
			}
		}
	}
}

// Module returns the loaded module called name. Errors: ErrNoModule, *PathError.
func (k *Kernel) Module(name string) (*Module, error) {
	for m, err := range k.Modules() {
		if err != nil {
			return nil, err
		}
		if m.Name == name {
			return m, nil
		}
	}
	return nil, fmt.Errorf("%w: %s", ErrNoModule, name)
}

// ModuleAt reads the struct module at a.
func (k *Kernel) ModuleAt(a Addr) (*Module, error) {
	m := &Module{k: k, Addr: a}
	if err := moduleLayout.LoadInto(k, a, &m.moduleFields); err != nil {
		return nil, err
	}
	m.Name = cstring(m.RawName[:])
	if m.Name == "" || m.State > ModuleUnformed {
		return nil, corrupt(a, "module", "name %q, state %d", m.Name, uint32(m.State))
	}
	return m, m.readMemory()
}

// readMemory fills m.Memory. Source: include/linux/module.h:enum mod_mem_type.
func (m *Module) readMemory() error {
	places := []Addr{m.CoreLayout, m.DataLayout, m.InitLayout}
	if m.Mem != 0 {
		n, err := m.k.arrayLen("module", "mem")
		if err != nil {
			return err
		}
		size, err := moduleMemoryLayout.Size(m.k)
		if err != nil {
			return err
		}
		places = places[:0]
		for i := range min(n, 32) {
			places = append(places, m.Mem.Add(i*size))
		}
	}
	for _, a := range places {
		if a == 0 {
			continue
		}
		p, err := moduleMemoryLayout.Load(m.k, a)
		if err != nil {
			return err
		}
		if p.Size == 0 {
			continue
		}
		if !p.Base.IsKernel() || p.Size > maxModule {
			return corrupt(a, "module("+m.Name+").mem", "%d bytes at %s", p.Size, p.Base)
		}
		m.Memory = append(m.Memory, p)
	}
	return nil
}

// maxModule is more than a module can have: all of them share 1 GiB to 1.5 GiB.
const maxModule = 1536 << 20

// arrayLen returns the number of elements of a member that is an array.
func (k *Kernel) arrayLen(cname, member string) (int, error) {
	c, err := k.types.Struct(cname)
	if err != nil {
		return 0, err
	}
	f, err := c.Lookup(member)
	if err != nil {
		return 0, err
	}
	u, err := f.Type.Underlying()
	if err != nil {
		return 0, err
	}
	if u.Kind != types.Array {
		return 0, fmt.Errorf("%w: %s.%s is no array", ErrNoType, cname, member)
	}
	return u.Len, nil
}

// Base returns where the module's code begins, the last column of /proc/modules; 0
// if it has no memory.
func (m *Module) Base() Addr {
	if len(m.Memory) == 0 {
		return 0
	}
	return m.Memory[0].Base
}

// Size returns the bytes of memory that the module takes, as /proc/modules counts.
func (m *Module) Size() uint64 {
	var n uint64
	for _, p := range m.Memory {
		n += uint64(p.Size)
	}
	return n
}

// contains says whether a lies in p.
func (p ModuleMemory) contains(a Addr) bool { return a >= p.Base && a-p.Base < Addr(p.Size) }

// Contains says whether a lies in the module's memory.
func (m *Module) Contains(a Addr) bool {
	_, ok := m.part(a)
	return ok
}

// part returns the stretch of the module's memory that a lies in.
func (m *Module) part(a Addr) (ModuleMemory, bool) {
	for _, p := range m.Memory {
		if p.contains(a) {
			return p, true
		}
	}
	return ModuleMemory{}, false
}

// RefCount returns how often the module is in use, by modules and by others; -1
// while it is being removed. Source: kernel/module/main.c:module_refcount.
func (m *Module) RefCount() int { return int(m.Refs) - 1 }

// Permanent says whether the module cannot be removed because it has no function
// for that.
func (m *Module) Permanent() bool { return m.Init != 0 && m.Exit == 0 }

// UsedBy returns the names of the modules that use m's symbols, in the order of
// /proc/modules. Source: kernel/module/procfs.c:print_unload_info.
func (m *Module) UsedBy() ([]string, error) {
	off, err := m.k.offsetOf("module_use", "source_list")
	if err != nil {
		return nil, err
	}
	nameOff, err := m.k.offsetOf("module", "name")
	if err != nil {
		return nil, err
	}
	names := []string{}
	for node, err := range m.k.List(m.Sources) {
		if err != nil {
			return names, err
		}
		use, err := moduleUseLayout.Load(m.k, node-Addr(off))
		if err != nil {
			return names, err
		}
		name, err := m.k.CString(use.Source.Add(nameOff), len(m.RawName))
		if err != nil {
			return names, err
		}
		names = append(names, name)
	}
	return names, nil
}

// Version returns the MODULE_VERSION of the module and the checksum of its source,
// both "" where the module was built without.
func (m *Module) Version() (version, source string, err error) {
	get := func(a Addr) (s string) {
		if a != 0 && err == nil {
			s, err = m.k.CString(a, 128)
		}
		return s
	}
	version, source = get(m.VersionPtr), get(m.SrcVersion)
	return version, source, err
}

// taintLetters are those bits of taint that modules can cause, and their letters.
// Source: kernel/panic.c:taint_flags.
var taintLetters = []struct {
	bit    uint
	letter byte
}{
	{0, 'P'}, {1, 'F'}, {10, 'C'}, {12, 'O'}, {13, 'E'}, {15, 'K'}, {16, 'X'}, {17, 'T'}, {18, 'N'}, {19, 'J'},
}

// TaintLetters returns why the module taints the kernel, a letter a reason: P
// proprietary, F forced, C staging, O out of tree, E unsigned, K live patch, X
// distribution's own, T randomised structures, N test, J fwctl. Source:
// kernel/module/main.c:module_flags_taint.
func (m *Module) TaintLetters() string {
	var s []byte
	for _, t := range taintLetters {
		if m.Taints>>t.bit&1 != 0 {
			s = append(s, t.letter)
		}
	}
	return string(s)
}
