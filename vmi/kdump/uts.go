package kdump

import (
	"bytes"
	"strconv"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// uts is struct new_utsname: six names of utsLen bytes, NUL-terminated.
type uts [6 * utsLen]byte

const (
	utsSysname = iota
	_
	utsRelease
	utsVersion
	utsMachine
)

func (u *uts) set(i int, s string) { copy(u[i*utsLen:(i+1)*utsLen-1], s) }

func (u *uts) get(i int) string {
	b, _, _ := bytes.Cut(u[i*utsLen:(i+1)*utsLen], []byte{0})
	return string(b)
}

// startKernelMap is where x86-64 maps the kernel image, less its place in memory
// (arch/x86/include/asm/page_64_types.h: __START_KERNEL_map).
const startKernelMap = 0xffffffff80000000

// readUTS returns the name of the guest's kernel: what init_uts_ns holds, which
// makedumpfile puts into its files, too. libkdumpfile, and with it drgn, opens a dump
// only if the release, version and machine are in it.
func readUTS(mem vmi.Memory, info vmcoreinfo, machine string) (u uts) {
	u.set(utsSysname, "Linux")
	u.set(utsRelease, info.get("OSRELEASE"))
	u.set(utsVersion, "(unknown)")
	u.set(utsMachine, machine)
	symbol, err := strconv.ParseUint(info.get("SYMBOL(init_uts_ns)"), 16, 64)
	if err != nil {
		return u
	}
	off, _ := strconv.ParseUint(info.get("OFFSET(uts_namespace.name)"), 10, 16)
	slide := uint64(startKernelMap) - info.physBase()
	if machine != machineX86 {
		// arm64: virtual less physical addresses of the image.
		if slide, err = strconv.ParseUint(info.get("NUMBER(kimage_voffset)"), 0, 64); err != nil {
			return u
		}
	}
	var got uts
	if _, err := mem.ReadPhys(got[:], vmi.Phys(symbol+off-slide)); err != nil {
		return u
	}
	for i := range got {
		if i%utsLen == utsLen-1 && got[i] != 0 {
			return u
		}
	}
	if got.get(utsSysname) != "Linux" || got.get(utsRelease) != u.get(utsRelease) || got.get(utsMachine) != machine {
		return u
	}
	return got
}

// vmcoreinfo is the text of the note.
type vmcoreinfo []byte

// get returns a value, or "".
func (v vmcoreinfo) get(key string) string {
	for line := range bytes.Lines(v) {
		if k, value, ok := bytes.Cut(line, []byte{'='}); ok && string(k) == key {
			return string(bytes.TrimSpace(value))
		}
	}
	return ""
}

// physBase is by how much the kernel image is higher in memory than it was linked for;
// of x86-64 only.
func (v vmcoreinfo) physBase() uint64 {
	n, _ := strconv.ParseInt(v.get("NUMBER(phys_base)"), 10, 64)
	return uint64(n)
}
