package checkpoint

import (
	"github.com/checkpoint-restore/go-criu/v8/crit/images/creds"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// What the images have no place for, or old restorers do not look at: all of it is
// told, as the process might notice.

// processLosses tells what the process as a whole loses.
func (c *collector) processLosses() {
	note := c.issues.approximate
	if p := c.leader.Personality; p != 0 {
		note("personality", "is %#x, which CRIU does not restore", p)
	}
	const (
		dumpFilterShift   = 2 // MMF_DUMP_FILTER_SHIFT
		dumpFilterMask    = 1<<9 - 1
		defaultDumpFilter = 0x33
	)
	if f := c.mm.Flags >> dumpFilterShift & dumpFilterMask; f != defaultDumpFilter {
		note("coredump_filter", "is %#x, which CRIU does not restore", f)
	}
	if membarriers(c.mm.Membarrier) != 0 {
		note("membarrier", "is registered for, which CRIU before 3.19 forgets")
	}
	if c.mm.DefFlags&(kernel.VMLocked|kernel.VMLockOnFault) != 0 {
		note("mlockall", "locks future memory (MCL_FUTURE), which CRIU forgets")
	}
}

// threadLosses tells what a thread loses.
func (c *collector) threadLosses(t *kernel.Task, a *kernel.TaskAttr, cr *creds.CredsEntry) error {
	note := func(format string, args ...any) { c.issues.approximate(thread(t), format, args...) }
	const defaultSlack = 50_000 // ns; real-time threads have none
	if a.TimerSlack != defaultSlack && a.Policy != schedFIFO && a.Policy != schedRR && a.Policy != schedDeadline {
		note("has a timer slack of %d ns, which CRIU does not restore", a.TimerSlack)
	}
	if cr.GetNoNewPrivs() != 0 {
		note("has given up gaining privileges (no_new_privs), which CRIU before 3.19 forgets")
	}
	if amb := cr.GetCapAmb(); len(amb) > 0 && amb[0]|amb[len(amb)-1] != 0 {
		note("has ambient capabilities, which CRIU before 4.1 forgets")
	}
	const speculation = 0xf8 // PFA_SPEC_*
	if a.AtomicFlags&speculation != 0 {
		note("has speculation control set by prctl, which CRIU does not restore")
	}
	prio, err := t.IOPriority()
	if err != nil {
		return err
	}
	if prio != 0 {
		note("has I/O priority %#x, which CRIU does not restore", prio)
	}
	if c.cpus == 0 {
		if c.cpus, err = c.cpusOfInit(); err != nil {
			return err
		}
	}
	if a.NrCPUsAllowed < c.cpus {
		note("may run on %d of %d processors only, which CRIU forgets", a.NrCPUsAllowed, c.cpus)
	}
	return nil
}

// cpusOfInit returns how many processors the guest's init may run on: those that
// processes run on if nobody says otherwise.
func (c *collector) cpusOfInit() (int32, error) {
	t, err := c.k.Task(1)
	if err != nil {
		return 0, err
	}
	a, err := t.Attr()
	if err != nil {
		return 0, err
	}
	return a.NrCPUsAllowed, nil
}

// vmaLosses tells what a mapping loses.
func (c *collector) vmaLosses(v *kernel.VMA, what string) {
	// Memory that can only be executed has a key that the kernel gives it.
	if v.Flags&kernel.VMPKey != 0 && v.Flags&(kernel.VMRead|kernel.VMWrite|kernel.VMExec) != kernel.VMExec {
		c.issues.refuse(what, "has a protection key (pkey_mprotect), which CRIU cannot restore")
	}
	if v.Flags&kernel.VMShadowStack != 0 {
		c.issues.refuse(what, "is a shadow stack")
	}
	if v.Flags&kernel.VMSealed != 0 {
		c.issues.approximate(what, "is sealed (mseal), which CRIU forgets")
	}
	if v.Flags&kernel.VMLockOnFault != 0 {
		c.issues.approximate(what, "is locked as it is touched (MLOCK_ONFAULT); will be locked at once")
	}
}

// membarriers returns the commands by which a process has registered for
// membarrier(2), from its mm_struct's state. Source:
// kernel/sched/membarrier.c:membarrier_get_registrations.
func membarriers(state uint32) (commands uint32) {
	for _, r := range []struct{ state, command uint }{
		{3, 2}, // MEMBARRIER_STATE_GLOBAL_EXPEDITED: ..._CMD_REGISTER_GLOBAL_EXPEDITED
		{1, 4}, // PRIVATE_EXPEDITED
		{5, 6}, // PRIVATE_EXPEDITED_SYNC_CORE
		{7, 8}, // PRIVATE_EXPEDITED_RSEQ
	} {
		commands |= state >> r.state & 1 << r.command
	}
	return commands
}
