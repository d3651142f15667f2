package criuimg

import (
	"io/fs"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/cgroup"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	file_lock "github.com/checkpoint-restore/go-criu/v8/crit/images/file-lock"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mnt"
)

// namespaces checks that every namespace the tasks do not share with the dumper
// has its images, and the cgroup sets and locks that refer to tasks.
func (v *verifier) namespaces() {
	root := v.s.inv.GetRootIds()
	for i, t := range v.order {
		if t.ids == nil {
			continue
		}
		name := IDs.FileName(uint64(t.e.GetPid()))
		if own(t.ids.PidNsId, root.GetPidNsId()) && i == 0 && t.e.GetPid() != 1 {
			v.errorf(name, "pid_ns_id %d is not the dumper's, but the root task has pid %d instead of 1", t.ids.GetPidNsId(), t.e.GetPid())
		}
		for _, ns := range []struct {
			id   *uint32
			root uint32
			kind *Kind
			sev  Severity
		}{
			{t.ids.UtsNsId, root.GetUtsNsId(), Utsns, Error},
			{t.ids.IpcNsId, root.GetIpcNsId(), IPCVar, Error},
			{t.ids.UserNsId, root.GetUserNsId(), Userns, Error},
			{t.ids.TimeNsId, root.GetTimeNsId(), Timens, Error},
			{t.ids.MntNsId, root.GetMntNsId(), Mountpoints, Error},
			{t.ids.NetNsId, root.GetNetNsId(), Netns, Warning},
		} {
			if own(ns.id, ns.root) && !v.s.Has(ns.kind, uint64(*ns.id)) {
				v.add(ns.sev, ns.kind.FileName(uint64(*ns.id)), fs.ErrNotExist, "missing: %s names a namespace that is not the dumper's", name)
			}
		}
		if own(t.ids.MntNsId, root.GetMntNsId()) {
			v.mountIDs(t)
		}
	}
	v.cgroups()
	for _, l := range get[*file_lock.FileLockEntry](v, FileLocks, 0) {
		if v.tasks[uint32(l.GetPid())] == nil {
			v.warnf(FileLocks.FileName(0), "lock of pid %d, which is not in the tree", l.GetPid())
		}
	}
}

// own reports whether an id names another namespace than the dumper's.
func own(id *uint32, root uint32) bool { return id != nil && *id != 0 && *id != root }

// mountIDs checks that the files of a task with a mount namespace of its own
// name mounts of that namespace; CRIU stops with BUG otherwise.
func (v *verifier) mountIDs(t *task) {
	mounts := map[int32]bool{}
	for _, m := range get[*mnt.MntEntry](v, Mountpoints, uint64(t.ids.GetMntNsId())) {
		mounts[int32(m.GetMntId())] = true
	}
	for fd, id := range t.fds {
		if r := v.files[id].GetReg(); r != nil && r.MntId != nil && r.GetMntId() != -1 && !mounts[r.GetMntId()] {
			v.errorf(Files.FileName(0), "id %d (fd %d of pid %d): mnt_id %d is not in %s", id, fd, t.e.GetPid(), r.GetMntId(), Mountpoints.FileName(uint64(t.ids.GetMntNsId())))
		}
	}
}

// cgroups checks that the sets cores name exist.
func (v *verifier) cgroups() {
	sets := map[uint32]bool{}
	if c, ok := first[*cgroup.CgroupEntry](v, Cgroup, 0); ok {
		for _, s := range c.GetSets() {
			if sets[s.GetId()] {
				v.errorf(Cgroup.FileName(0), "set %d occurs twice", s.GetId())
			}
			sets[s.GetId()] = true
		}
	}
	inv := v.s.inv
	for _, t := range v.order {
		if t.core == nil || !t.alive {
			continue
		}
		for i, tid := range t.e.GetThreads() {
			c := t.core
			if i > 0 {
				var ok bool
				if c, ok = first[*criu_core.CoreEntry](v, Core, uint64(tid)); !ok {
					continue
				}
			}
			set := c.GetThreadCore().GetCgSet()
			if set == 0 {
				set = c.GetTc().GetCgSet()
			}
			switch {
			case set == 0:
			case inv.RootCgSet == nil:
				v.errorf(Core.FileName(uint64(tid)), "cg_set %d, but the inventory has no root_cg_set", set)
			case set != inv.GetRootCgSet() && !sets[set]:
				v.errorf(Core.FileName(uint64(tid)), "cg_set %d is not in %s", set, Cgroup)
			}
		}
	}
}
