// Package elfcore reads guest memory from ELF core dumps: those of QEMU's
// dump-guest-memory, with paging or without, and those of kdump (/proc/vmcore).
//
// Every PT_LOAD segment holds memory at its physical address; the PT_NOTE segments
// hold the registers of the processors and, if the guest kernel told, VMCOREINFO.
// The file is mapped and nothing is copied at opening.
package elfcore

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"os"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/elfhdr"
	"github.com/ovmigrate/ovmigrate/vmi/internal/elfnote"
	"github.com/ovmigrate/ovmigrate/vmi/internal/hostmap"
	"github.com/ovmigrate/ovmigrate/vmi/internal/segment"
)

// ErrTruncated is wrapped by Open's error when the file ends before the memory
// that its headers promise.
var ErrTruncated = vmi.ErrTruncated

// ErrNoCPUs is returned by CPUs for a dump without register notes.
var ErrNoCPUs = vmi.ErrNoCPUs

func init() {
	vmi.Register(vmi.Source{
		Name:  "ELF core",
		Sniff: func(head []byte, _ int64) bool { return bytes.HasPrefix(head, []byte(elf.ELFMAG)) },
		Open:  Open,
	})
}

// File is an ELF core dump: a [vmi.Image], [vmi.Viewer], [vmi.CPUs] and [vmi.Notes].
type File struct {
	m       *hostmap.Map
	t       *segment.Table
	notes   []byte // copied: they outlive Close
	machine elf.Machine
}

// Open opens the dump at path and returns a *File. A dump cannot be written to:
// Options.Writable is an error. Errors: as os.Open; vmi.ErrFormat; ErrTruncated.
func Open(_ context.Context, path string, o *vmi.Options) (vmi.Image, error) {
	if o != nil && o.Writable {
		return nil, fmt.Errorf("open %s: a dump cannot be written to", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	m, err := hostmap.New(f, false)
	if err != nil {
		return nil, err
	}
	file, err := parse(m)
	if err != nil {
		m.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return file, nil
}

func parse(m *hostmap.Map) (*File, error) {
	size := m.Size()
	read := func(off uint64, n int) ([]byte, error) {
		if off > size || uint64(n) > size-off {
			return nil, vmi.ErrTruncated
		}
		b := make([]byte, n)
		return b, m.Read(b, off)
	}
	progs, machine, err := elfhdr.Read(read, size)
	if err != nil {
		return nil, err
	}
	segs, err := elfhdr.Loads(progs, size)
	if err != nil {
		return nil, err
	}
	f := &File{m: m, machine: machine}
	if f.t, err = segment.New(segs); err != nil {
		return nil, err
	}
	if f.notes, err = elfhdr.Notes(read, progs); err != nil {
		return nil, err
	}
	return f, nil
}

// Ranges implements [vmi.Memory]: what the dump holds.
func (f *File) Ranges() []vmi.Range { return f.t.Ranges() }

// ReadPhys implements [vmi.Memory].
func (f *File) ReadPhys(p []byte, addr vmi.Phys) (int, error) {
	return f.t.Do(p, addr, func(p []byte, _ int, off uint64) error { return f.m.Read(p, off) })
}

// View implements [vmi.Viewer].
func (f *File) View(addr vmi.Phys, n int) []byte {
	if _, off, ok := f.t.Find(addr, n); ok {
		return f.m.View(off, n)
	}
	return nil
}

// CPUs implements [vmi.CPUs]. QEMU's dumps have all registers but EFER; those of
// kdump only the general ones. Without any the error is ErrNoCPUs.
func (f *File) CPUs(context.Context) ([]vmi.CPU, error) {
	// QEMU says 386 while processor 0 is not in long mode; its own notes are the same.
	if f.machine != elf.EM_X86_64 && f.machine != elf.EM_386 {
		return nil, fmt.Errorf("%w of x86-64 (%v)", ErrNoCPUs, f.machine)
	}
	cpus := elfnote.CPUs(f.notes)
	if len(cpus) == 0 {
		return nil, ErrNoCPUs
	}
	return cpus, nil
}

// Machine returns the guest's architecture as uname -m has it, or "" for one that is
// not known here.
func (f *File) Machine() string { return elfhdr.MachineName(f.machine) }

// VMCoreInfo implements [vmi.Notes].
func (f *File) VMCoreInfo() []byte { return elfnote.VMCoreInfo(f.notes) }

// Close unmaps the file.
func (f *File) Close() error { return f.m.Close() }
