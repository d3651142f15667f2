package kernel

import (
	"fmt"

	"github.com/ovmigrate/ovmigrate/kernel/types"
)

type btfModule struct {
	Module Addr `k:"module"`
	BTF    Addr `k:"btf"`
}

type btfFields struct {
	Data Addr   `k:"data"`
	Size uint32 `k:"data_size"`
	Base Addr   `k:"base_btf"`
}

var (
	btfModuleLayout = LayoutOf[btfModule]("btf_module")
	btfLayout       = LayoutOf[btfFields]("btf")
)

// maxModuleBTF is far above the largest module's (amdgpu: 3 MB).
const maxModuleBTF = 64 << 20

// ModuleTypes returns the types of a module, and behind them those of the kernel: a
// name is looked for in the module first. They are the kernel's own copy of the
// module's BTF, which it has adapted to its own types if the module was built
// against others (.BTF.base, 6.11 and newer). Errors: ErrNoModule; ErrNoType if the
// kernel has no BTF of it, as before 5.11, or no symbol of the list. Source: kernel/bpf/btf.c:btf_modules.
func (k *Kernel) ModuleTypes(name string) (types.Source, error) {
	m, err := k.Module(name)
	if err != nil {
		return nil, err
	}
	return m.Types()
}

// Types is ModuleTypes of m.
func (m *Module) Types() (types.Source, error) {
	k := m.k
	btf, err := k.moduleBTF(m.Addr)
	if err != nil {
		return nil, fmt.Errorf("types of module %s: %w", m.Name, err)
	}
	if v, ok := k.lazy.moduleTypes.Load(btf); ok {
		return v.(types.Source), nil
	}
	if btf.Size > maxModuleBTF || btf.Base == 0 {
		return nil, corrupt(btf.Data, "module("+m.Name+").btf", "%d bytes, base %s", btf.Size, btf.Base)
	}
	blob, err := k.readGrowing(btf.Data, int(btf.Size))
	if err != nil {
		return nil, err
	}
	base, err := k.vmlinuxBTF()
	if err != nil {
		return nil, err
	}
	t, err := types.ParseSplitBTF(blob, base)
	if err != nil {
		return nil, fmt.Errorf("types of module %s: %w", m.Name, err)
	}
	v, _ := k.lazy.moduleTypes.LoadOrStore(btf, t)
	return v.(types.Source), nil
}

// vmlinuxBTF returns the BTF that those of modules refer to: that in guest memory,
// even where the kernel's types come from elsewhere.
func (k *Kernel) vmlinuxBTF() (*types.BTF, error) {
	if b, ok := k.types.(*types.BTF); ok {
		return b, nil
	}
	k.lazy.btfOnce.Do(func() {
		if k.guest.BTF == nil {
			k.lazy.btfErr = fmt.Errorf("%w: kernel %s carries no BTF", ErrNoType, k.guest.Release)
			return
		}
		k.lazy.btf, k.lazy.btfErr = types.ParseBTF(k.guest.BTF)
	})
	return k.lazy.btf, k.lazy.btfErr
}

// moduleBTF finds the kernel's struct btf of the module at a.
func (k *Kernel) moduleBTF(a Addr) (btfFields, error) {
	head, err := k.Symbol("btf_modules")
	if err != nil {
		return btfFields{}, fmt.Errorf("%w: the kernel keeps no BTF of modules", ErrNoType)
	}
	off, err := k.offsetOf("btf_module", "list")
	if err != nil {
		return btfFields{}, err
	}
	for node, err := range k.List(head) {
		if err != nil {
			return btfFields{}, err
		}
		b, err := btfModuleLayout.Load(k, node-Addr(off))
		if err != nil {
			return btfFields{}, err
		}
		if b.Module == a {
			return btfLayout.Load(k, b.BTF)
		}
	}
	return btfFields{}, fmt.Errorf("%w: it has no BTF", ErrNoType)
}
