// Package testvm boots real Debian guests under QEMU for tests and for the demo.
//
// A library that reads and rewrites the memory of a running kernel is only as good
// as the kernels it was tried on, so tests use the kernels and the CRIU that Debian
// ships, and ask the guest itself whether what the library claims is true. [Build]
// makes an image with debootstrap, once per recipe, in a cache outside the source
// tree, and [BuildKernels] makes kernels of other releases and flavours, from Debian's
// packages, to boot it with. [Start] boots a guest for a test, [StartShared] for a
// whole test binary, [Boot] for a program. Disks are overlays that vanish: any number
// of guests share an image.
//
// The guest's RAM is a file on tmpfs ([VM.RAMPath]) and QEMU has two monitor sockets:
// [VM.QMPSocket] for the code under test, [VM.HarnessQMPSocket] for the test. A small
// agent in the guest runs commands and moves files; the library never talks to it.
//
// QEMU interprets (TCG): it works on every build machine, and boots in about five
// seconds. QEMU 7.2 breaks guests with several processors on several threads, and
// guests that use cmpxchg16b at all, so there is one thread and no such instruction.
//
// Nothing outlives the process that booted it, even when that is killed: QEMU dies by
// its parent-death signal, and a waiting shell then removes the RAM file.
package testvm
