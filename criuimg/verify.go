package criuimg

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"google.golang.org/protobuf/proto"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
)

// Severity says what stock CRIU would make of a problem.
type Severity uint8

const (
	// Warning marks what restore accepts but changes or needs an option for, and
	// what no CRIU writes.
	Warning Severity = iota
	// Error marks what restore refuses, crashes on, or turns into a task that
	// cannot run.
	Error
)

// String returns "warning" or "error".
func (s Severity) String() string {
	if s == Error {
		return "error"
	}
	return "warning"
}

// Problem is one finding of Verify.
type Problem struct {
	Severity Severity
	File     string // image at fault; the one that refers, if something it refers to is missing
	What     string // one line, names the field and the value
	Err      error  // set if the file cannot be decoded: a *FormatError, fs.ErrNotExist, ...
}

// String returns the problem in one line.
func (p Problem) String() string { return fmt.Sprintf("%s: %s: %s", p.Severity, p.File, p.What) }

// maxProblems bounds the report on a set that is wrong throughout.
const maxProblems = 1000

// Verify checks the whole set: that every image can be decoded, that what refers
// to something finds it, and that the values are ones CRIU 3.17 to 4.2 restores.
// Files that hold only payload are checked for their length, not their content.
//
// The result is sorted by file, errors first; no problem of severity Error means that no
// reason is known why stock criu restore would refuse the set. Whether the
// destination fits (paths, kernel, rights, CPU) cannot be seen from here.
func (s *Set) Verify() []Problem {
	v := &verifier{
		s:        s,
		files:    map[uint32]*fdinfo.FileEntry{},
		used:     map[uint32]bool{},
		tasks:    map[uint32]*task{},
		bad:      map[string]bool{},
		pagesIDs: map[uint32]string{},
		sharedBy: map[uint64]uint64{},
		reported: map[string]bool{},

		vmOwner:      map[uint32]uint32{},
		fsOwner:      map[uint32]uint32{},
		sighandOwner: map[uint32]uint32{},
		tables:       map[uint64]map[uint32]uint32{},
		holder:       map[uint32]*task{},
		filters:      map[uint32]bool{},
	}
	v.framing()
	v.inventory()
	v.fileTable()
	v.tree()
	for _, t := range v.order {
		v.task(t)
	}
	v.sharedMemory()
	v.fileUse()
	v.namespaces()
	v.leftOver()
	slices.SortFunc(v.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(b.Severity, a.Severity), cmp.Compare(a.What, b.What))
	})
	return v.problems
}

// task is one process of the tree with what verify has decoded of it.
type task struct {
	e     *pstree.PstreeEntry
	core  *criu_core.CoreEntry // of the leader; nil if unreadable
	ids   *criu_core.TaskKobjIdsEntry
	mm    *mm.MmEntry
	fds   map[uint32]uint32 // fd -> file id; one map for tasks that share a table
	alive bool
}

type verifier struct {
	s        *Set
	problems []Problem
	bad      map[string]bool // images that could not be decoded
	files    map[uint32]*fdinfo.FileEntry
	used     map[uint32]bool // file ids that some descriptor or message refers to
	tasks    map[uint32]*task
	order    []*task
	pagesIDs map[uint32]string // pages image -> pagemap that uses it
	sharedBy map[uint64]uint64 // shmid -> least size of the object, bytes
	reported map[string]bool

	vmOwner, fsOwner, sighandOwner map[uint32]uint32            // object id -> last pid that has it
	tables                         map[uint64]map[uint32]uint32 // files_id -> descriptors
	holder                         map[uint32]*task             // file id -> a task that has it open
	filters                        map[uint32]bool              // seccomp chains already checked
}

func (v *verifier) add(sev Severity, file string, err error, format string, args ...any) {
	p := Problem{Severity: sev, File: file, What: fmt.Sprintf(format, args...), Err: err}
	if len(v.problems) >= maxProblems || v.reported[p.String()] {
		return
	}
	v.reported[p.String()] = true
	v.problems = append(v.problems, p)
}

func (v *verifier) errorf(file, format string, args ...any) {
	v.add(Error, file, nil, format, args...)
}

func (v *verifier) warnf(file, format string, args ...any) {
	v.add(Warning, file, nil, format, args...)
}

