package kernel

import (
	"fmt"
	"iter"
)

// VMA is one mapping of a user address space: a vm_area_struct.
type VMA struct {
	Addr Addr // of the vm_area_struct
	vmaFields
}

type vmaFields struct {
	Start    UserAddr `k:"vm_start"`
	End      UserAddr `k:"vm_end"`
	MM       Addr     `k:"vm_mm"`
	Flags    VMFlags  `k:"vm_flags|flags.__vma_flags[0]"`
	PgOff    uint64   `k:"vm_pgoff"` // in pages
	File     Addr     `k:"vm_file"`
	Ops      Addr     `k:"vm_ops"`
	Private  Addr     `k:"vm_private_data"`
	AnonVMA  Addr     `k:"anon_vma"`
	AnonName Addr     `k:"anon_name,opt"`
	Next     Addr     `k:"vm_next,opt"` // before the maple tree
	UFFD     Addr     `k:"vm_userfaultfd_ctx.ctx,opt"`
}

var vmaLayout = LayoutOf[vmaFields]("vm_area_struct")

// VMFlags are the VM_* flags of a mapping (include/linux/mm.h).
type VMFlags uint64

// Flags of mappings.
const (
	VMRead        VMFlags = 0x1
	VMWrite       VMFlags = 0x2
	VMExec        VMFlags = 0x4
	VMShared      VMFlags = 0x8
	VMMayRead     VMFlags = 0x10
	VMMayWrite    VMFlags = 0x20
	VMMayExec     VMFlags = 0x40
	VMMayShare    VMFlags = 0x80
	VMGrowsDown   VMFlags = 0x100
	VMPFNMap      VMFlags = 0x400
	VMLocked      VMFlags = 0x2000
	VMIO          VMFlags = 0x4000
	VMSeqRead     VMFlags = 0x8000
	VMRandRead    VMFlags = 0x10000
	VMDontCopy    VMFlags = 0x20000
	VMDontExpand  VMFlags = 0x40000
	VMLockOnFault VMFlags = 0x80000
	VMAccount     VMFlags = 0x100000
	VMNoReserve   VMFlags = 0x200000
	VMHugeTLB     VMFlags = 0x400000
	VMSync        VMFlags = 0x800000
	VMWipeOnFork  VMFlags = 0x2000000
	VMDontDump    VMFlags = 0x4000000
	VMSoftDirty   VMFlags = 0x8000000
	VMMixedMap    VMFlags = 0x10000000
	VMHugePage    VMFlags = 0x20000000
	VMNoHugePage  VMFlags = 0x40000000
	VMMergeable   VMFlags = 0x80000000
	VMPKey        VMFlags = 0xf << 32 // protection key, x86
	VMShadowStack VMFlags = 1 << 37   // x86, since 6.6
	VMSealed      VMFlags = 1 << 63   // mseal, since 6.10
)

// String returns the flags as /proc/PID/maps shows them: "rwxp".
func (f VMFlags) String() string {
	s := []byte("---p")
	for i, c := range "rwx" {
		if f&(1<<i) != 0 {
			s[i] = byte(c)
		}
	}
	if f&VMMayShare != 0 {
		s[3] = 's'
	}
	return string(s)
}

// VMAs yields the mappings of m in order of address, as /proc/PID/maps does but
// for the vsyscall page, which has none. The walk stops at an entry that does not
// belong to m or is out of order. Source: mm_struct.mm_mt, or mm_struct.mmap
// before 6.1.
func (m *MM) VMAs() iter.Seq2[VMA, error] {
	return func(yield func(VMA, error) bool) {
		var last UserAddr
		count := 0
		for a, err := range m.vmaAddrs() {
			var v VMA
			if err == nil {
				v, err = m.vma(a, last)
			}
			if count++; count > maxWalk {
				err = &PathError{Path: "mm_struct", Addr: m.Addr, Err: ErrLimit}
			}
			last = v.End
			if !yield(v, err) || err != nil {
				return
			}
		}
	}
}

