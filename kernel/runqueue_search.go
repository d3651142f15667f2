package kernel

import (
	"encoding/binary"
	"errors"
)

// runQueueAddr returns the struct rq of a CPU.
func (k *Kernel) runQueueAddr(cpu int) (Addr, error) {
	a, err := k.PerCPU("runqueues", cpu)
	if !errors.Is(err, ErrNoSymbol) {
		return a, err
	}
	variable, err := k.searchRunQueues(err)
	if err != nil {
		return 0, err
	}
	return k.perCPUPtr(variable, cpu)
}

// searchRunQueues finds the per-CPU variable runqueues of a kernel without symbols of
// variables whose types have no variables either (arm64, 5.10), near one that is
// exported. That of CPU 0 is known by its content: its idle task is the first task,
// and its queue of the fair class points back to it. missing is the error if there is
// none. Source: kernel/sched/core.c:sched_init.
func (k *Kernel) searchRunQueues(missing error) (Addr, error) {
	if a, ok := k.lazy.runQueues.Load().(Addr); ok {
		return a, nil
	}
	first, err := k.Symbol("init_task")
	if err != nil {
		return 0, err
	}
	idle, err := k.offsetOf("rq", "idle")
	if err != nil {
		return 0, err
	}
	back, err := k.offsetOf("rq", "cfs.rq")
	if err != nil {
		return 0, missing // built without groups
	}
	variable, err := k.Symbol("kernel_cpustat")
	if err != nil {
		return 0, missing
	}
	near, err := k.perCPUPtr(variable, 0)
	if err != nil {
		return 0, err
	}
	const (
		static = 256 << 10 // is more than the static variables of a CPU take
		align  = 64        // L1_CACHE_BYTES, at least
	)
	for begin := (near - static) &^ (align - 1); begin < near+static; begin += 4096 {
		b, err := k.bytesAt(begin, 4096+max(idle, back)+8, nil)
		if err != nil {
			continue // not in the linear map
		}
		for i := 0; i < 4096; i += align {
			if Addr(binary.LittleEndian.Uint64(b[i+idle:])) == first && Addr(binary.LittleEndian.Uint64(b[i+back:])) == begin.Add(i) {
				found := variable + begin.Add(i) - near
				k.lazy.runQueues.Store(found)
				return found, nil
			}
		}
	}
	return 0, missing
}
