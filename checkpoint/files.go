package checkpoint

import (
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// openOnly are the flags that open(2) acts on and that must not be given again.
const openOnly = kernel.OCreat | kernel.OExcl | kernel.OTrunc | kernel.ONoCTTY | kernel.OCloexec

// fileTable gives an identifier to every open file description that the images
// mention. Descriptors that share one share the identifier.
type fileTable struct {
	c       *collector
	ids     map[fileKey]uint32
	types   map[uint32]fdinfo.FdTypes
	entries []*fdinfo.FileEntry
	ttys    []*tty.TtyInfoEntry
	ttyIDs  map[uint32]bool
	pipes   []pipeData
	pipeIDs map[uint32]bool
	ends    map[uint32]pipeEnds
}

// fileKey tells a description that is reachable through a descriptor from the
// same one behind a mapping, which CRIU opens by itself.
type fileKey struct {
	file   kernel.Addr
	mapped bool
	path   kernel.Path // of a directory that is not open
}

func newFileTable(c *collector) *fileTable {
	return &fileTable{
		c: c, ids: make(map[fileKey]uint32), types: make(map[uint32]fdinfo.FdTypes),
		ttyIDs: make(map[uint32]bool), pipeIDs: make(map[uint32]bool), ends: make(map[uint32]pipeEnds),
	}
}

// newID reserves an identifier for key. Identifiers count from 1 over all types.
func (t *fileTable) newID(key fileKey) uint32 {
	id := uint32(len(t.ids) + 1)
	t.ids[key] = id
	return id
}

func (t *fileTable) add(id uint32, typ fdinfo.FdTypes, e *fdinfo.FileEntry) {
	e.Id, e.Type = &id, &typ
	t.types[id] = typ
	t.entries = append(t.entries, e)
}

// maxFDs is the kernel's default for the largest table (fs.nr_open).
const maxFDs = 1 << 20

// openFiles encodes the descriptor table, and the directories that the process
// stands in.
func (c *collector) openFiles() error {
	for fd, err := range c.leader.Files() {
		if err != nil {
			return fmt.Errorf("fd %d: %w", fd.Num, err)
		}
		if len(c.out.fdinfo) >= maxFDs {
			return fmt.Errorf("more than %d descriptors: %w", maxFDs, kernel.ErrLimit)
		}
		id, ok, err := c.files.open(fd)
		if err != nil {
			return fmt.Errorf("fd %d: %w", fd.Num, err)
		}
		if !ok {
			continue
		}
		if err := c.locks(fd); err != nil {
			return fmt.Errorf("fd %d: %w", fd.Num, err)
		}
		flags := uint32(0)
		if fd.CloseOnExec {
			flags = 1 // FD_CLOEXEC
		}
		c.out.fdinfo = append(c.out.fdinfo, &fdinfo.FdinfoEntry{
			Id: &id, Flags: &flags, Type: c.files.types[id].Enum(), Fd: new(uint32(fd.Num)),
		})
	}
	c.files.reportPipes()
	return c.fsStruct()
}

func (c *collector) fsStruct() error {
	f, err := c.leader.FS()
	if err != nil {
		return err
	}
	cwd, err := c.files.dir("cwd", f.PWD)
	if err != nil {
		return fmt.Errorf("cwd: %w", err)
	}
	root, err := c.files.dir("root", f.Root)
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	c.out.fs = &fs.FsEntry{CwdId: &cwd, RootId: &root, Umask: &f.Umask}
	return nil
}

// open encodes the file behind a descriptor and returns its identifier. ok is
// false if it is refused.
func (t *fileTable) open(fd kernel.FD) (id uint32, ok bool, err error) {
	f := fd.File
	key := fileKey{file: f.Addr}
	if id, ok := t.ids[key]; ok {
		return id, t.types[id] != fdinfo.FdTypes_UND, nil
	}
	what := fmt.Sprintf("fd %d", fd.Num)
	id = t.newID(key)
	if f.IsPath() {
		return id, true, t.regular(id, what, f)
	}
	switch f.Kind {
	case kernel.KindRegular, kernel.KindDir:
		err = t.regular(id, what, f)
	case kernel.KindCharDev:
		if !plainDevice(f.Inode.RDev()) {
			t.c.issues.refuse(what, "is the device %s (%s)", t.nameOf(f), f.Inode.RDev())
			return id, false, nil
		}
		err = t.regular(id, what, f)
	case kernel.KindTTY:
		err = t.tty(id, what, f)
	case kernel.KindPipe:
		err = t.pipe(id, what, f)
	case kernel.KindFIFO:
		err = t.fifo(id, what, f)
	case kernel.KindEventFD:
		err = t.eventfd(id, what, f)
	case kernel.KindEpoll:
		err = t.epoll(id, f)
	case kernel.KindTimerFD:
		err = t.timerfd(id, f)
	case kernel.KindSignalFD:
		err = t.signalfd(id, f)
	default:
		t.c.issues.refuse(what, "is %s (%s), which is not carried yet", t.nameOf(f), f.Kind)
		return id, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	return id, t.types[id] != fdinfo.FdTypes_UND, nil
}

func (t *fileTable) nameOf(f *kernel.File) string {
	s, err := f.LinkText()
	if err != nil {
		return "a file without a name"
	}
	return s
}

// plainDevice says whether a character device keeps no state per opener:
// /dev/null, zero, full, random, urandom.
func plainDevice(d kernel.Dev) bool {
	const memMajor = 1
	switch d.Minor {
	case 3, 5, 7, 8, 9:
		return d.Major == memMajor
	}
	return false
}

// regular encodes a file that restore opens by its name.
func (t *fileTable) regular(id uint32, what string, f *kernel.File) error {
	e, err := t.regEntry(id, what, f, false)
	if err != nil || e == nil {
		return err
	}
	t.add(id, fdinfo.FdTypes_REG, &fdinfo.FileEntry{Reg: e})
	return nil
}

// mapped returns the identifier of the file behind a mapping, or of the program.
func (t *fileTable) mapped(a kernel.Addr) (uint32, error) {
	key := fileKey{file: a, mapped: true}
	if id, ok := t.ids[key]; ok {
		return id, nil
	}
	f, err := t.c.k.FileAt(a)
	if err != nil {
		return 0, err
	}
	id := t.newID(key)
	e, err := t.regEntry(id, "mapped file", f, true)
	if err != nil || e == nil {
		return id, err
	}
	e.Pos = new(uint64(0))
	t.add(id, fdinfo.FdTypes_REG, &fdinfo.FileEntry{Reg: e})
	return id, nil
}

// regEntry returns nil if the file is refused.
func (t *fileTable) regEntry(id uint32, what string, f *kernel.File, mapped bool) (*regfile.RegFileEntry, error) {
	p, err := f.UserPath()
	if err != nil {
		return nil, err
	}
	inode, err := f.UserInode()
	if err != nil {
		return nil, err
	}
	name, err := t.c.k.PathName(p, kernel.Path{})
	if err != nil {
		return nil, err
	}
	switch {
	case name.Deleted:
		t.c.issues.refuse(what, "%s has been deleted", name.Name)
		return nil, nil
	case name.Pseudo, name.Detached, name.Outside, name.Name == "" || name.Name[0] != '/':
		t.c.issues.refuse(what, "%s cannot be opened by name", name)
		return nil, nil
	}
	owner, err := t.fown(f)
	if err != nil {
		return nil, err
	}
	e := &regfile.RegFileEntry{
		Id: &id, Flags: new(f.Flags &^ openOnly), Pos: new(uint64(f.Pos)), Fown: owner, Name: &name.Name,
	}
	if inode.Type() == kernel.ModeRegular {
		e.Mode = &inode.Mode
		// A log that others append to may have grown when it is opened again.
		if appending := f.Flags&(kernel.OAppend|kernel.OAccMode) == kernel.OAppend|kernel.OWrOnly; !appending || mapped {
			e.Size = new(uint64(inode.Size))
		}
		if !stableSize(f.SB) {
			e.Size = nil
		}
	}
	return e, nil
}

// stableSize says whether st_size of files there means anything: those of proc and
// its like make their content when they are read.
func stableSize(sb *kernel.SuperBlock) bool {
	switch sb.Type {
	case "proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs":
		return false
	}
	return true
}

// dir returns the identifier of a directory that is not open.
func (t *fileTable) dir(what string, p kernel.Path) (uint32, error) {
	key := fileKey{path: p}
	if id, ok := t.ids[key]; ok {
		return id, nil
	}
	name, err := t.c.k.PathName(p, kernel.Path{})
	if err != nil {
		return 0, err
	}
	id := t.newID(key)
	if name.Deleted || name.Detached {
		t.c.issues.refuse(what, "the directory %s is gone", name.Name)
	}
	t.add(id, fdinfo.FdTypes_REG, &fdinfo.FileEntry{Reg: &regfile.RegFileEntry{
		Id: &id, Flags: new(uint32(kernel.ODirectory | kernel.OLargefile)), Pos: new(uint64(0)),
		Fown: noOwner(), Name: &name.Name,
	}})
	return id, nil
}

func noOwner() *fown.FownEntry {
	return &fown.FownEntry{
		Uid: new(uint32(0)), Euid: new(uint32(0)), Signum: new(uint32(0)), PidType: new(uint32(0)), Pid: new(uint32(0)),
	}
}

// Who gets signals about a file (enum pid_type, F_OWNER_*).
const (
	ownerThread  = 0
	ownerProcess = 1
	ownerGroup   = 2
)

// fown encodes the owner of a file. CRIU names it again before there are threads
// and where there is nobody else, and fails if it is not there.
func (t *fileTable) fown(f *kernel.File) (*fown.FownEntry, error) {
	o, err := f.Owner()
	if err != nil {
		return nil, err
	}
	e := &fown.FownEntry{
		Uid: &o.UID, Euid: &o.EUID, Signum: new(uint32(o.Signum)), PidType: &o.PIDType, Pid: new(uint32(o.PID)),
	}
	leader := t.c.leader.PID
	if o.PID == 0 || o.PID == leader && (o.PIDType != ownerGroup || *t.c.out.pstree.Pgid == uint32(leader)) {
		return e, nil
	}
	if o.PIDType == ownerThread && t.c.isThread(o.PID) {
		*e.PidType, *e.Pid = ownerProcess, uint32(leader)
		t.c.issues.approximate(t.nameOf(f), "signals about it go to thread %d (F_SETOWN_EX); will go to the process", o.PID)
		return e, nil
	}
	*e.Pid = 0
	t.c.issues.approximate(t.nameOf(f), "signals about it go to process or group %d (F_SETOWN); will go to nobody", o.PID)
	return e, nil
}

func (c *collector) isThread(tid kernel.PID) bool {
	for u, err := range c.leader.Threads() {
		if err == nil && u.PID == tid {
			return true
		}
	}
	return false
}
