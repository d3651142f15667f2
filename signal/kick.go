package signal

import (
	"context"
	"fmt"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// A CPU that sleeps in HLT looks at nothing until an interrupt comes, and an idle
// guest may have none for seconds. An NMI through QEMU ends the HLT of CPU 0, but
// the kernel complains of an NMI that nobody claims. Unless it believes it to be
// the second half of a back-to-back pair: arrived at the very instruction where
// the last one did, with swallow_nmi set (arch/x86/kernel/nmi.c:default_do_nmi).

// cpu0 is what CPU 0 of a paused guest is doing.
type cpu0 struct {
	rqWords
	idle bool // it runs its idle task
	kick bool // it sleeps, and a silent NMI can wake it
	rip  uint64
}

// between says that CPU 0 is on its way into or out of its sleep. It may also be in
// its NMI handler: an NMI now would come after that, elsewhere than planned, and
// the kernel would complain.
func (c *cpu0) between() bool { return c.idle && !c.kick }

// lookCPU0 finds out what CPU 0 is doing. The guest must be paused.
func (o *op) lookCPU0(ctx context.Context) (c cpu0, err error) {
	if c.rqWords, err = rqLayout.Load(o.k, o.at.rq); err != nil {
		return c, err
	}
	c.idle = c.Curr == c.Idle
	if !c.idle || o.caps.KickIdle != nil {
		return c, nil
	}
	if c.rip, err = o.pc0(ctx); err != nil {
		return c, fmt.Errorf("registers of CPU 0: %w", err)
	}
	var code [3]byte
	if _, err := o.k.ReadAt(code[:], kernel.Addr(c.rip)-3); err != nil {
		return c, err
	}
	c.kick = afterHalt(code)
	return c, nil
}

// afterHalt says whether code, which ends where the program counter is, ends with
// "sti; hlt" or "mwait": a processor that sleeps there has both behind it.
func afterHalt(code [3]byte) bool {
	return code[1] == 0xfb && code[2] == 0xf4 || code == [3]byte{0x0f, 0x01, 0xc9}
}

// maxBetween is how often a delivery waits for CPU 0 to go to sleep or to wake up.
// A guest that polls when idle never sleeps, and always ticks.
const maxBetween = 20

// settledCPU0 is lookCPU0 for a first attempt, which may as well be made later.
func (o *op) settledCPU0(ctx context.Context) (cpu0, error) {
	c, err := o.lookCPU0(ctx)
	if err == nil && c.between() && o.caps.KickIdle == nil && o.between < maxBetween {
		o.between++
		return c, retry("CPU 0 is on its way into or out of idle")
	}
	return c, err
}

// planKick adds to tx what keeps the NMI silent.
func (o *op) planKick(tx *Tx, c cpu0) error {
	o.machine.nmis, _ = o.countNMIs()
	if err := tx.Set(o.at.lastNMIRIP, 8, "last_nmi_rip(cpu 0)", c.rip); err != nil {
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
func (o *op) planResched(tx *Tx, c cpu0) error {
	w, err := taskLayout.Load(o.k, c.Idle)
	if err != nil {
		return err
	}
	return tx.Update(w.FlagsAddr, 8, "idle_task(cpu 0).thread_info.flags",
		func(v uint64) uint64 { return v | o.at.tifNeedResched })
}

// countNMIs returns how many NMIs of each kind CPU 0 has seen, if the kernel keeps count
// (arch/x86/kernel/nmi.c:nmi_stats).
func (o *op) countNMIs() (n [16]byte, ok bool) {
	a, err := o.k.PerCPU("nmi_stats", 0)
	if err == nil {
		_, err = o.k.ReadAt(n[:], a)
	}
	return n, err == nil
}

// nmiLimit bounds the wait for an NMI that was sent. The processor takes it as the
// first thing when it runs, but the host may not let it run.
const nmiLimit = 500 * time.Millisecond

// awaitNMI waits until the last NMI that was sent has come.
func (o *op) awaitNMI() {
	for end := time.Now().Add(nmiLimit); time.Now().Before(end); time.Sleep(50 * time.Microsecond) {
		if n, ok := o.countNMIs(); !ok || n != o.machine.nmis {
			return
		}
	}
}

// afterKick clears swallow_nmi again once the NMI has come, so that a later, real
// one is not swallowed. Only CPU 0's NMI handler touches the byte, which makes a
// plain store safe while the guest runs.
func (o *op) afterKick() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.kicks == 0 {
		return nil
	}
	o.machine.kicks -= o.kicks
	o.kicks = 0
	// Or another operation's NMI may be on its way.
	if o.machine.kicks == 0 {
		o.awaitNMI()
		if _, err := o.k.WriteAt([]byte{0}, o.at.swallowNMI); err != nil {
			return fmt.Errorf("clear swallow_nmi: %w", err)
		}
	}
	return o.rec.note("quiet")
}
