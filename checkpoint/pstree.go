package checkpoint

import (
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
)

// identity encodes the process's place among others, and checks that it lives in
// the namespaces that a restorer has.
func (c *collector) identity() error {
	t := c.leader
	nums, err := t.NSPIDs()
	if err != nil {
		return err
	}
	pgid, err := t.PGID()
	if err != nil {
		return err
	}
	sid, err := t.SID()
	if err != nil {
		return err
	}
	if len(nums) > 1 {
		c.issues.refuse("pid namespace", "is not the guest's first")
	}
	c.out.pstree = &pstree.PstreeEntry{
		Pid: new(uint32(nums[len(nums)-1].PID)), Ppid: new(uint32(0)), Pgid: new(uint32(pgid)), Sid: new(uint32(sid)),
	}
	c.foreignSession = sid != t.PID
	if err := c.namespaces(); err != nil {
		return err
	}
	if err := c.children(); err != nil {
		return err
	}
	c.out.ids = kobjIDs(processObjID)
	c.out.inventory = &inventory.InventoryEntry{
		ImgVersion: new(uint32(2)), FdinfoPerId: new(true), NsPerId: new(true),
		RootIds: kobjIDs(rootObjID), Lsmtype: inventory.Lsmtype_NO_LSM.Enum(),
		// Nothing was locked, so the restorer has nothing to unlock.
		NetworkLockMethod: new(uint32(networkLockSkip)),
		PluginsEntry:      &inventory.PluginsEntry{},
	}
	sa, err := t.SignalAttr()
	if err != nil {
		return err
	}
	const stopStopped = 1 // SIGNAL_STOP_STOPPED
	c.wasStopped = sa.Flags&stopStopped != 0 && !c.opts.stopIsOurs
	return nil
}

// networkLockSkip is CRIU's "no lock" since 3.19; older ones take no action on it
// either.
const networkLockSkip = 2

// kobjIDs returns the identifiers of the objects that processes may share. The
// namespaces are the restorer's own where they equal the inventory's.
func kobjIDs(id uint32) *criu_core.TaskKobjIdsEntry {
	const ns = 1
	return &criu_core.TaskKobjIdsEntry{
		VmId: &id, FilesId: &id, FsId: &id, SighandId: &id,
		PidNsId: new(uint32(ns)), NetNsId: new(uint32(ns)), IpcNsId: new(uint32(ns)), UtsNsId: new(uint32(ns)),
		MntNsId: new(uint32(ns)), UserNsId: new(uint32(ns)), CgroupNsId: new(uint32(ns)), TimeNsId: new(uint32(ns)),
	}
}

// children refuses a process that is more than one: a tree is not carried yet.
func (c *collector) children() error {
	for t, err := range c.leader.Children() {
		if err != nil {
			return err
		}
		c.issues.refuse("child process", "%d (%s) is not carried", t.PID, t.Comm)
	}
	return nil
}

// shares refuses what the process has in common with others that are not saved.
func (c *collector) shares() error {
	users, err := c.leader.FilesUsers()
	if err != nil {
		return err
	}
	if users > len(c.out.order) {
		c.issues.refuse("descriptor table", "is shared with another process")
	}
	if int(c.mm.Users) <= len(c.out.order) {
		return nil
	}
	// Readers of /proc count as users of the address space, so look who it is.
	for t, err := range c.k.Tasks() {
		if err == nil && t.MMAddr == c.mm.Addr && t.TGID != c.leader.TGID {
			c.issues.refuse("address space", "is shared with process %d (%s)", t.PID, t.Comm)
		}
	}
	return nil
}

// restoreOptions are the options that restore needs for the process. One whose
// session another process leads joins the restorer's: without the option CRIU makes
// a stand-in for the leader and then waits for it forever. Control groups need none:
// by default CRIU makes a group that is missing, and leaves one that is there as it
// is (--manage-cgroups=full would change its settings).
func (c *collector) restoreOptions() []string {
	var all []string
	if c.foreignSession {
		all = append(all, "--shell-job")
	}
	if len(c.out.locks) > 0 {
		all = append(all, "--file-locks")
	}
	return all
}
