package kernel

import (
	"encoding/binary"
	"errors"
)

// tickSched returns the struct tick_sched of a CPU.
func (k *Kernel) tickSched(cpu int) (Addr, error) {
	a, err := k.PerCPU("tick_cpu_sched", cpu)
	if !errors.Is(err, ErrNoSymbol) {
		return a, err
	}
	variable, err := k.searchTickSched(err)
	if err != nil {
		return 0, err
	}
	return k.perCPUPtr(variable, cpu)
}

// searchTickSched finds the per-CPU variable tick_cpu_sched of a kernel without symbols
// of variables whose types have no variables either (arm64, 5.10), near one that is
// exported: its timer calls a function that has a symbol. missing is the error if there
// is none. Source: kernel/time/tick-sched.c:tick_setup_sched_timer.
func (k *Kernel) searchTickSched(missing error) (Addr, error) {
	if a, ok := k.lazy.tickSched.Load().(Addr); ok {
		return a, nil
	}
	function, err := k.Symbol("tick_sched_timer")
	if err != nil {
		return 0, missing
	}
	off, err := k.offsetOf("tick_sched", "sched_timer.function")
	if err != nil {
		return 0, missing
	}
	variable, err := k.Symbol("kernel_cpustat")
	if err != nil {
		return 0, missing
	}
	near, err := k.perCPUPtr(variable, 0)
	if err != nil {
		return 0, err
	}
	const static = 256 << 10 // is more than the static variables of a CPU take
	for begin := (near - static) &^ 7; begin < near+static; begin += 4096 {
		b, err := k.bytesAt(begin, 4096, nil)
		if err != nil {
			continue // not in the linear map
		}
		for i := 0; i < len(b); i += 8 {
			if Addr(binary.LittleEndian.Uint64(b[i:])) == function {
				found := variable + begin.Add(i-off) - near
				k.lazy.tickSched.Store(found)
				return found, nil
			}
		}
	}
	return 0, missing
}