func (m *MM) vma(a Addr, last UserAddr) (VMA, error) {
	v := VMA{Addr: a}
	if err := vmaLayout.LoadInto(m.k, a, &v.vmaFields); err != nil {
		return VMA{}, err
	}
	if v.MM != m.Addr || v.Start < last || v.End <= v.Start || (v.Start|v.End)&0xfff != 0 {
		return VMA{}, corrupt(a, "vm_area_struct", "%s-%s after %s", v.Start, v.End, last)
	}
	return v, nil
}

func (m *MM) vmaAddrs() iter.Seq2[Addr, error] {
	if !mmLayout.Has(m.k, "MTree") {
		return m.vmaList()
	}
	return func(yield func(Addr, error) bool) {
		for e, err := range m.k.Maple(m.MTree) {
			if !yield(Addr(e.Entry), err) || err != nil {
				return
			}
		}
	}
}

func (m *MM) vmaList() iter.Seq2[Addr, error] {
	return func(yield func(Addr, error) bool) {
		for a := m.MMap; a != 0; {
			v, err := vmaLayout.Load(m.k, a)
			if !yield(a, err) || err != nil {
				return
			}
			a = v.Next
		}
	}
}

// maxVMAs bounds what VMAList collects, at 16 times the default of
// vm.max_map_count.
const maxVMAs = 1 << 20

// VMAList returns all mappings of m. It fails if their number is not what the
// kernel counts, which happens when the process runs meanwhile.
func (m *MM) VMAList() ([]VMA, error) {
	var all []VMA
	for v, err := range m.VMAs() {
		if err != nil {
			return nil, err
		}
		if len(all) >= maxVMAs {
			return nil, &PathError{Path: "mm_struct", Addr: m.Addr, Err: ErrLimit}
		}
		all = append(all, v)
	}
	if len(all) != int(m.MapCount) {
		return nil, corrupt(m.Addr, "mm_struct", "%d mappings, map_count %d", len(all), m.MapCount)
	}
	return all, nil
}

// special mappings

type vmSpecialMapping struct {
	Name Addr `k:"name"`
}

var vmSpecialMappingLayout = LayoutOf[vmSpecialMapping]("vm_special_mapping")

// SpecialName returns the name of a mapping that the kernel itself installed, such
// as "[vdso]" or "[vvar]", and "" for all others. Source:
// mm/mmap.c:special_mapping_vmops.
func (m *MM) SpecialName(v *VMA) (string, error) {
	if v.File != 0 || v.Ops == 0 || v.Private == 0 {
		return "", nil
	}
	if special, err := m.k.specialOps(v.Ops); !special {
		return "", err
	}
	s, err := vmSpecialMappingLayout.Load(m.k, v.Private)
	if err != nil {
		return "", fmt.Errorf("special mapping at %s: %w", v.Start, err)
	}
	return m.k.CString(s.Name, 64)
}

// specialOps says whether ops is one of the two tables of functions for special
// mappings. Kernels without symbols of variables have one of its functions.
func (k *Kernel) specialOps(ops Addr) (bool, error) {
	for _, name := range []string{"special_mapping_vmops", "legacy_special_mapping_vmops"} {
		if a, err := k.Symbol(name); err == nil && a == ops {
			return true, nil
		}
	}
	if _, err := k.Symbol("special_mapping_vmops"); err == nil {
		return false, nil
	}
	name, err := k.Symbol("special_mapping_name")
	if err != nil {
		return false, nil
	}
	off, err := k.offsetOf("vm_operations_struct", "name")
	if err != nil {
		return false, err
	}
	its, err := k.ReadAddr(ops.Add(off))
	return err == nil && its == name, err
}

type vdsoImage struct {
	Data Addr `k:"data"`
}

var vdsoImageLayout = LayoutOf[vdsoImage]("vdso_image")

// VDSOData returns where the kernel keeps the pages of a vDSO, given the address of
// its vdso_image (MM.VDSOImage). Source: arch/x86/entry/vdso/vma.c:vdso_fault.
func (k *Kernel) VDSOData(image Addr) (Addr, error) {
	i, err := vdsoImageLayout.Load(k, image)
	return i.Data, err
}
