package kernel_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// procDump is what testdata/dump.py, run in a guest, reads from the guest's /proc.
// Strings are Latin-1: one rune a byte.
type procDump struct {
	Tasks   map[kernel.PID]*procTask
	Cgroups map[string]map[string]string
}

type procTask struct {
	FDs     map[string]*procFD `json:"fds"`
	NS      map[string]string  `json:"ns"`
	CWD     *string            `json:"cwd"`
	Root    *string            `json:"root"`
	Exe     *string            `json:"exe"`
	Cgroup  string             `json:"cgroup"`
	Status  string             `json:"status"`
	Mounts  string             `json:"mountinfo"`
	Cmdline string             `json:"cmdline"`
	Environ string             `json:"environ"`
	Maps    string             `json:"maps"`
	UIDMap  string             `json:"uid_map"`
	GIDMap  string             `json:"gid_map"`
	Stat    string             `json:"stat"`
	TimeNS  string             `json:"timens_offsets"`
	Comm    string             `json:"comm"`
	Timers  string             `json:"timers"`

	Threads map[kernel.PID]*procThread `json:"threads"`
}

type procFD struct {
	Link *string `json:"link"`
	Info string  `json:"info"`
	Stat *struct {
		Mode   uint32 `json:"mode"`
		Ino    uint64 `json:"ino"`
		Dev    uint64 `json:"dev"`
		RDev   uint64 `json:"rdev"`
		Size   int64  `json:"size"`
		NLink  uint32 `json:"nlink"`
		UID    uint32 `json:"uid"`
		GID    uint32 `json:"gid"`
		Mtime  int64  `json:"mtime"`
		Ctime  int64  `json:"ctime"`
		Blocks uint64 `json:"blocks"`
	} `json:"st"`
}

func parseDump(b []byte) (*procDump, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return nil, err
	}
	d := &procDump{Tasks: make(map[kernel.PID]*procTask)}
	for key, v := range raw {
		if key == "cgroups" {
			if err := json.Unmarshal(v, &d.Cgroups); err != nil {
				return nil, err
			}
			continue
		}
		pid, err := strconv.Atoi(key)
		if err != nil {
			return nil, err
		}
		t := new(procTask)
		if err := json.Unmarshal(v, t); err != nil {
			return nil, err
		}
		d.Tasks[kernel.PID(pid)] = t
	}
	return d, nil
}

// latin1 makes one rune of each byte, as dump.py does.
func latin1(s string) string {
	r := make([]rune, len(s))
	for i := range len(s) {
		r[i] = rune(s[i])
	}
	return string(r)
}

// differences collects what is not equal; keys keep them apart over repetitions.
type differences map[string]string

func (d differences) add(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	d[s] = s
}

func (d differences) equal(what string, got, want any) {
	if fmt.Sprint(got) != fmt.Sprint(want) {
		d.add("%s: got %q, the guest says %q", what, fmt.Sprint(got), fmt.Sprint(want))
	}
}

func (d differences) report(t *testing.T) {
	t.Helper()
	var all []string
	for _, s := range d {
		all = append(all, s)
	}
	sort.Strings(all)
	for _, s := range all {
		t.Error(s)
	}
}

func field(text, key string) string {
	for line := range strings.SplitSeq(text, "\n") {
		if v, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.Join(strings.Fields(v), " ")
		}
	}
	return ""
}

// areas are differences by what they are about: the names are rows of the matrix.
type areas map[string]differences

func (a areas) of(name string) differences {
	if a[name] == nil {
		a[name] = differences{}
	}
	return a[name]
}

// drop removes the areas without differences and says whether there are others.
func (a areas) drop() bool {
	maps.DeleteFunc(a, func(_ string, d differences) bool { return len(d) == 0 })
	return len(a) > 0
}

