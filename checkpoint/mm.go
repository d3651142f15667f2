package checkpoint

import (
	"encoding/binary"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// Status bits of a mapping in CRIU's images (criu/include/image.h).
const (
	vmaRegular     = 1 << 0
	vmaStack       = 1 << 1
	vmaVDSO        = 1 << 3
	vmaHeap        = 1 << 5
	vmaFilePrivate = 1 << 6
	vmaFileShared  = 1 << 7
	vmaAnonShared  = 1 << 8
	vmaAnonPrivate = 1 << 9
	vmaVVAR        = 1 << 12
)

// mmap(2) flags of x86-64 Linux.
const (
	mapShared    = 0x01
	mapPrivate   = 0x02
	mapAnonymous = 0x20
	mapGrowsDown = 0x100
	mapLocked    = 0x2000
	mapNoReserve = 0x4000
	mapHugeTLB   = 0x40000
)

// madvise(2) advice that is remembered in the flags of a mapping.
var madvice = []struct {
	flag   kernel.VMFlags
	advice uint
}{
	{kernel.VMRandRead, 1}, {kernel.VMSeqRead, 2}, {kernel.VMDontCopy, 10}, {kernel.VMMergeable, 12},
	{kernel.VMHugePage, 14}, {kernel.VMNoHugePage, 15}, {kernel.VMDontDump, 16}, {kernel.VMWipeOnFork, 18},
}

// maxAuxvWords is how much of the auxiliary vector CRIU has room for.
const maxAuxvWords = 44

// memory encodes the address space and finds the pages to save.
func (c *collector) memory() (*mm.MmEntry, error) {
	m := c.mm
	vmas, err := m.VMAList()
	if err != nil {
		return nil, err
	}
	auxv, err := m.Auxv()
	if err != nil {
		return nil, err
	}
	exe, err := c.files.mapped(m.ExeFile)
	if err != nil {
		return nil, fmt.Errorf("exe: %w", err)
	}
	u := func(a kernel.UserAddr) *uint64 { return new(uint64(a)) }
	e := &mm.MmEntry{
		MmStartCode: u(m.StartCode), MmEndCode: u(m.EndCode), MmStartData: u(m.StartData), MmEndData: u(m.EndData),
		MmStartStack: u(m.StartStack), MmStartBrk: u(m.StartBrk), MmBrk: u(m.Brk),
		MmArgStart: u(m.ArgStart), MmArgEnd: u(m.ArgEnd), MmEnvStart: u(m.EnvStart), MmEnvEnd: u(m.EnvEnd),
		ExeFileId: &exe, MmSavedAuxv: auxv[:min(len(auxv), maxAuxvWords)],
		Dumpable: new(int32(m.Flags & 3)),
	}
	const disableTHP = 24 // MMF_DISABLE_THP
	if m.Flags>>disableTHP&1 != 0 {
		e.ThpDisabled = new(true)
	}
	for i := range vmas {
		v := &vmas[i]
		if err := c.vma(e, v); err != nil {
			return nil, fmt.Errorf("mapping %s-%s: %w", v.Start, v.End, err)
		}
	}
	return e, nil
}

// vma encodes one mapping by what kind it is. Source:
// criu/proc_parse.c:handle_vma.
func (c *collector) vma(e *mm.MmEntry, v *kernel.VMA) error {
	what := fmt.Sprintf("mapping %s-%s", v.Start, v.End)
	special, err := c.mm.SpecialName(v)
	if err != nil {
		return err
	}
	if v.UFFD != 0 {
		c.issues.refuse(what, "is registered with userfaultfd")
	}
	c.vmaLosses(v, what)
	ve := &vma.VmaEntry{
		Start: new(uint64(v.Start)), End: new(uint64(v.End)), Pgoff: new(uint64(0)), Shmid: new(uint64(0)),
		Prot: new(uint32(v.Flags & (kernel.VMRead | kernel.VMWrite | kernel.VMExec))), Flags: new(c.mapFlags(v)),
		Status: new(uint32(vmaRegular)), Fd: new(int64(-1)), Madv: c.madv(v),
	}
	switch {
	case special == "[vdso]":
		*ve.Status |= vmaVDSO | vmaAnonPrivate
		*ve.Flags |= mapAnonymous
		err = c.vdso(v)
	case special == "[vvar]" || special == "[vvar_vclock]":
		if last := len(e.Vmas) - 1; last >= 0 && *e.Vmas[last].Status&vmaVVAR != 0 && *e.Vmas[last].End == *ve.Start {
			e.Vmas[last].End = ve.End // CRIU knows one vvar mapping
			return nil
		}
		*ve.Status |= vmaVVAR | vmaAnonPrivate
		*ve.Flags |= mapAnonymous
	case special != "":
		c.issues.refuse(what, "is the kernel's own mapping %s", special)
		return nil
	case v.File != 0:
		err = c.fileVMA(v, ve, what)
	case v.Flags&(kernel.VMIO|kernel.VMPFNMap|kernel.VMMixedMap) != 0:
		c.issues.refuse(what, "maps a device or kernel memory")
		return nil
	default:
		c.anonVMA(v, ve, what)
	}
	if err != nil {
		return err
	}
	e.Vmas = append(e.Vmas, ve)
	return nil
}

func (c *collector) mapFlags(v *kernel.VMA) uint32 {
	f := uint32(mapPrivate)
	if v.Flags&kernel.VMMayShare != 0 {
		f = mapShared
	}
	for _, x := range []struct {
		vm  kernel.VMFlags
		mmf uint32
	}{{kernel.VMGrowsDown, mapGrowsDown}, {kernel.VMLocked, mapLocked}, {kernel.VMNoReserve, mapNoReserve}} {
		if v.Flags&x.vm != 0 {
			f |= x.mmf
		}
	}
	return f
}

func (c *collector) madv(v *kernel.VMA) *uint64 {
	var bits uint64
	for _, m := range madvice {
		if v.Flags&m.flag != 0 {
			bits |= 1 << m.advice
		}
	}
	if bits == 0 {
		return nil
	}
	return &bits
}

func (c *collector) anonVMA(v *kernel.VMA, ve *vma.VmaEntry, what string) {
	*ve.Status |= vmaAnonPrivate
	*ve.Flags |= mapAnonymous
	if v.Start < c.mm.Brk && v.End > c.mm.StartBrk {
		*ve.Status |= vmaHeap
	}
	if v.Start <= c.mm.StartStack && c.mm.StartStack < v.End {
		*ve.Status |= vmaStack
	}
	if v.Flags&kernel.VMHugeTLB != 0 {
		c.issues.refuse(what, "is hugetlb memory")
	}
	c.areas = append(c.areas, area{start: uint64(v.Start), end: uint64(v.End), what: what})
}

// fileVMA encodes a mapping of a file, or of shared memory, which is one to the
// kernel.
func (c *collector) fileVMA(v *kernel.VMA, ve *vma.VmaEntry, what string) error {
	f, err := c.k.FileAt(v.File)
	if err != nil {
		return err
	}
	*ve.Pgoff = v.PgOff * pageSize
	shared := v.Flags&kernel.VMMayShare != 0
	if shared && f.Kind == kernel.KindShm {
		*ve.Status |= vmaAnonShared
		*ve.Flags |= mapAnonymous
		*ve.Shmid = f.Inode.Ino
		c.shmem[f.Inode.Ino] = f
		return nil
	}
	if v.Flags&(kernel.VMIO|kernel.VMPFNMap) != 0 {
		c.issues.refuse(what, "maps a device")
		return nil
	}
	id, err := c.files.mapped(v.File)
	if err != nil {
		return err
	}
	*ve.Shmid = uint64(id)
	if shared {
		*ve.Status |= vmaFileShared
		if v.Flags&kernel.VMMayWrite != 0 {
			const ordwr = 2
			ve.Fdflags = new(uint32(ordwr))
		}
		return nil
	}
	*ve.Status |= vmaFilePrivate
	c.areas = append(c.areas, area{start: uint64(v.Start), end: uint64(v.End), private: true, what: what})
	return nil
}

// maxVDSO is far more than the two or three pages that a vDSO has.
const maxVDSO = 64 * pageSize

// vdso plans the pages of the vDSO, all of which CRIU wants, from the process
// where they are mapped and else from the kernel's own copy.
func (c *collector) vdso(v *kernel.VMA) error {
	if c.mm.VDSOImage == 0 {
		return fmt.Errorf("vDSO without an image")
	}
	data, err := c.k.VDSOData(c.mm.VDSOImage)
	if err != nil {
		return err
	}
	a := area{start: uint64(v.Start), end: uint64(v.End), what: "vDSO"}
	if a.end-a.start > maxVDSO {
		return fmt.Errorf("%w: vDSO of %d bytes", kernel.ErrCorrupt, a.end-a.start)
	}
	for i := uint64(0); i < (a.end-a.start)/pageSize; i++ {
		pa, err := c.mm.Phys(v.Start + kernel.UserAddr(i*pageSize))
		if err != nil {
			if pa, err = c.k.Phys(data.Add(int(i * pageSize))); err != nil {
				return err
			}
		}
		a.vdso = append(a.vdso, uint64(pa)/pageSize)
	}
	c.areas = append(c.areas, a)
	return nil
}

// userU64 reads a word of the process's memory.
func (c *collector) userU64(a kernel.UserAddr) (uint64, error) {
	var b [8]byte
	if _, err := c.mm.ReadAt(b[:], a); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}
