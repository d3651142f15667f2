// Package kcore reads the memory of the machine that this program runs on, through
// /proc/kcore: the kernel's own view of itself, as an ELF core whose segments have
// virtual addresses. It is for looking at a host, or at a guest from within.
//
// The segments of the kernel's direct map and of its image say which physical memory
// they are; those of vmalloc and modules are views of memory that the others have,
// and are left out. Memory that is not "System RAM" (/proc/iomem) is not there.
//
// The machine runs meanwhile, this program included, and cannot be paused: reads are
// racy. Where the kernel must not touch memory, it lets /proc/kcore show zeros: pages
// that a balloon took or that are broken. /proc/kpageflags tells them from zeros that
// are there, and they are faults.
//
// It needs root (CAP_SYS_RAWIO), a kernel since 4.11, and that the kernel is not
// locked down. Source: fs/proc/kcore.c.
package kcore

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/elfhdr"
	"github.com/ovmigrate/ovmigrate/vmi/internal/elfnote"
	"github.com/ovmigrate/ovmigrate/vmi/internal/segment"
)

// ErrHidden is the cause of a fault at memory that the kernel does not read itself:
// given to a hypervisor by a balloon, or broken.
var ErrHidden = fmt.Errorf("offline or broken memory: %w", vmi.ErrExcluded)

func init() {
	vmi.Register(vmi.Source{Name: "kcore", SniffPath: isKcore, Open: Open})
}

// isKcore says whether path is the kcore file of a procfs.
func isKcore(path string, dir bool) bool {
	var st unix.Statfs_t
	return !dir && filepath.Base(path) == "kcore" && unix.Statfs(path, &st) == nil && st.Type == unix.PROC_SUPER_MAGIC
}

// File is the running machine: a [vmi.Image] and [vmi.Notes]. Its methods are safe
// for concurrent use.
type File struct {
	f     io.ReaderAt
	flags io.ReaderAt // kpageflags, or nil
	t     *segment.Table
	notes []byte
	arch  string
	close func() error
}

// Open opens /proc/kcore, at path, and returns a *File. Options.Writable is an error.
// Errors: fs.ErrPermission without the rights, or if the kernel is locked down;
// vmi.ErrFormat.
func Open(_ context.Context, path string, o *vmi.Options) (vmi.Image, error) {
	if o != nil && o.Writable {
		return nil, fmt.Errorf("open %s: the running kernel cannot be written to", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	file := &File{f: f, close: f.Close}
	if flags, err := os.Open(filepath.Join(filepath.Dir(path), "kpageflags")); err == nil {
		file.flags = flags
		file.close = func() error { return errors.Join(f.Close(), flags.Close()) }
	} else {
		o.Log().Debug("offline memory will read as zeros", "err", err)
	}
	if err := file.parse(); err != nil {
		file.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return file, nil
}

// size bounds offsets in the file, which has none of its own: they are virtual
// addresses less where the kernel's begin.
const size = math.MaxInt64

func (f *File) parse() error {
	read := func(off uint64, n int) ([]byte, error) {
		if off > size-uint64(n) {
			return nil, vmi.ErrTruncated
		}
		b := make([]byte, n)
		_, err := io.ReadFull(io.NewSectionReader(f.f, int64(off), int64(n)), b)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = vmi.ErrTruncated
		}
		return b, err
	}
	progs, machine, err := elfhdr.Read(read, size)
	if err != nil {
		return err
	}
	f.arch = elfhdr.MachineName(machine)
	// Kernels before 4.11 have 0 for all of them.
	for _, p := range progs {
		if p.Type == elf.PT_LOAD && p.Phys != 0 {
			segs, err := elfhdr.Loads(progs, size)
			if err != nil {
				return err
			}
			if f.t, err = segment.New(segs); err != nil {
				return err
			}
			f.notes, err = elfhdr.Notes(read, progs)
			return err
		}
	}
	return fmt.Errorf("%w: no physical addresses (kernels before 4.11 tell none)", vmi.ErrFormat)
}

// Ranges implements [vmi.Memory].
func (f *File) Ranges() []vmi.Range { return f.t.Ranges() }

// ReadPhys implements [vmi.Memory]. Memory that the kernel does not show is a fault
// that wraps ErrHidden.
func (f *File) ReadPhys(p []byte, addr vmi.Phys) (int, error) {
	done := 0
	n, err := f.t.Do(p, addr, func(p []byte, _ int, off uint64) error {
		at := addr + vmi.Phys(done)
		n, err := f.f.ReadAt(p, int64(off))
		n = f.visible(p[:n], at)
		done += n
		switch {
		case n == len(p):
			return nil
		case err == nil:
			return ErrHidden
		case errors.Is(err, fs.ErrClosed):
			return fs.ErrClosed
		}
		return err
	})
	if err != nil && done > n { // a part of the segment that failed
		return done, &vmi.FaultError{Addr: addr + vmi.Phys(done), Len: len(p) - done, Err: errors.Unwrap(err)}
	}
	return n, err
}

// Bits of /proc/kpageflags (include/uapi/linux/kernel-page-flags.h).
const (
	kpfHWPoison = 1 << 19
	kpfNoPage   = 1 << 20
	kpfOffline  = 1 << 23
)

// visible returns how many bytes of p, read at a, come before the first page that
// the kernel shows as zeros without having read it.
func (f *File) visible(p []byte, a vmi.Phys) int {
	if f.flags == nil {
		return len(p)
	}
	var flags []byte // of all pages, read when there is one of zeros
	first := a / vmi.PageSize
	for n := 0; n < len(p); {
		at := a + vmi.Phys(n)
		end := min(len(p), n+vmi.PageSize-int(at%vmi.PageSize))
		if zero(p[n:end]) {
			if flags == nil {
				flags = make([]byte, 8*((a+vmi.Phys(len(p)-1))/vmi.PageSize-first+1))
				k, _ := f.flags.ReadAt(flags, int64(first)*8)
				clear(flags[k:])
			}
			v := binary.NativeEndian.Uint64(flags[8*(at/vmi.PageSize-first):])
			if v&(kpfHWPoison|kpfNoPage|kpfOffline) != 0 {
				return n
			}
		}
		n = end
	}
	return len(p)
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// Machine returns the architecture as uname -m has it.
func (f *File) Machine() string { return f.arch }

// VMCoreInfo implements [vmi.Notes]; since Linux 4.19.
func (f *File) VMCoreInfo() []byte { return elfnote.VMCoreInfo(f.notes) }

// Close closes the file.
func (f *File) Close() error { return f.close() }