// compareProcess compares everything that package kernel says of a process and its
// environment with the guest's own /proc.
func compareProcess(k *kernel.Kernel, pid kernel.PID, p *procTask, dump *procDump) areas {
	a := areas{}
	at := func(what string) string { return fmt.Sprintf("pid %d (%s): %s", pid, strings.TrimSpace(p.Comm), what) }
	t, err := k.Task(pid)
	if err != nil {
		a.of("tasks").add("%s: %v", at("task"), err)
		return a
	}
	compareStatus(a.of("credentials"), at, t, p)
	compareTree(a.of("process tree"), at, t, p)
	if t.ExitState != 0 { // a zombie has nothing else
		a.of("paths").equal(at("cwd"), "<nil>", fmt.Sprint(p.CWD))
		a.of("namespaces").equal(at("ns mnt"), "", p.NS["mnt"])
		for fd := range t.Files() {
			a.of("files").add("%s: a zombie has it", at(fmt.Sprintf("fd %d", fd.Num)))
		}
		return a
	}
	compareThreads(a.of("tasks"), at, t, p)
	compareSignals(a.of("signals"), at, t, p)
	compareTimers(a.of("timers"), at, t, p)
	if p.FDs != nil {
		compareFDs(a.of("files"), at, t, p)
	}
	compareFS(a.of("paths"), at, t, p)
	compareNS(a.of("namespaces"), at, t, p)
	compareMounts(a.of("mounts"), at, t, p)
	compareMemory(a.of("maps"), at, t, p)
	compareCgroup(a.of("cgroups"), at, t, p)
	compareCgroupFiles(a.of("cgroups"), at, t, dump)
	compareSeccomp(a.of("seccomp"), at, t, p)
	return a
}

func compareFDs(d differences, at func(string) string, t *kernel.Task, p *procTask) {
	seen := map[string]bool{}
	for fd, err := range t.Files() {
		n := strconv.Itoa(fd.Num)
		if err != nil {
			d.add("%s: %v", at("fd "+n), err)
			continue
		}
		seen[n] = true
		want := p.FDs[n]
		if want == nil {
			d.add("%s: the guest has it not", at("fd "+n))
			continue
		}
		compareFD(d, func(what string) string { return at("fd " + n + " " + what) }, fd, want)
	}
	for n := range p.FDs {
		if !seen[n] {
			d.add("%s: not found", at("fd "+n))
		}
	}
}

func compareFD(d differences, at func(string) string, fd kernel.FD, want *procFD) {
	link, err := fd.LinkText()
	if err != nil {
		d.add("%s: %v", at("link"), err)
	}
	if want.Link != nil {
		d.equal(at("link"), latin1(link), *want.Link)
	}
	f := fd.File
	d.equal(at("pos"), f.Pos, field(want.Info, "pos"))
	d.equal(at("flags"), fmt.Sprintf("0%o", fd.InfoFlags()), field(want.Info, "flags"))
	mnt, err := f.MountID()
	if err != nil {
		d.add("%s: %v", at("mnt_id"), err)
	}
	d.equal(at("mnt_id"), mnt, field(want.Info, "mnt_id"))
	if ino := field(want.Info, "ino"); ino != "" { // since 5.14
		d.equal(at("ino"), f.Inode.Ino, ino)
	}
	compareFDInfo(d, at, f, want.Info)
	if st := want.Stat; st != nil {
		in := f.Inode
		if f.Kind == kernel.KindPidFD || f.SB.Type == "anon_inodefs" {
			st.Mode |= in.Mode & kernel.ModeType // stat(2) hides the type of some
		}
		d.equal(at("st_mode"), fmt.Sprintf("%o", in.Mode), fmt.Sprintf("%o", st.Mode))
		d.equal(at("st_ino"), in.Ino, st.Ino)
		d.equal(at("st_dev"), f.SB.Dev.Stat(), st.Dev)
		d.equal(at("st_rdev"), in.RDev().Stat(), st.RDev)
		d.equal(at("st_nlink"), in.NLink, st.NLink)
		d.equal(at("st_uid"), in.UID, st.UID)
		d.equal(at("st_gid"), in.GID, st.GID)
		if f.SB.Type != "proc" {
			d.equal(at("st_size"), in.Size, st.Size)
			d.equal(at("st_mtime"), in.Mtime().UnixNano(), st.Mtime)
			d.equal(at("st_ctime"), in.Ctime().UnixNano(), st.Ctime)
		}
	}
}

