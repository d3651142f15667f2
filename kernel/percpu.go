package kernel

import "fmt"

// maxCPUs is more than CONFIG_NR_CPUS of any distribution (8192).
const maxCPUs = 16384

// PerCPU returns the address of a CPU's instance of a per-CPU variable. It works
// without per-CPU symbols, from the type information. Errors: ErrNoSymbol,
// *PathError. Source: include/asm-generic/percpu.h:per_cpu_offset.
func (k *Kernel) PerCPU(name string, cpu int) (Addr, error) {
	if cpu < 0 || cpu >= maxCPUs {
		return 0, fmt.Errorf("%w: CPU %d", ErrNoSymbol, cpu)
	}
	var variable Addr
	if off, _, err := k.types.PerCPU(name); err == nil && k.perCPUStart != 0 {
		variable = k.perCPUStart + Addr(off)
	} else if variable, err = k.Symbol(name); err != nil {
		return 0, err
	}
	return k.perCPUPtr(variable, cpu)
}

// perCPUPtr returns a CPU's instance of what a pointer marked __percpu points to.
// Source: include/linux/percpu-defs.h:per_cpu_ptr.
func (k *Kernel) perCPUPtr(p Addr, cpu int) (Addr, error) {
	table, err := k.Symbol("__per_cpu_offset")
	if err != nil {
		return 0, err
	}
	off, err := k.ReadU64(table + Addr(8*cpu))
	if err != nil {
		return 0, err
	}
	a := p + Addr(off)
	if !a.IsKernel() {
		return 0, corrupt(a, "__per_cpu_offset", "CPU %d has no area", cpu)
	}
	return a, nil
}

// perCPUBase returns __per_cpu_start, that per-CPU offsets count from. A kernel
// without symbols of variables exports some per-CPU ones, of which the types say how
// far they are from it.
func (k *Kernel) perCPUBase() (Addr, error) {
	a, err := k.Symbol("__per_cpu_start")
	if err == nil {
		return a, nil
	}
	var base Addr
	for _, name := range []string{"kstat", "kernel_cpustat"} {
		v, e := k.Symbol(name)
		if e != nil {
			return 0, err
		}
		off, _, e := k.types.PerCPU(name)
		if e != nil {
			return 0, err
		}
		if b := v - Addr(off); base != 0 && b != base {
			return 0, corrupt(v, name, "per-CPU variables begin at %s or %s", base, b)
		} else {
			base = b
		}
	}
	return base, nil
}

// OnlineCPUs returns the numbers of the CPUs that the guest has brought up.
// Source: kernel/cpu.c:__cpu_online_mask.
func (k *Kernel) OnlineCPUs() ([]int, error) {
	mask, err := k.Symbol("__cpu_online_mask")
	if err != nil {
		return nil, err
	}
	t, err := k.types.Struct("cpumask")
	if err != nil {
		return nil, err
	}
	return k.bitmap(mask, 8*min(t.Size, maxCPUs/8))
}
