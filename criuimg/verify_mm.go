package criuimg

import (
	"bytes"
	"errors"
	"io/fs"
	"math/bits"
	"path"
	"sort"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
)

// Bits of vma_entry.status (CRIU include/image.h).
const (
	VMARegular     = 1 << 0 // is restored; entries without it are ignored
	VMAStack       = 1 << 1
	VMAVsyscall    = 1 << 2
	VMAVdso        = 1 << 3
	VMAHeap        = 1 << 5
	VMAFilePrivate = 1 << 6
	VMAFileShared  = 1 << 7
	VMAAnonShared  = 1 << 8
	VMAAnonPrivate = 1 << 9
	VMASysVIPC     = 1 << 10
	VMASocket      = 1 << 11
	VMAVvar        = 1 << 12
	VMAAioRing     = 1 << 13
	VMAMemfd       = 1 << 14
	VMAShadowStack = 1 << 15 // CRIU 4.x
	VMAGuard       = 1 << 16 // CRIU 4.2: a guard region inside another entry
	VMAUprobes     = 1 << 17 // CRIU 4.2

	vmaRuntime = 0x1f << 27 // never in an image
)

const (
	protRead = 1
	protExec = 4

	taskSize   = 1 << 56 // end of user addresses with five-level paging
	auxvWords  = 44      // AT_VECTOR_SIZE of CRIU on x86-64
	mapShared  = 1
	mapPrivate = 2
)

// findVMA returns the restored VMA that contains addr.
func findVMA(m *mm.MmEntry, addr uint64) *vma.VmaEntry {
	vmas := m.GetVmas()
	i := sort.Search(len(vmas), func(i int) bool { return vmas[i].GetEnd() > addr })
	if i < len(vmas) && vmas[i].GetStart() <= addr && vmas[i].GetStatus()&VMARegular != 0 {
		return vmas[i]
	}
	return nil
}

// mm checks an address space and the pages that belong to it.
func (v *verifier) mm(t *task) {
	pid := uint64(t.e.GetPid())
	name, m := MM.FileName(pid), t.mm
	v.wantFile(name, "exe_file_id", m.GetExeFileId(), fdinfo.FdTypes_REG)
	if n := len(m.GetMmSavedAuxv()); n > auxvWords {
		v.errorf(name, "%d words of auxv, CRIU takes %d", n, auxvWords)
	}
	if m.GetDumpable() < 0 || m.GetDumpable() > 2 {
		v.errorf(name, "dumpable is %d", m.GetDumpable())
	}
	// The order that the kernel wants from PR_SET_MM_MAP.
	for _, p := range []struct {
		what       string
		start, end uint64
		strict     bool
	}{
		{"code", m.GetMmStartCode(), m.GetMmEndCode(), true},
		{"data", m.GetMmStartData(), m.GetMmEndData(), false},
		{"brk", m.GetMmStartBrk(), m.GetMmBrk(), false},
		{"arg", m.GetMmArgStart(), m.GetMmArgEnd(), false},
		{"env", m.GetMmEnvStart(), m.GetMmEnvEnd(), false},
	} {
		if p.start > p.end || p.strict && p.start == p.end {
			v.errorf(name, "mm_%s: end %#x is not behind start %#x", p.what, p.end, p.start)
		}
	}
	if len(m.GetVmas()) == 0 {
		v.errorf(name, "no VMAs")
	}
	sorted := v.vmas(name, m)
	if sorted {
		v.memory(t)
	}
}

// vmas checks each VMA and reports whether they are sorted.
func (v *verifier) vmas(name string, m *mm.MmEntry) bool {
	var end uint64
	sorted := true
	for i, a := range m.GetVmas() {
		start, status := a.GetStart(), a.GetStatus()
		if status&(VMAGuard|VMAUprobes) != 0 {
			continue // lies inside another one
		}
		if start%PageSize != 0 || a.GetEnd()%PageSize != 0 || start >= a.GetEnd() {
			v.errorf(name, "VMA %d: %#x-%#x is empty or not aligned", i, start, a.GetEnd())
			sorted = false
		}
		if start < end {
			v.errorf(name, "VMA %d: %#x is below the end %#x of the one before", i, start, end)
			sorted = false
		}
		end = a.GetEnd()
		if status&VMARegular != 0 {
			v.vma(name, i, a)
		}
	}
	return sorted
}

