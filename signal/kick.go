package signal

import (
	"context"
	"fmt"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// A CPU that sleeps in HLT looks at nothing until an interrupt comes, and an idle
// guest may have none for seconds. An NMI through QEMU ends the HLT of CPU 0, but
// the kernel complains of an NMI that nobody claims. Unless it believes it to be
// the second half of a back-to-back pair: arrived at the very instruction where
// the last one did, with swallow_nmi set (arch/x86/kernel/nmi.c:default_do_nmi).

// planKick adds to tx what keeps the NMI silent. The guest must be paused, and CPU
// 0 idle: an NMI does a busy one no good and may arrive elsewhere than planned.
func (o *op) planKick(ctx context.Context, tx *Tx) error {
	rip, err := o.pc0(ctx)
	if err != nil {
		return fmt.Errorf("registers of CPU 0: %w", err)
	}
	if err := tx.Set(o.at.lastNMIRIP, 8, "last_nmi_rip(cpu 0)", rip); err != nil {
		return err
	}
	return tx.Set(o.at.swallowNMI, 1, "swallow_nmi(cpu 0)", 1)
}

// pc0 returns the program counter of CPU 0.
func (o *op) pc0(ctx context.Context) (uint64, error) {
	if m, ok := o.k.Memory().(vmi.PC); ok {
		return m.PC(ctx, 0)
	}
	cpus, err := o.k.Memory().(vmi.CPUs).CPUs(ctx)
	if err != nil {
		return 0, err
	}
	if len(cpus) == 0 || cpus[0].ID != 0 {
		return 0, unsupported("the memory source shows no CPU 0")
	}
	return cpus[0].RIP, nil
}

// planResched makes the idle loop of CPU 0 leave when next it looks.
func (o *op) planResched(tx *Tx, rq rqWords) error {
	w, err := taskLayout.Load(o.k, rq.Idle)
	if err != nil {
		return err
	}
	return tx.Update(w.FlagsAddr, 8, "idle_task(cpu 0).thread_info.flags",
		func(v uint64) uint64 { return v | o.at.tifNeedResched })
}

// afterKick clears swallow_nmi again once the NMI has come, so that a later, real
// one is not swallowed. Only CPU 0's NMI handler touches the byte, which makes a
// plain store safe while the guest runs.
func (o *op) afterKick() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.machine.kicks -= o.kicks
	done := o.kicks > 0 && o.machine.kicks == 0
	o.kicks = 0
	if !done {
		return nil // none sent, or another operation's NMI may be on its way
	}
	if _, err := o.k.WriteAt([]byte{0}, o.at.swallowNMI); err != nil {
		return fmt.Errorf("clear swallow_nmi: %w", err)
	}
	return nil
}
