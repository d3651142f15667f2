package kernel

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/ovmigrate/ovmigrate/kernel/symbols"
)

type modKallsyms struct {
	Symtab    Addr   `k:"symtab"`
	NumSymtab uint32 `k:"num_symtab"`
	Strtab    Addr   `k:"strtab"`
	Typetab   Addr   `k:"typetab,opt"` // since 5.2
}

type kernelSymbol struct {
	Value int32 `k:"value_offset"` // from the place of the member itself
	Name  int32 `k:"name_offset"`
}

var (
	modKallsymsLayout  = LayoutOf[modKallsyms]("mod_kallsyms")
	kernelSymbolLayout = LayoutOf[kernelSymbol]("kernel_symbol")
)

const (
	maxModuleSyms = 1 << 20  // the largest modules, GPU drivers, have 100,000
	maxExported   = 1 << 15  // symbols; each name takes memory of its own
	maxStrtab     = 64 << 20 // names of one module
	maxSymName    = 512      // KSYM_NAME_LEN
	elfSymSize    = 24       // Elf64_Sym
)

// Symbols returns the module's symbols as /proc/kallsyms lists them: all that it
// was linked from, with capital letters for those that it exports to any module. They
// are read once and kept while the module stays as it is. Source:
// kernel/module/kallsyms.c:module_get_kallsym.
func (m *Module) Symbols() (*symbols.Table, error) {
	if m.Kallsyms == 0 {
		return symbols.New(nil), nil
	}
	tab, err := modKallsymsLayout.Load(m.k, m.Kallsyms)
	if err != nil {
		return nil, err
	}
	key := moduleKey{m.Addr, tab}
	if v, ok := m.k.lazy.moduleSyms.Load(key); ok {
		return v.(*symbols.Table), nil
	}
	list, err := m.readSymbols(tab)
	if err != nil {
		return nil, err
	}
	t := symbols.New(list)
	// What earlier states of the module left here is not worth keeping.
	m.k.lazy.moduleSyms.Range(func(k, _ any) bool {
		if k.(moduleKey).module == m.Addr {
			m.k.lazy.moduleSyms.Delete(k)
		}
		return true
	})
	m.k.lazy.moduleSyms.Store(key, t)
	return t, nil
}

// moduleKey names the symbols of a module as long as they stay where they are.
type moduleKey struct {
	module Addr
	tab    modKallsyms
}

func (m *Module) readSymbols(tab modKallsyms) ([]symbols.Symbol, error) {
	path := "module(" + m.Name + ").kallsyms"
	if tab.NumSymtab > maxModuleSyms {
		return nil, corrupt(m.Kallsyms, path, "%d symbols", tab.NumSymtab)
	}
	n := int(tab.NumSymtab)
	raw, err := m.k.readGrowing(tab.Symtab, n*elfSymSize)
	if err != nil {
		return nil, err
	}
	var letters []byte
	if tab.Typetab != 0 {
		if letters, err = m.k.readGrowing(tab.Typetab, n); err != nil {
			return nil, err
		}
	}
	names, err := m.readNames(raw, tab.Strtab)
	if err != nil {
		return nil, err
	}
	exported, err := m.exported()
	if err != nil {
		return nil, err
	}
	list := make([]symbols.Symbol, 0, n)
	for i := range n {
		sym := raw[i*elfSymSize:][:elfSymSize]
		s := symbols.Symbol{
			Name: cstring(names[binary.LittleEndian.Uint32(sym):]),
			Addr: binary.LittleEndian.Uint64(sym[8:]),
			Type: '?',
		}
		if s.Name == "" {
			continue
		}
		if letters != nil {
			s.Type = letters[i]
		} else {
			s.Type = sym[4] // st_info, where old kernels keep the letter
		}
		if s.Type |= 0x20; exported[s.Addr] == s.Name {
			s.Type &^= 0x20
		}
		list = append(list, s)
	}
	return list, nil
}

// readNames returns the module's string table as far as the symbols reach into it,
// and a zero byte behind it.
func (m *Module) readNames(syms []byte, strtab Addr) ([]byte, error) {
	var last uint32
	for i := 0; i < len(syms); i += elfSymSize {
		last = max(last, binary.LittleEndian.Uint32(syms[i:]))
	}
	if last > maxStrtab {
		return nil, corrupt(strtab, "module("+m.Name+").kallsyms->strtab", "a name at byte %d", last)
	}
	names, err := m.k.readGrowing(strtab, int(last))
	if err != nil {
		return nil, err
	}
	end, err := m.k.CString(strtab.Add(int(last)), maxSymName)
	if err != nil {
		return nil, err
	}
	return append(append(names, end...), 0), nil
}

// exported returns the names of what the module exports to all modules by address:
// those that /proc/kallsyms shows as global. Source: kernel/module/kallsyms.c:is_exported.
func (m *Module) exported() (map[uint64]string, error) {
	size, err := kernelSymbolLayout.Size(m.k)
	if err != nil {
		return nil, err
	}
	value, err := m.k.offsetOf("kernel_symbol", "value_offset")
	if err != nil {
		return nil, err
	}
	name, err := m.k.offsetOf("kernel_symbol", "name_offset")
	if err != nil {
		return nil, err
	}
	out := make(map[uint64]string)
	for i := range min(int(m.NumSyms), maxExported) {
		a := m.Syms.Add(i * size)
		s, err := kernelSymbolLayout.Load(m.k, a)
		if err != nil {
			return nil, err
		}
		text, err := m.k.CString(a.Add(name+int(s.Name)), maxSymName)
		if err != nil {
			return nil, err
		}
		out[uint64(a.Add(value+int(s.Value)))] = text
	}
	return out, nil
}

// readGrowing reads n bytes, taking memory for them only as they prove to be there.
func (k *Kernel) readGrowing(a Addr, n int) ([]byte, error) {
	const step = 1 << 18
	var b []byte
	for len(b) < n {
		at := len(b)
		b = append(b, make([]byte, min(step, n-at))...)
		if _, err := k.ReadAt(b[at:], a.Add(at)); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// moduleSymbol returns the address of a symbol written as in /proc/kallsyms:
// "name [module]".
func (k *Kernel) moduleSymbol(full string) (Addr, error) {
	name, module, ok := strings.Cut(strings.TrimSuffix(full, "]"), "[")
	if !ok {
		return 0, fmt.Errorf("%w: %s", ErrNoSymbol, full)
	}
	m, err := k.Module(module)
	if err != nil {
		return 0, fmt.Errorf("%w: %s: %w", ErrNoSymbol, full, err)
	}
	t, err := m.Symbols()
	if err != nil {
		return 0, err
	}
	if a, ok := t.Lookup(strings.TrimSpace(name)); ok {
		return Addr(a), nil
	}
	return 0, fmt.Errorf("%w: %s", ErrNoSymbol, full)
}

// moduleSymbolAt is SymbolAt for addresses in modules. The name is that of
// /proc/kallsyms, "name [module]".
func (k *Kernel) moduleSymbolAt(a Addr) (name string, offset uint64, ok bool) {
	for m, err := range k.Modules() {
		if err != nil {
			continue
		}
		part, ok := m.part(a)
		if !ok {
			continue
		}
		t, err := m.Symbols()
		if err != nil {
			return "", 0, false
		}
		// Without the end the last symbol would be a place, not a stretch.
		name, offset, ok = t.Until(uint64(part.Base) + uint64(part.Size)).At(uint64(a))
		if !ok || !part.contains(a-Addr(offset)) {
			return "", 0, false
		}
		return name + " [" + m.Name + "]", offset, true
	}
	return "", 0, false
}
