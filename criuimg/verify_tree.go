package criuimg

import (
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	criufs "github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
)

// States of task_core_entry (CRIU compel/include/uapi/task-state.h).
const (
	taskAlive   = 1
	taskDead    = 2
	taskStopped = 3
)

// tree checks pstree.img and decodes what belongs to each task.
func (v *verifier) tree() {
	name := Pstree.FileName(0)
	if !v.readable(Pstree, 0, "there are no tasks") {
		return
	}
	list := get[*pstree.PstreeEntry](v, Pstree, 0)
	if len(list) == 0 {
		v.errorf(name, "no task")
	}
	taken := map[uint32]bool{}
	for i, e := range list {
		pid := e.GetPid()
		switch {
		case pid == 0:
			v.errorf(name, "entry %d has pid 0", i)
			continue
		case taken[pid]:
			v.errorf(name, "pid %d occurs twice", pid)
			continue
		case (i == 0) != (e.GetPpid() == 0):
			v.errorf(name, "pid %d has ppid %d: only the first task is the root", pid, e.GetPpid())
		case i > 0 && v.tasks[e.GetPpid()] == nil:
			v.errorf(name, "pid %d comes before its parent %d", pid, e.GetPpid())
		}
		taken[pid] = true
		t := &task{e: e}
		v.tasks[pid] = t
		v.order = append(v.order, t)
	}
	for _, t := range v.order {
		t.core, _ = v.core(t.e.GetPid(), t.e.GetPid())
		state := t.core.GetTc().GetTaskState()
		t.alive = state == taskAlive || state == taskStopped
		if t.alive {
			v.threads(t, taken)
		}
		v.leaders(t)
	}
}

// threads checks the thread list of a living task. CRIU leaves garbage in the
// list of a zombie.
func (v *verifier) threads(t *task, taken map[uint32]bool) {
	name, pid := Pstree.FileName(0), t.e.GetPid()
	for i, tid := range t.e.GetThreads() {
		if i == 0 {
			if tid != pid {
				v.errorf(name, "first thread of pid %d is %d", pid, tid)
			}
			continue
		}
		if tid == 0 || taken[tid] {
			v.errorf(name, "thread %d of pid %d occurs twice or is no id", tid, pid)
		}
		taken[tid] = true
	}
	if len(t.e.GetThreads()) == 0 {
		v.errorf(name, "pid %d has no threads, not even its leader", pid)
	}
}

// leaders notes sessions and groups whose leader is not in the set. CRIU makes
// helper tasks for them, or needs --shell-job.
func (v *verifier) leaders(t *task) {
	for _, x := range []struct {
		what string
		id   uint32
	}{{"sid", t.e.GetSid()}, {"pgid", t.e.GetPgid()}} {
		if v.tasks[x.id] == nil {
			v.warnf(Pstree.FileName(0), "%s %d of pid %d is not in the tree: restore needs that pid free, or --shell-job", x.what, x.id, t.e.GetPid())
		}
	}
}

// core returns the core image of a thread.
func (v *verifier) core(pid, tid uint32) (*criu_core.CoreEntry, bool) {
	if !v.readable(Core, uint64(tid), "every thread has one") {
		return nil, false
	}
	return first[*criu_core.CoreEntry](v, Core, uint64(tid))
}

// task checks everything that belongs to one process.
func (v *verifier) task(t *task) {
	pid := t.e.GetPid()
	if t.core == nil {
		return
	}
	v.leaderCore(t)
	if !t.alive {
		return
	}
	if v.s.Has(IDs, uint64(pid)) || t.core.Ids == nil {
		if v.readable(IDs, uint64(pid), "every living task has one") {
			t.ids, _ = first[*criu_core.TaskKobjIdsEntry](v, IDs, uint64(pid))
		}
	} else {
		t.ids = t.core.Ids
	}
	if v.readable(MM, uint64(pid), "every living task has one") {
		t.mm, _ = first[*mm.MmEntry](v, MM, uint64(pid))
	}
	v.taskIDs(t)
	v.taskFiles(t)
	if t.mm != nil {
		v.mm(t)
	}
	for i, tid := range t.e.GetThreads() {
		c := t.core
		if i > 0 {
			if c, _ = v.core(pid, tid); c == nil {
				continue
			}
			v.threadCoreOnly(tid, c)
		}
		v.thread(t, tid, c)
	}
}

