package vmi

import "errors"

// ErrExcluded is the cause in the [FaultError] of memory that the guest has and
// that whoever wrote the dump left out: a filter of makedumpfile, a full disk, a
// page that could not be read. What the bytes were is not known; they are not zeros.
var ErrExcluded = errors.New("left out of the dump")

// ErrNoCPUs is wrapped by the error of [CPUs] on a dump that has no registers.
var ErrNoCPUs = errors.New("the dump has no processor registers")

// Mapping is guest-physical memory that a kernel has at a virtual address.
type Mapping struct {
	Virt uint64
	Phys Phys
	Len  uint64
}

// DumpOptions says what a dump holds besides memory. All packages that write dumps
// take it; the zero value writes memory only. A format that has no place for a
// thing leaves it out.
type DumpOptions struct {
	// VMCoreInfo is the text of the VMCOREINFO note, without which tools that know
	// no symbols do not find the kernel.
	VMCoreInfo []byte

	// CPUs are the processors whose registers are written, x86-64 only.
	CPUs []CPU

	// Image is where the kernel maps its own image, as ELF cores of kdump say in a
	// segment of its own: drgn reads the page tables there. A zero Len is none; an
	// image that is not all in the dump, in one piece, is left out.
	Image Mapping

	// Machine is the guest's architecture as uname -m has it. "" is "x86_64".
	Machine string

	// Progress, if not nil, is called from one goroutine with the number of bytes
	// of guest memory that are written, and of all that will be. The last call has
	// done == total, if all goes well.
	Progress func(done, total uint64)
}
