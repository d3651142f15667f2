package kernel

import (
	"fmt"
)

// Name returns the last column of /proc/PID/maps for a mapping of m: the path of
// the mapped file with newlines as \012, "[heap]", "[stack]", "[vdso]",
// "[anon:name]" and such, or "". Source: fs/proc/task_mmu.c:get_vma_name.
func (m *MM) Name(v *VMA) (string, error) {
	if v.File != 0 {
		return m.fileName(v)
	}
	if s, err := m.SpecialName(v); s != "" || err != nil {
		return s, err
	}
	switch {
	case m.isHeap(v):
		return "[heap]", nil
	case v.Start <= m.StartStack && v.End >= m.StartStack:
		return "[stack]", nil
	case v.AnonName != 0:
		s, err := m.anonName(v)
		return "[anon:" + s + "]", err
	}
	return "", nil
}

func (m *MM) fileName(v *VMA) (string, error) {
	if v.AnonName != 0 && m.k.namesShared() { // prctl(PR_SET_VMA) on shared memory
		s, err := m.anonName(v)
		return "[anon_shmem:" + s + "]", err
	}
	f, err := m.k.FileAt(v.File)
	if err != nil {
		return "", err
	}
	p, err := f.UserPath()
	if err != nil {
		return "", err
	}
	n, err := m.k.PathName(p, Path{})
	return n.Escape("\n"), err
}

// namesShared says whether mappings of files have names too, as since 6.2. Before,
// the name's place served to find the mappings of a file.
func (k *Kernel) namesShared() bool {
	name, err := k.offsetOf("vm_area_struct", "anon_name")
	if err != nil {
		return false
	}
	shared, err := k.offsetOf("vm_area_struct", "shared")
	return err == nil && name != shared
}

// isHeap is fs/proc/task_mmu.c:is_heap up to 6.5, and include/linux/mm.h:
// vma_is_initial_heap since, which leaves out mappings that only touch the heap.
func (m *MM) isHeap(v *VMA) bool {
	if v.Start < m.Brk && v.End > m.StartBrk {
		return true
	}
	return !m.k.strictHeap() && v.Start <= m.Brk && v.End >= m.StartBrk
}

// strictHeap tells the two rules apart by a member that came at about the same time.
func (k *Kernel) strictHeap() bool {
	_, err := k.offsetOf("vm_area_struct", "vm_lock_seq|vm_refcnt")
	return err == nil
}

type anonVMAName struct {
	Name Addr `k:"&name"`
}

var anonVMANameLayout = LayoutOf[anonVMAName]("anon_vma_name")

// maxAnonName is ANON_VMA_NAME_MAX_LEN.
const maxAnonName = 80

func (m *MM) anonName(v *VMA) (string, error) {
	n, err := anonVMANameLayout.Load(m.k, v.AnonName)
	if err != nil {
		return "", fmt.Errorf("name of mapping at %s: %w", v.Start, err)
	}
	return m.k.CString(n.Name, maxAnonName)
}