func compareFS(d differences, at func(string) string, t *kernel.Task, p *procTask) {
	fs, err := t.FS()
	if err != nil {
		d.add("%s: %v", at("fs"), err)
		return
	}
	name := func(what string, n kernel.PathName, err error, want *string) {
		if err != nil {
			d.add("%s: %v", at(what), err)
		}
		if want != nil {
			d.equal(at(what), latin1(n.String()), *want)
		}
	}
	n, err := fs.RootName()
	name("root", n, err, p.Root)
	n, err = fs.PWDName()
	name("cwd", n, err, p.CWD)
	d.equal(at("umask"), fmt.Sprintf("%04o", fs.Umask), field(p.Status, "Umask"))
	m, err := t.MM()
	if err != nil {
		return // kernel thread
	}
	exe, err := m.Exe()
	if err != nil || exe == nil {
		d.add("%s: %v %v", at("exe"), exe, err)
		return
	}
	n, err = exe.Name(kernel.Path{})
	name("exe", n, err, p.Exe)
}

func compareStatus(d differences, at func(string) string, t *kernel.Task, p *procTask) {
	c, err := t.Cred()
	if err != nil {
		d.add("%s: %v", at("cred"), err)
		return
	}
	d.equal(at("Uid"), fmt.Sprint(c.UID, c.EUID, c.SUID, c.FSUID), field(p.Status, "Uid"))
	d.equal(at("Gid"), fmt.Sprint(c.GID, c.EGID, c.SGID, c.FSGID), field(p.Status, "Gid"))
	d.equal(at("Groups"), strings.Trim(fmt.Sprint(c.Groups), "[]"), field(p.Status, "Groups"))
	for name, set := range map[string]kernel.Caps{
		"CapInh": c.CapInheritable, "CapPrm": c.CapPermitted, "CapEff": c.CapEffective,
		"CapBnd": c.CapBounding, "CapAmb": c.CapAmbient,
	} {
		d.equal(at(name), fmt.Sprintf("%016x", set), field(p.Status, name))
	}
	ns, err := c.UserNS()
	if err != nil {
		d.add("%s: %v", at("user_ns"), err)
		return
	}
	extents := func(m []kernel.IDExtent) (s string) {
		for _, e := range m {
			s += fmt.Sprintf("%10d %10d %10d\n", e.First, e.Lower, e.Count)
		}
		return s
	}
	d.equal(at("uid_map"), extents(ns.UIDMap), p.UIDMap)
	d.equal(at("gid_map"), extents(ns.GIDMap), p.GIDMap)

	fields := strings.Fields(p.Stat[strings.LastIndex(p.Stat, ")")+2:])
	tty, err := t.ControllingTTY()
	switch {
	case err != nil:
		d.add("%s: %v", at("tty"), err)
	case tty == nil:
		d.equal(at("tty_nr"), 0, fields[4])
	default:
		d.equal(at("tty_nr"), tty.Dev().Stat(), fields[4])
		d.equal(at("tpgid"), tty.PGrp, fields[5])
	}
}

func compareNS(d differences, at func(string) string, t *kernel.Task, p *procTask) {
	all, err := t.Namespaces()
	if err != nil {
		d.add("%s: %v", at("namespaces"), err)
		return
	}
	got := map[string]string{}
	for _, ns := range all.All {
		got[ns.Kind] = ns.String()
	}
	for name, want := range p.NS {
		if want != "" { // pid_for_children of a namespace without an init has none
			d.equal(at("ns "+name), got[name], want)
		}
	}
	mono, boot, err := all.TimeOffsets()
	if err != nil {
		d.add("%s: %v", at("time offsets"), err)
	}
	if p.TimeNS != "" && all.Get("time") == all.Get("time_for_children") {
		f := strings.Fields(p.TimeNS)
		d.equal(at("timens_offsets"), fmt.Sprint(mono.Nanoseconds()/1e9, boot.Nanoseconds()/1e9), f[1]+" "+f[4])
	}
}

