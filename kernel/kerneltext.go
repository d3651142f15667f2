package kernel

import (
	"encoding/binary"
)

// kernelCode knows what code there is in the kernel: its image, and modules as they
// were when one was first asked for. It is made for one trace or listing.
type kernelCode struct {
	k      *Kernel
	image  []codeRange // .text and .init.text
	sched  []codeRange // functions that a blocked task is always in
	listed bool
	mods   []*moduleText
}

type codeRange struct{ start, end Addr }

func inRanges(r []codeRange, a Addr) bool {
	for _, c := range r {
		if a >= c.start && a < c.end {
			return true
		}
	}
	return false
}

// code is needed for the addresses that kernel/extable.c:core_kernel_text and
// kernel/sched/core.c:in_sched_functions tell apart.
func (k *Kernel) code() (*kernelCode, error) {
	c := &kernelCode{k: k}
	for _, r := range []struct {
		to         *[]codeRange
		start, end string
		opt        bool
	}{
		{&c.image, "_stext", "_etext", false},
		{&c.image, "_sinittext", "_einittext", true},
		{&c.sched, "__sched_text_start", "__sched_text_end", true},
		{&c.sched, "__lock_text_start", "__lock_text_end", true},
	} {
		start, err := k.Symbol(r.start)
		if err == nil {
			var end Addr
			if end, err = k.Symbol(r.end); err == nil {
				*r.to = append(*r.to, codeRange{start, end})
			}
		}
		if err != nil && !r.opt {
			return nil, err
		}
	}
	return c, nil
}

func (c *kernelCode) inImage(a Addr) bool     { return inRanges(c.image, a) }
func (c *kernelCode) inScheduler(a Addr) bool { return inRanges(c.sched, a) }

// isText says whether a is code: of the image, of a module, or of anything else that
// is mapped executable (BPF programs, trampolines).
func (c *kernelCode) isText(a Addr) (bool, error) {
	if !a.IsKernel() {
		return false, nil
	}
	if c.inImage(a) {
		return true, nil
	}
	if m, err := c.moduleAt(a); err != nil || m != nil {
		return m != nil, err
	}
	e, err := c.k.tables.Lookup(uint64(a))
	return err == nil && e.Present() && !e.NX(), err
}

// frame names the code at a. A return address may lie behind the end of its
// function, so that the name is that of the byte before.
func (c *kernelCode) frame(a Addr, interrupted bool) (Frame, error) {
	f := Frame{Addr: a, Interrupted: interrupted}
	at := a
	if !interrupted {
		at--
	}
	if c.inImage(at) {
		s, size, ok := c.k.guest.Symbols.Span(uint64(at))
		if ok {
			f.Symbol, f.Offset, f.Size = s.Name, uint64(a)-s.Addr, size
		}
		return f, nil
	}
	m, err := c.moduleAt(at)
	if err != nil || m == nil {
		return f, err
	}
	f.Module = m.name
	name, start, size, err := m.symbol(c.k, at)
	if name != "" {
		f.Symbol, f.Offset, f.Size = name, uint64(a-start), size
	}
	return f, err
}

// moduleText is the code of a module.
type moduleText struct {
	name string
	text []codeRange
	orc  orcTable
	syms modKallsyms
}

type moduleFields struct {
	Name     [56]byte `k:"name"`
	Kallsyms Addr     `k:"kallsyms,opt"`
	// Since 6.4 memory is by kind, before that in two layouts.
	Text     Addr   `k:"mem[0].base|core_layout.base"`
	TextSize uint32 `k:"mem[0].size|core_layout.text_size"`
	Init     Addr   `k:"mem[4].base|init_layout.base"`
	InitSize uint32 `k:"mem[4].size|init_layout.text_size"`
	NumORC   uint32 `k:"arch.num_orcs,opt"`
	ORCIPs   Addr   `k:"arch.orc_unwind_ip,opt"`
	ORC      Addr   `k:"arch.orc_unwind,opt"`
}

type modKallsyms struct {
	Symtab  Addr   `k:"symtab"`
	Num     uint32 `k:"num_symtab"`
	Strtab  Addr   `k:"strtab"`
	Typetab Addr   `k:"typetab"`
}

var (
	moduleLayout      = LayoutOf[moduleFields]("module")
	modKallsymsLayout = LayoutOf[modKallsyms]("mod_kallsyms")
)

const (
	maxModules    = 1 << 14
	maxModuleSyms = 1 << 20
	maxModuleText = 1 << 30
)

// moduleAt returns the module that a is code of, nil if none.
func (c *kernelCode) moduleAt(a Addr) (*moduleText, error) {
	if !c.listed {
		if err := c.listModules(); err != nil {
			return nil, err
		}
		c.listed = true
	}
	for _, m := range c.mods {
		if inRanges(m.text, a) {
			return m, nil
		}
	}
	return nil, nil
}

func (c *kernelCode) listModules() error {
	k := c.k
	head, err := k.Symbol("modules")
	if err != nil {
		return nil //nolint:nilerr // a kernel without loadable modules
	}
	off, err := k.offsetOf("module", "list")
	if err != nil {
		return err
	}
	c.mods = nil
	for node, err := range k.List(head) {
		if err != nil {
			return err
		}
		if len(c.mods) >= maxModules {
			return &PathError{Path: "modules", Addr: head, Err: ErrLimit}
		}
		f, err := moduleLayout.Load(k, node-Addr(off))
		if err != nil {
			return err
		}
		m := &moduleText{name: cstring(f.Name[:])}
		if f.TextSize > maxModuleText || f.InitSize > maxModuleText || f.NumORC > maxORC {
			return corrupt(node, "module", "%q has %d bytes of code", m.name, f.TextSize)
		}
		m.text = []codeRange{{f.Text, f.Text.Add(int(f.TextSize))}, {f.Init, f.Init.Add(int(f.InitSize))}}
		m.orc = orcTable{ips: f.ORCIPs, entries: f.ORC, n: int(f.NumORC)}
		if f.Kallsyms != 0 {
			if m.syms, err = modKallsymsLayout.Load(k, f.Kallsyms); err != nil {
				return err
			}
		}
		c.mods = append(c.mods, m)
	}
	return nil
}

// symbol returns the function of a module that a lies in. Source:
// kernel/module/kallsyms.c:find_kallsyms_symbol.
func (m *moduleText) symbol(k *Kernel, a Addr) (name string, start Addr, size uint64, err error) {
	const symSize = 24 // Elf64_Sym
	if m.syms.Num > maxModuleSyms {
		return "", 0, 0, corrupt(m.syms.Symtab, "mod_kallsyms", "%d symbols", m.syms.Num)
	}
	end := m.text[0].end
	if m.text[1].start <= a && a < m.text[1].end {
		end = m.text[1].end
	}
	var best uint32
	buf := make([]byte, symSize)
	for i := range int(m.syms.Num) {
		b, err := k.bytesAt(m.syms.Symtab.Add(symSize*i), symSize, buf)
		if err != nil {
			return "", 0, 0, err
		}
		value := Addr(binary.LittleEndian.Uint64(b[8:]))
		nameAt, undefined := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint16(b[6:]) == 0
		switch {
		case undefined || nameAt == 0:
		case value <= a && value > start:
			if c, err := k.CString(m.syms.Strtab+Addr(nameAt), 2); err == nil && c != "" {
				start, best = value, nameAt
			}
		case value > a && value < end:
			end = value
		}
	}
	if best == 0 {
		return "", 0, 0, nil
	}
	name, err = k.CString(m.syms.Strtab+Addr(best), 512)
	return name, start, uint64(end - start), err
}