// readable reports whether an image could be decoded, which framing has found
// out, or reports that it is missing.
func (v *verifier) readable(k *Kind, key uint64, why string) bool {
	name := k.FileName(key)
	if !v.s.Has(k, key) {
		v.add(Error, name, fs.ErrNotExist, "missing: %s", why)
		return false
	}
	return !v.bad[name]
}

// framing decodes every image to its end.
func (v *verifier) framing() {
	for _, f := range v.s.images {
		if f.Kind.Frame == FrameRaw {
			continue
		}
		r, err := v.s.Image(f.Kind, f.Key)
		n := 0
		if err == nil {
			n, err = v.entries(f, r)
			r.Close()
		}
		if err != nil {
			v.bad[f.Name] = true
			what := err.Error()
			var fe *FormatError
			if errors.As(err, &fe) {
				what = fmt.Sprintf("offset %d: %v", fe.Offset, fe.Err)
			}
			v.add(Error, f.Name, err, "%s", what)
			continue
		}
		if f.Kind.single && n != 1 {
			if n == 0 {
				v.bad[f.Name] = true
				v.errorf(f.Name, "no entry")
			} else {
				v.warnf(f.Name, "%d entries, CRIU reads the first", n)
			}
		}
	}
	for _, name := range v.s.unknown {
		v.warnf(name, "no image CRIU up to 4.2 knows")
	}
}

// entries reads one image to the end and counts its entries.
func (v *verifier) entries(f ImageFile, r *ImageReader) (n int, err error) {
	for ; ; n++ {
		m, err := r.Next()
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		if len(m.ProtoReflect().GetUnknown()) > 0 {
			v.warnf(f.Name, "entry at offset %d has fields of a CRIU later than 4.2", r.Offset())
		}
	}
}

// get returns the entries of an image that framing found readable, else nil.
func get[M proto.Message](v *verifier, k *Kind, key uint64) []M {
	if !v.s.Has(k, key) || v.bad[k.FileName(key)] {
		return nil
	}
	list, err := List[M](v.s, k, key)
	if err != nil {
		v.add(Error, k.FileName(key), err, "%v", err)
	}
	return list
}

// first returns the first entry of an image and whether there is one.
func first[M proto.Message](v *verifier, k *Kind, key uint64) (m M, ok bool) {
	if list := get[M](v, k, key); len(list) > 0 {
		return list[0], true
	}
	return m, false
}

func (v *verifier) inventory() {
	inv, name := v.s.inv, Inventory.FileName(0)
	if !inv.GetFdinfoPerId() {
		v.errorf(name, "fdinfo_per_id is not set: CRIU takes the set for too old")
	}
	if inv.RootIds == nil {
		v.errorf(name, "root_ids missing")
	}
	if !inv.GetNsPerId() {
		v.warnf(name, "ns_per_id is not set: namespace images are looked up by pid")
	}
	if inv.RootCgSet != nil && *inv.RootCgSet == 0 {
		v.errorf(name, "root_cg_set is 0")
	}
	if inv.GetTcpClose() {
		v.warnf(name, "tcp_close is set: restore needs --tcp-close")
	}
	if inv.GetAllowUprobes() {
		v.warnf(name, "allow_uprobes is set: restore needs --allow-uprobes")
	}
	if p := inv.GetPluginsEntry().GetPlugins(); len(p) > 0 {
		v.warnf(name, "restore needs the plugins %q", p)
	}
}

// leftOver finds images that nothing refers to.
func (v *verifier) leftOver() {
	tids, owners, tables := map[uint64]bool{}, map[uint64]bool{}, map[uint64]bool{}
	for _, t := range v.order {
		owners[uint64(t.e.GetPid())] = true
		tids[uint64(t.e.GetPid())] = true
		for _, tid := range t.e.GetThreads() {
			tids[uint64(tid)] = true
		}
		if t.ids != nil {
			tables[uint64(t.ids.GetFilesId())] = true
		}
	}
	for _, f := range v.s.images {
		ok := true
		switch f.Kind {
		case Core:
			ok = tids[f.Key]
		case IDs, MM, FS, Pagemap:
			ok = owners[f.Key]
		case FDInfo:
			ok = tables[f.Key]
		case Pages:
			ok = f.Key <= 1<<32-1 && v.pagesIDs[uint32(f.Key)] != ""
		case PagemapShmem:
			_, ok = v.sharedBy[f.Key]
		}
		if !ok {
			v.warnf(f.Name, "nothing in the set refers to it")
		}
	}
}
