// Package kernel makes typed Linux kernel objects out of guest memory.
//
// A guest's RAM holds the kernel's data structures, and a kernel built with BTF
// also holds the description of those structures. [Open] finds both, from the
// memory alone, so that Go code can follow a kernel's own pointers as a kernel
// module would:
//
//	k, err := kernel.Open(ctx, mem, nil)
//	for task, err := range k.Tasks() {
//		mm, err := task.MM()
//		…
//	}
//
// There are two ways to look at a structure. An [Object] explores: it names members
// at run time, follows pointers and reports faults with the C path that led there.
// A [Layout] works: the members that a piece of code needs are fields of a Go
// struct, resolved once per kernel and then read with one memory access. A member
// that kernel versions name differently is written "__state|state"; code never
// asks for a version number.
//
// # Trust and consistency
//
// Guest memory is data of whoever runs in the guest, and it changes while it is
// read. Nothing here panics, loops or allocates without bound because of it: walks
// are bounded and cycle-checked, and a structure that makes no sense is an error.
// A read of a running guest is racy; pause the guest (vmi.Pauser) or hold the
// process (package signal) where several reads must agree.
//
// A walk over a table of a running kernel, such as [Net.Sockets], finds everything
// that stays in the table for as long as the walk takes. What comes or goes meanwhile
// may be missed or seen in its last state; what is on its way out or has moved to
// another namespace is dropped, and a chain that led into another one is read again.
//
// All types are safe for concurrent readers.
package kernel
