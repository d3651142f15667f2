package kernel

import (
	"fmt"

	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// MM is a user address space: an mm_struct, as it was when it was read.
type MM struct {
	k    *Kernel
	Addr Addr // of the mm_struct
	mmFields
	tables paging.Tables
}

type mmFields struct {
	PGD        Addr     `k:"pgd"`
	MapCount   int32    `k:"map_count"`
	Flags      uint64   `k:"flags.__mm_flags[0]|flags.__mm_flags|flags"`
	DefFlags   VMFlags  `k:"def_flags"` // of new mappings: mlockall(MCL_FUTURE)
	TaskSize   UserAddr `k:"task_size"`
	StartCode  UserAddr `k:"start_code"`
	EndCode    UserAddr `k:"end_code"`
	StartData  UserAddr `k:"start_data"`
	EndData    UserAddr `k:"end_data"`
	StartBrk   UserAddr `k:"start_brk"`
	Brk        UserAddr `k:"brk"`
	StartStack UserAddr `k:"start_stack"`
	ArgStart   UserAddr `k:"arg_start"`
	ArgEnd     UserAddr `k:"arg_end"`
	EnvStart   UserAddr `k:"env_start"`
	EnvEnd     UserAddr `k:"env_end"`
	VDSO       UserAddr `k:"context.vdso"`
	VDSOImage  Addr     `k:"context.vdso_image,opt"` // x86-64
	ExeFile    Addr     `k:"exe_file"`
	AuxvAddr   Addr     `k:"&saved_auxv"`
	// Resident pages: atomic counters, since 6.2 sums that each processor adds to now
	// and then, so that they may be below zero.
	FileRSS  int64 `k:"rss_stat.count[0].counter|rss_stat[0].count"`
	AnonRSS  int64 `k:"rss_stat.count[1].counter|rss_stat[1].count"`
	ShmemRSS int64 `k:"rss_stat.count[3].counter|rss_stat[3].count"`

	Users int32 `k:"mm_users.counter"`
	// Membarrier registrations, MEMBARRIER_STATE_*.
	Membarrier uint32 `k:"membarrier_state.counter,opt"`
	MTree      Addr   `k:"&mm_mt,opt"`
	MMap       Addr   `k:"mmap,opt"` // first VMA, before the maple tree
	IOCtxTable Addr   `k:"ioctx_table,opt"`
}

var mmLayout = LayoutOf[mmFields]("mm_struct")

// MM returns the user address space of t. The error wraps ErrNoMM for kernel
// threads and tasks that have exited.
func (t *Task) MM() (*MM, error) {
	if t.MMAddr == 0 || t.IsKernelThread() {
		return nil, fmt.Errorf("pid %d (%s): %w", t.PID, t.Comm, ErrNoMM)
	}
	return t.k.MMAt(t.MMAddr)
}

// MMAt reads the mm_struct at a.
func (k *Kernel) MMAt(a Addr) (*MM, error) {
	m := &MM{k: k, Addr: a, tables: k.tables}
	if err := mmLayout.LoadInto(k, a, &m.mmFields); err != nil {
		return nil, err
	}
	root, err := k.Phys(m.PGD)
	if err != nil {
		return nil, &PathError{Path: "mm_struct->pgd", Addr: a, Err: err}
	}
	m.tables.Root = root
	m.tables.Upper = false
	return m, nil
}

// RSS returns the number of resident pages as /proc/PID/stat shows it. Source:
// include/linux/mm.h:get_mm_rss.
func (m *MM) RSS() int64 { return max(m.FileRSS, 0) + max(m.AnonRSS, 0) + max(m.ShmemRSS, 0) }

// Kernel returns the kernel that m was read from.
func (m *MM) Kernel() *Kernel { return m.k }

// Tables returns m's page tables, for walking.
func (m *MM) Tables() paging.Tables { return m.tables }

// Phys returns where the page that holds user address a lies in guest-physical
// memory. The error is a *paging.NotMappedError if it is not resident.
func (m *MM) Phys(a UserAddr) (vmi.Phys, error) {
	e, err := m.tables.Lookup(uint64(a))
	if err != nil {
		return 0, err
	}
	if !e.Present() {
		return 0, &paging.NotMappedError{VA: uint64(a), Level: int(e.Level), Entry: e.Raw}
	}
	return e.Phys() + vmi.Phys(uint64(a)&(e.Size-1)), nil
}

// ReadAt fills p from resident user memory at a. Pages that are not resident
// (never touched, swapped out, or file pages not mapped yet) give an error that
// wraps *paging.NotMappedError; see ReadUser for what the process itself would see.
func (m *MM) ReadAt(p []byte, a UserAddr) (n int, err error) {
	for n < len(p) {
		phys, err := m.Phys(a + UserAddr(n))
		if err != nil {
			return n, fmt.Errorf("user memory at %s: %w", a+UserAddr(n), err)
		}
		c := min(len(p)-n, int(vmi.PageSize-(uint64(a)+uint64(n))%vmi.PageSize))
		read, err := m.k.mem.ReadPhys(p[n:n+c], phys)
		n += read
		if err != nil {
			return n, fmt.Errorf("user memory at %s: %w", a+UserAddr(n), err)
		}
	}
	return n, nil
}

// maxAuxv is more than AT_VECTOR_SIZE of any x86 kernel (56 words in 6.18).
const maxAuxv = 64

// Auxv returns the auxiliary vector that the kernel gave the process, as pairs of
// words, up to and with AT_NULL. Source: mm_struct.saved_auxv, /proc/PID/auxv.
func (m *MM) Auxv() ([]uint64, error) {
	t, err := m.k.types.Struct("mm_struct")
	if err != nil {
		return nil, err
	}
	f, err := t.Lookup("saved_auxv")
	if err != nil {
		return nil, err
	}
	size, err := f.Type.SizeOf()
	if err != nil {
		return nil, err
	}
	b, err := m.k.bytesAt(m.AuxvAddr, min(size, 8*maxAuxv), nil)
	if err != nil {
		return nil, err
	}
	var words []uint64
	for i := 0; i+16 <= len(b); i += 16 {
		key, val := loadLE(b[i:i+8]), loadLE(b[i+8:i+16])
		words = append(words, key, val)
		if key == 0 {
			break
		}
	}
	return words, nil
}
