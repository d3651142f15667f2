package kernel

// kernelCode knows what code there is in the kernel: its image, and modules as they
// were when one was first asked for. It is made for one trace or listing.
type kernelCode struct {
	k      *Kernel
	image  []codeRange // .text and .init.text
	sched  []codeRange // functions that a blocked task is always in
	thunks []codeRange // of indirect calls
	entry  []codeRange // assembly between user code or an exception and C
	listed bool
	mods   []*moduleText
	dwarf  *dwarfUnwinder // nil without a debug file
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
		{&c.thunks, "__indirect_thunk_start", "__indirect_thunk_end", true},
		{&c.entry, "__entry_text_start", "__entry_text_end", true},
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
	f.Module = m.Name
	syms, err := m.Symbols()
	if err != nil {
		return f, err
	}
	for _, r := range m.text {
		if sym, size, ok := syms.Until(uint64(r.end)).Span(uint64(at)); ok && inRanges([]codeRange{r}, at) {
			f.Symbol, f.Offset, f.Size = sym.Name, uint64(a)-sym.Addr, size
		}
	}
	return f, nil
}

// moduleText is a module with what its code takes to be unwound.
type moduleText struct {
	*Module
	text []codeRange
	orc  orcTable
}

type moduleTextFields struct {
	// Since 6.4 memory is by kind, before that in two layouts.
	Text     Addr   `k:"mem[0].base|core_layout.base"`
	TextSize uint32 `k:"mem[0].size|core_layout.text_size"`
	Init     Addr   `k:"mem[4].base|init_layout.base"`
	InitSize uint32 `k:"mem[4].size|init_layout.text_size"`
	NumORC   uint32 `k:"arch.num_orcs,opt"`
	ORCIPs   Addr   `k:"arch.orc_unwind_ip,opt"`
	ORC      Addr   `k:"arch.orc_unwind,opt"`
}

var moduleTextLayout = LayoutOf[moduleTextFields]("module")

const maxModules = 1 << 14

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
	if _, err := k.moduleList(); err != nil {
		return nil //nolint:nilerr // a kernel without loadable modules
	}
	c.mods = nil
	for m, err := range k.Modules() {
		if err != nil {
			return err
		}
		if len(c.mods) >= maxModules {
			return &PathError{Path: "modules", Err: ErrLimit}
		}
		f, err := moduleTextLayout.Load(k, m.Addr)
		if err != nil {
			return err
		}
		if f.TextSize > maxModule || f.InitSize > maxModule || f.NumORC > maxORC {
			return corrupt(m.Addr, "module", "%q has %d bytes of code", m.Name, f.TextSize)
		}
		c.mods = append(c.mods, &moduleText{
			Module: m,
			text:   []codeRange{{f.Text, f.Text.Add(int(f.TextSize))}, {f.Init, f.Init.Add(int(f.InitSize))}},
			orc:    orcTable{ips: f.ORCIPs, entries: f.ORC, n: int(f.NumORC)},
		})
	}
	return nil
}
