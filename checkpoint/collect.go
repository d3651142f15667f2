package checkpoint

import (
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/cgroup"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	file_lock "github.com/checkpoint-restore/go-criu/v8/crit/images/file-lock"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timens"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// Identifiers of the only process of a set. The inventory's differ, as CRIU takes
// equal ones for a damaged set.
const (
	rootObjID    = 1
	processObjID = 2
)

// collector gathers the state of one process, as messages ready to be written.
type collector struct {
	k      *kernel.Kernel
	opts   Options
	issues issues
	leader *kernel.Task
	mm     *kernel.MM
	now    kernel.Clocks
	held   bool // the threads are off the CPU and stay there

	wasStopped     bool          // by the guest, before we came
	foreignSession bool          // the leader of its session is another process
	external       []string      // keys of files that lead out of the process
	cgSet          uint32        // 0: none
	lockAddrs      []kernel.Addr // of out.locks
	cpus           int32         // that a process of the guest may run on, 0: not known yet
	files          *fileTable
	areas          []area
	shmem          map[uint64]*kernel.File // anonymous shared memory, by inode
	filters        map[kernel.Addr]uint32  // newest seccomp filter -> index of the oldest of its chain

	out images
}

// images is everything but page contents.
type images struct {
	inventory *inventory.InventoryEntry
	pstree    *pstree.PstreeEntry
	ids       *criu_core.TaskKobjIdsEntry
	cores     map[uint32]*criu_core.CoreEntry // by thread number in the images
	order     []uint32                        // of the cores, leader first
	mm        *mm.MmEntry
	fs        *fs.FsEntry
	fdinfo    []*fdinfo.FdinfoEntry
	files     []*fdinfo.FileEntry
	ttys      []*tty.TtyInfoEntry
	pipes     []pipeData
	locks     []*file_lock.FileLockEntry
	timens    *timens.TimensEntry
	cgroup    *cgroup.CgroupEntry
	seccomp   *seccomp.SeccompEntry
}

// collect reads the state of the process that t leads.
func collect(k *kernel.Kernel, t *kernel.Task, held bool, opts Options) (*collector, error) {
	c := &collector{k: k, opts: opts, leader: t, held: held, shmem: make(map[uint64]*kernel.File), filters: make(map[kernel.Addr]uint32)}
	c.issues.pid = t.PID
	c.files = newFileTable(c)
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"address space", c.openMM},
		{"clocks", c.clocks},
		{"namespaces", c.identity},
		{"cgroups", c.cgroups},
		{"open files", c.openFiles},
		{"memory map", func() (err error) { c.out.mm, err = c.memory(); return err }},
		{"threads", c.threads},
		{"sharing", c.shares},
	} {
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("pid %d (%s): %s: %w", t.PID, t.Comm, step.name, err)
		}
	}
	c.out.files = c.files.entries
	c.out.ttys = c.files.ttys
	c.out.pipes = c.files.pipes
	return c, nil
}

func (c *collector) openMM() (err error) {
	c.mm, err = c.leader.MM()
	if err == nil && c.mm.IOCtxTable != 0 {
		c.issues.refuse("aio", "has asynchronous I/O contexts (io_setup)")
	}
	return err
}

func (c *collector) clocks() (err error) {
	if c.now, err = c.k.Clocks(); err != nil {
		return err
	}
	return c.timeNamespace()
}

// threads collects every thread of the process.
func (c *collector) threads() error {
	acts, err := c.leader.SigActions()
	if err != nil {
		return err
	}
	shared, err := c.leader.PendingProcess()
	if err != nil {
		return err
	}
	c.out.cores = make(map[uint32]*criu_core.CoreEntry)
	for t, err := range c.leader.Threads() {
		if err != nil {
			return err
		}
		if err := c.thread(t, acts, shared); err != nil {
			return fmt.Errorf("thread %d: %w", t.PID, err)
		}
	}
	core := c.out.cores[*c.out.pstree.Pid]
	if core == nil {
		return fmt.Errorf("the leader is not among the threads: %w", kernel.ErrCorrupt)
	}
	if c.cgSet != 0 {
		c.out.inventory.RootCgSet = new(uint32(rootCgSet))
	}
	return c.taskCore(core, acts, shared)
}

func (c *collector) thread(t *kernel.Task, acts *[kernel.NSig]kernel.SigAction, shared []kernel.PendingSignal) error {
	switch {
	case t.IsUserWorker():
		c.issues.refuse(thread(t), "is a worker of the kernel's (io_uring or vhost)")
		return nil
	case t.ExitState != 0 || t.Flags&kernel.PFExiting != 0:
		c.issues.refuse(thread(t), "is exiting")
		return nil
	case t.Ptrace != 0:
		c.issues.refuse(thread(t), "is being traced")
	}
	if c.held && t.OnCPU != 0 {
		return fmt.Errorf("is running: %w", kernel.ErrCorrupt)
	}
	core, err := c.threadCore(t, acts, shared)
	if err != nil {
		return err
	}
	nums, err := t.NSPIDs()
	if err != nil {
		return err
	}
	tid := uint32(nums[len(nums)-1].PID)
	c.out.cores[tid] = core
	c.out.order = append(c.out.order, tid)
	c.out.pstree.Threads = append(c.out.pstree.Threads, tid)
	return nil
}