func compareMounts(d differences, at func(string) string, t *kernel.Task, p *procTask) {
	if p.Mounts == "" {
		return
	}
	all, err := t.Namespaces()
	if err != nil {
		d.add("%s: %v", at("namespaces"), err)
		return
	}
	fs, err := t.FS()
	if err != nil {
		d.add("%s: %v", at("fs"), err)
		return
	}
	var got []string
	for m, err := range t.Kernel().Mounts(all.Get("mnt").Addr) {
		if err != nil {
			d.add("%s: %v", at("mounts"), err)
			return
		}
		line, shown, err := mountLine(t.Kernel(), m, fs.Root)
		if err != nil {
			d.add("%s: %v", at(fmt.Sprintf("mount %d", m.ID)), err)
		}
		if shown {
			got = append(got, latin1(line))
		}
	}
	var want []string
	for line := range strings.Lines(p.Mounts) {
		f := strings.Fields(line)
		i := slices.Index(f, "-")
		want = append(want, strings.Join(append(f[:5:5], f[i+1], f[i+2]), " "))
	}
	d.equal(at("mountinfo"), strings.Join(got, "\n"), strings.Join(want, "\n"))
}

// mountLine returns the columns of mountinfo that do not depend on file systems.
func mountLine(k *kernel.Kernel, m *kernel.Mount, root kernel.Path) (string, bool, error) {
	point, err := m.Point(root)
	if err != nil || point.Outside {
		return "", false, err
	}
	inner, err := m.RootPath()
	if err != nil {
		return "", false, err
	}
	sb, err := m.SuperBlock()
	if err != nil {
		return "", false, err
	}
	src, err := m.Source()
	if err != nil {
		return "", false, err
	}
	parent, err := m.ParentID()
	if err != nil {
		return "", false, err
	}
	return fmt.Sprintf("%d %d %d:%d %s %s %s %s", m.ID, parent, sb.Dev.Major, sb.Dev.Minor,
		inner.Escape(" \t\n\\"), point.Escape(" \t\n\\"), sb.Type,
		kernel.PathName{Name: src}.Escape(" \t\n\\")), true, nil
}

func compareMemory(d differences, at func(string) string, t *kernel.Task, p *procTask) {
	if cmdline, err := t.Cmdline(); err != nil {
		d.add("%s: %v", at("cmdline"), err)
	} else {
		d.equal(at("cmdline"), latin1(string(cmdline)), p.Cmdline)
	}
	if env, err := t.Environ(); err != nil {
		d.add("%s: %v", at("environ"), err)
	} else {
		d.equal(at("environ"), latin1(string(env)), p.Environ)
	}
	m, err := t.MM()
	if err != nil {
		d.equal(at("maps"), "", p.Maps)
		return
	}
	var got, want []string
	for v, err := range m.VMAs() {
		if err != nil {
			d.add("%s: %v", at("maps"), err)
			return
		}
		line, err := mapsLine(m, &v)
		if err != nil {
			d.add("%s: %v", at(fmt.Sprintf("mapping at %s", v.Start)), err)
		}
		got = append(got, latin1(line))
	}
	for line := range strings.Lines(p.Maps) {
		if !strings.HasSuffix(line, "[vsyscall]\n") { // not of this process
			f := strings.SplitN(line, " ", 6)
			f[5] = strings.Trim(f[5], " \n")
			want = append(want, strings.Join(f, " "))
		}
	}
	if len(got) != len(want) {
		d.add("%s: got %d lines, the guest says %d", at("maps"), len(got), len(want))
	}
	for i := range min(len(got), len(want)) {
		d.equal(at("maps"), got[i], want[i])
	}
}

func mapsLine(m *kernel.MM, v *kernel.VMA) (string, error) {
	var dev kernel.Dev
	var ino, off uint64
	if v.File != 0 {
		f, err := m.Kernel().FileAt(v.File)
		if err != nil {
			return "", err
		}
		in, err := f.UserInode()
		if err != nil {
			return "", err
		}
		sb, err := in.SuperBlock()
		if err != nil {
			return "", err
		}
		dev, ino, off = sb.Dev, in.Ino, v.PgOff<<12
	}
	name, err := m.Name(v)
	return fmt.Sprintf("%08x-%08x %s %08x %s %d %s", uint64(v.Start), uint64(v.End), v.Flags, off, dev, ino, name), err
}