// taskIDs checks the object ids of a task against the dumper's and the others'.
func (v *verifier) taskIDs(t *task) {
	if t.ids == nil {
		return
	}
	name, ids := IDs.FileName(uint64(t.e.GetPid())), t.ids
	if root := v.s.inv.GetRootIds(); root != nil && ids.GetFilesId() == root.GetFilesId() {
		v.errorf(name, "files_id %d is that of the dumper in the inventory", ids.GetFilesId())
	}
	if ids.GetVmId() == 0 || ids.GetFilesId() == 0 || ids.GetFsId() == 0 || ids.GetSighandId() == 0 {
		v.errorf(name, "an object id is 0")
	}
	pid := t.e.GetPid()
	if o, ok := v.vmOwner[ids.GetVmId()]; ok {
		v.errorf(name, "vm_id %d is also that of pid %d: CRIU cannot restore tasks that share memory", ids.GetVmId(), o)
	}
	v.vmOwner[ids.GetVmId()] = pid
	if o, ok := v.fsOwner[ids.GetFsId()]; ok {
		v.warnf(name, "fs_id %d is also that of pid %d: CRIU never writes that", ids.GetFsId(), o)
	}
	v.fsOwner[ids.GetFsId()] = pid
	if o, ok := v.sighandOwner[ids.GetSighandId()]; ok {
		v.warnf(name, "sighand_id %d is also that of pid %d: CRIU never writes that", ids.GetSighandId(), o)
	}
	v.sighandOwner[ids.GetSighandId()] = pid
}

// taskFiles checks the file table and the directories of a task.
func (v *verifier) taskFiles(t *task) {
	pid := uint64(t.e.GetPid())
	if v.readable(FS, pid, "every living task has one") {
		if e, ok := first[*criufs.FsEntry](v, FS, pid); ok {
			v.wantFile(FS.FileName(pid), "cwd_id", e.GetCwdId(), fdinfo.FdTypes_REG)
			v.wantFile(FS.FileName(pid), "root_id", e.GetRootId(), fdinfo.FdTypes_REG)
		}
	}
	if t.ids == nil {
		return
	}
	table := uint64(t.ids.GetFilesId())
	if fds, ok := v.tables[table]; ok { // shared with an earlier task
		t.fds = fds
		return
	}
	t.fds = map[uint32]uint32{}
	v.tables[table] = t.fds
	name := FDInfo.FileName(table)
	if !v.s.Has(FDInfo, table) {
		v.warnf(name, "missing: pid %d comes back without open files", pid)
		return
	}
	limit := ^uint64(0)
	if r := t.core.GetTc().GetRlimits().GetRlimits(); len(r) > rlimitNofile {
		limit = r[rlimitNofile].GetCur()
	}
	for _, e := range get[*fdinfo.FdinfoEntry](v, FDInfo, table) {
		if _, dup := t.fds[e.GetFd()]; dup {
			v.errorf(name, "fd %d occurs twice", e.GetFd())
		}
		t.fds[e.GetFd()] = e.GetId()
		v.used[e.GetId()] = true
		if v.holder[e.GetId()] == nil {
			v.holder[e.GetId()] = t
		}
		v.wantFile(name, "fd "+utoa(e.GetFd()), e.GetId(), e.GetType())
		if e.GetFlags()&^1 != 0 {
			v.warnf(name, "fd %d has flags %#x, only FD_CLOEXEC is known", e.GetFd(), e.GetFlags())
		}
		if uint64(e.GetFd()) >= limit {
			v.warnf(name, "fd %d is above RLIMIT_NOFILE %d", e.GetFd(), limit)
		}
	}
}