func (v *verifier) vma(name string, i int, a *vma.VmaEntry) {
	status, flags := a.GetStatus(), a.GetFlags()
	if status&vmaRuntime != 0 {
		v.errorf(name, "VMA %d: status %#x has bits that only mean something inside CRIU", i, status)
	}
	if a.GetEnd() > taskSize {
		v.errorf(name, "VMA %d: ends at %#x, above user addresses", i, a.GetEnd())
	}
	if s := flags & (mapShared | mapPrivate); s != mapShared && s != mapPrivate {
		v.errorf(name, "VMA %d: flags %#x are not one of MAP_SHARED, MAP_PRIVATE", i, flags)
	}
	class := status & (VMAFilePrivate | VMAFileShared | VMAAnonShared | VMAAnonPrivate)
	if bits.OnesCount32(class) != 1 && status&(VMASocket|VMAAioRing) == 0 {
		v.errorf(name, "VMA %d: status %#x is not one of file or anonymous, private or shared", i, status)
	}
	if a.GetProt()&^7 != 0 {
		v.warnf(name, "VMA %d: prot %#x", i, a.GetProt())
	}
	size := a.GetEnd() - a.GetStart()
	if a.GetPgoff()%PageSize != 0 || a.GetPgoff()+size < size {
		v.errorf(name, "VMA %d: pgoff %#x is no page offset in bytes", i, a.GetPgoff())
		return
	}
	switch {
	case class&(VMAFilePrivate|VMAFileShared) != 0 && status&VMAMemfd != 0:
		v.wantFile(name, "shmid of VMA "+utoa(uint32(i)), uint32(a.GetShmid()), fdinfo.FdTypes_MEMFD)
	case class&(VMAFilePrivate|VMAFileShared) != 0 && status&VMASocket == 0:
		v.wantFile(name, "shmid of VMA "+utoa(uint32(i)), uint32(a.GetShmid()), fdinfo.FdTypes_REG)
	case class == VMAAnonShared:
		v.sharedBy[a.GetShmid()] = max(v.sharedBy[a.GetShmid()], a.GetPgoff()+size)
		if !v.s.Has(PagemapShmem, a.GetShmid()) {
			v.add(Error, PagemapShmem.FileName(a.GetShmid()), fs.ErrNotExist, "missing: %s, VMA %d is shared memory", name, i)
		}
	}
}

// pages opens a pagemap with its pages file and checks that they match.
func (v *verifier) pages(k *Kind, key uint64) *PageReader {
	name := k.FileName(key)
	r, err := v.s.openPages(k, key)
	if err != nil {
		v.bad[name] = true
		file := name
		var fe *FormatError
		var pe *fs.PathError
		if errors.As(err, &fe) {
			file = fe.File
		} else if errors.As(err, &pe) && path.Base(pe.Path) == pe.Path {
			file = pe.Path
		}
		v.add(Error, file, err, "%s: %v", name, err)
		return nil
	}
	pages := Pages.FileName(uint64(r.PagesID()))
	if other := v.pagesIDs[r.PagesID()]; other != "" {
		v.errorf(name, "%s also belongs to %s", pages, other)
	}
	v.pagesIDs[r.PagesID()] = name
	if got := v.s.byName[pages].Size; got != r.Size() {
		v.add(Error, pages, &FormatError{File: pages, Offset: min(got, r.Size()), Err: ErrPagemap},
			"%d bytes, %s counts %d", got, name, r.Size())
	}
	return r
}

