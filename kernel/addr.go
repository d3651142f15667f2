package kernel

import "fmt"

// Addr is a kernel-virtual address of the guest, in bytes.
type Addr uint64

// UserAddr is a virtual address in a guest process, in bytes. It means nothing
// without the MM it belongs to.
type UserAddr uint64

// Add returns a+n. Kernel addresses wrap as C pointers do.
func (a Addr) Add(n int) Addr { return a + Addr(n) }

// IsKernel says whether a can point to kernel memory: canonical and in the upper
// half, for 4- and 5-level paging alike.
func (a Addr) IsKernel() bool { return a >= 0xff00000000000000 && a < 0xfffffffffffff000 }

func (a Addr) String() string     { return fmt.Sprintf("%#x", uint64(a)) }
func (a UserAddr) String() string { return fmt.Sprintf("%#x", uint64(a)) }
