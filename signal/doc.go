// Package signal stops, continues, kills and freezes processes of a guest by
// rewriting the guest kernel's own data. Nothing of it runs in the guest.
//
//	report, err := signal.Stop(ctx, task, nil)
//
// # What a signal is
//
// To a kernel a signal is a bit in a pending set, a flag that makes a thread look
// at it, and a wake-up if the thread sleeps. There are two ways to bring that
// about from outside. [ByBitmap] writes all three. [ByKernel] fills in a work item
// that the guest kernel keeps for bpf_send_signal() and puts it on a list that the
// kernel works off, so that the kernel sends the signal: locks, permissions,
// accounting and the parent's SIGCHLD are all its own. The first needs less of the
// kernel, the second knows more of it. [Probe] says which of them a guest allows,
// and Auto prefers the second.
//
// A sleeping thread must be woken, and so must an idle processor, which looks at
// nothing until an interrupt comes. Threads are woken with what the kernel's own
// sleepers use, a timer or a cross-processor call; CPU 0 by an NMI that the
// kernel is led to take for the second half of one that it has handled.
//
// # What makes it safe
//
// Everything that is written is a transaction, a [Tx]: it is planned while the
// guest stands still, can be shown instead of carried out, is compared with memory
// before and after writing, and is taken back if anything differs. Data under a
// lock is only changed when the lock word says that nobody holds it; else the guest
// runs for a moment and is looked at again. Layouts, symbols and the numbers that C
// hides in macros are checked against the kernel that is there, and what does not
// check out is refused. Success means that the effect was seen, in words that this
// package does not write.
//
// # Freezing
//
// A stop shows: in ps, to the parent, in the shell. [Freeze] holds a process where
// the cgroup freezer would, without a trace for anybody to see; it is how a
// checkpoint holds its process still.
//
// The guest must run while these functions work: do not call them inside a pause
// of your own.
package signal
