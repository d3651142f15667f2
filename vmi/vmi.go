// Package vmi reads and writes the guest-physical memory of a virtual machine
// from outside it.
//
// A guest's RAM reaches us in many shapes: a file that QEMU shares, the address
// space of a QEMU process, a dump on disk. All of them are a [Memory]: bytes at
// guest-physical addresses ([Phys]), in a few [Range]s. What more a source can do
// is found by type assertion, so that code says what it needs and a dump cannot
// be asked to write:
//
//	Writer     change guest memory
//	Viewer     see guest memory without copying it
//	Sparse     know which parts of memory can hold anything but zeros
//	CPUs       read the registers of the virtual processors
//	PC         read one program counter
//	Pauser     stop and continue the virtual machine
//	Stater     ask whether the virtual machine runs
//	Continuer  let a virtual machine run that somebody else has stopped
//	NMI        interrupt an idle virtual processor
//	Notes      text that the guest kernel left for dump tools
//
// [Open] takes the same string as the -g flag of the programs. Sources are
// packages below this one, one a source; they register themselves, as image
// formats do. Import vmi/sources for all of them:
//
//	import _ "github.com/ovmigrate/ovmigrate/vmi/sources"
//
// Nothing here knows about kernels: that is package kernel.
package vmi

import (
	"context"
	"fmt"
	"io"
)

// PageSize is the size of a base page of every guest this module reads, in bytes.
const PageSize = 4096

// Phys is a guest-physical address, in bytes. It is never mixed with the virtual
// addresses of package kernel.
type Phys uint64

// Range is a half-open range of guest-physical addresses.
type Range struct{ Start, End Phys }

// Len returns the number of bytes in r, 0 if r is empty or reversed.
func (r Range) Len() uint64 {
	if r.End <= r.Start {
		return 0
	}
	return uint64(r.End - r.Start)
}

// Contains says whether the n bytes at a all lie in r.
func (r Range) Contains(a Phys, n int) bool {
	return n >= 0 && a >= r.Start && a <= r.End && uint64(n) <= uint64(r.End-a)
}

func (r Range) String() string { return fmt.Sprintf("[%#x-%#x)", uint64(r.Start), uint64(r.End)) }

// Memory is guest-physical memory. Implementations are safe for concurrent use.
// Reads of a running guest are racy: two reads may see different bytes.
type Memory interface {
	// ReadPhys fills p with the bytes at addr. n < len(p) implies err != nil;
	// bytes that are not RAM or that a dump lacks give a *FaultError, never zeros.
	ReadPhys(p []byte, addr Phys) (n int, err error)

	// Ranges returns the guest's RAM: sorted, disjoint, not to be modified.
	Ranges() []Range
}

// Writer is a Memory that can be changed.
type Writer interface {
	// WritePhys stores p at addr. An aligned 8-byte or smaller write is a single
	// store on a mapped source. n < len(p) implies err != nil.
	WritePhys(p []byte, addr Phys) (n int, err error)
}

// Viewer is a Memory whose bytes can be seen without a copy.
type Viewer interface {
	// View returns the n bytes at addr as they are in guest memory, or nil where
	// they are not contiguous in the host. The slice must not be written to, is
	// valid until Close, and changes under the reader while the guest runs.
	View(addr Phys, n int) []byte
}

// Sparse is a Memory that knows which of its parts were never touched.
type Sparse interface {
	// Data returns the parts of Ranges that may hold something: sorted, disjoint,
	// owned by the caller. All other RAM reads as zeros at the time of the call;
	// skipping it makes a scan faster and, on a RAM file, keeps the scan from
	// allocating host memory for pages that the guest never used. Where the host
	// does not say, Data returns Ranges.
	Data() []Range
}

// Notes is a dump that carries notes of the guest kernel.
type Notes interface {
	// VMCoreInfo returns the text of the VMCOREINFO note, KEY=VALUE lines, or nil.
	// The slice is not to be modified.
	VMCoreInfo() []byte
}

// CPUs is a source that knows the registers of the virtual processors.
type CPUs interface {
	// CPUs returns one CPU per virtual processor, ordered by ID. On a live guest
	// the values are of one moment only while the guest is paused.
	CPUs(ctx context.Context) ([]CPU, error)
}

// PC is a source that knows where a virtual processor is, at less cost than all of
// its registers.
type PC interface {
	// PC returns the program counter of the processor with that ID. It is of use
	// only while the guest is paused.
	PC(ctx context.Context, cpu int) (uint64, error)
}

// Pauser is a live guest that can be stopped.
type Pauser interface {
	// Pause stops every virtual processor and returns a function that lets them
	// run again. Pauses nest: the guest runs when the last resume is called. A
	// guest that somebody else had paused stays paused. resume may be called more
	// than once; only the first call counts. It must be called on every path.
	Pause(ctx context.Context) (resume func() error, err error)
}

// Status says what a live guest is doing.
type Status struct {
	Running bool   // its virtual processors execute
	State   string // the hypervisor's word: "running", "paused", "shutdown", …
}

// Stater is a live guest that can be asked what it is doing.
type Stater interface {
	Status(ctx context.Context) (Status, error)
}

// Continuer is a live guest that can be let run, whoever stopped it: after a program
// that was killed in the middle of a pause. Everybody else uses Pauser.
type Continuer interface {
	Continue(ctx context.Context) error
}

// NMI is a live guest into whose processors a non-maskable interrupt can be injected.
type NMI interface {
	// InjectNMI raises an NMI. On x86 QEMU it reaches all CPUs' LINT1, which
	// Linux leaves unmasked on CPU 0 only.
	InjectNMI(ctx context.Context) error
}

// Image is an opened Memory that holds host resources until Close.
type Image interface {
	Memory
	io.Closer
}

// CPU holds the registers of one x86-64 virtual processor. GPR is in the order of
// the instruction encoding: rax rcx rdx rbx rsp rbp rsi rdi r8 … r15. What a source
// cannot know is 0 and missing in Known.
type CPU struct {
	ID                      int
	GPR                     [16]uint64
	RIP, RFLAGS             uint64
	CS, SS                  uint16
	CR0, CR2, CR3, CR4      uint64
	EFER                    uint64
	FSBase, GSBase, KGSBase uint64 // KGSBase: MSR_KERNEL_GS_BASE, what SWAPGS would load
	Halted                  bool   // in HLT, waiting for an interrupt
	Known                   CPUKnown
}

// CPUKnown is a set of the CPU fields that not every source can fill.
type CPUKnown uint8

// Fields of CPU.
const (
	KnownControl CPUKnown = 1 << iota // CR0, CR2, CR3, CR4
	KnownEFER
	KnownKGSBase
	KnownHalted
)

// FaultError says that Len bytes at Addr could not be read or written.
type FaultError struct {
	Addr Phys
	Len  int
	Err  error // cause; nil if the address is no RAM
}

func (e *FaultError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("guest-physical %#x+%d: %v", uint64(e.Addr), e.Len, e.Err)
	}
	return fmt.Sprintf("guest-physical %#x+%d: not in guest RAM", uint64(e.Addr), e.Len)
}

func (e *FaultError) Unwrap() error { return e.Err }