// memory checks which pages of a process are there.
func (v *verifier) memory(t *task) {
	pid := uint64(t.e.GetPid())
	name := Pagemap.FileName(pid)
	if !v.readable(Pagemap, pid, "every living task has one") {
		return
	}
	r := v.pages(Pagemap, pid)
	if r == nil {
		return
	}
	defer r.Close()
	if len(r.Runs()) == 0 {
		v.errorf(name, "no pages: CRIU crashes on an empty pagemap")
	}
	vmas := t.mm.GetVmas()
	i := 0
	for _, run := range r.Runs() {
		if run.Flags&(PageParent|PagePresent) == 0 {
			v.warnf(name, "pages at %#x have flags %#x: neither here nor in the parent", run.Vaddr, run.Flags)
		}
		// A run may go on from one VMA into the next.
		for at := run.Vaddr; at < run.End(); at = vmas[i].GetEnd() {
			for i < len(vmas) && (vmas[i].GetEnd() <= at || vmas[i].GetStatus()&(VMAGuard|VMAUprobes) != 0) {
				i++
			}
			if i == len(vmas) || vmas[i].GetStart() > at || vmas[i].GetStatus()&(VMAFilePrivate|VMAAnonPrivate) == 0 || vmas[i].GetStatus()&VMARegular == 0 {
				v.errorf(name, "pages at %#x lie in no private VMA", at)
				break
			}
			if vmas[i].GetStatus()&VMAVvar != 0 {
				v.errorf(name, "pages at %#x lie in vvar, which is the kernel's", at)
			}
		}
		if i == len(vmas) {
			break
		}
	}
	v.vdso(t, r)
}

// vdso checks that the vDSO is complete and where restore looks for it.
func (v *verifier) vdso(t *task, r *PageReader) {
	name := MM.FileName(uint64(t.e.GetPid()))
	vmas := t.mm.GetVmas()
	for i, a := range vmas {
		if a.GetStatus()&VMAVdso == 0 {
			continue
		}
		beside := false
		for _, j := range []int{i - 1, i + 1} {
			if j >= 0 && j < len(vmas) && vmas[j].GetStatus()&VMAVvar != 0 {
				beside = beside || vmas[j].GetEnd() == a.GetStart() || vmas[j].GetStart() == a.GetEnd()
			}
		}
		if !beside {
			v.errorf(name, "vDSO at %#x has no vvar beside it: CRIU crashes", a.GetStart())
		}
		for at := a.GetStart(); at < a.GetEnd(); {
			run, ok := r.Find(at)
			if !ok {
				v.errorf(Pagemap.FileName(uint64(t.e.GetPid())), "vDSO page %#x is missing", at)
				break
			}
			at = run.End()
		}
		magic := make([]byte, 4)
		if _, err := r.ReadMem(magic, a.GetStart()); err != nil {
			if !errors.Is(err, ErrNoPage) {
				v.add(Error, Pages.FileName(uint64(r.PagesID())), err, "vDSO at %#x: %v", a.GetStart(), err)
			}
		} else if !bytes.Equal(magic, []byte("\x7fELF")) {
			v.errorf(Pages.FileName(uint64(r.PagesID())), "vDSO at %#x starts with %x, not an ELF header", a.GetStart(), magic)
		}
	}
}

// sharedMemory checks the pagemaps of shared objects against their sizes, which
// VMAs, memfd and System V images have told.
func (v *verifier) sharedMemory() {
	v.sharedObjects()
	for _, id := range v.s.Keys(PagemapShmem) {
		name := PagemapShmem.FileName(id)
		if v.bad[name] {
			continue
		}
		r := v.pages(PagemapShmem, id)
		if r == nil {
			continue
		}
		size, known := v.sharedBy[id]
		for _, run := range r.Runs() {
			if known && run.End() > (size+PageSize-1)&^(PageSize-1) {
				v.errorf(name, "pages up to %#x, the object has %#x bytes", run.End(), size)
				break
			}
		}
		r.Close()
	}
}
