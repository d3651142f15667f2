package criuimg

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/cgroup"
	core_x86 "github.com/checkpoint-restore/go-criu/v8/crit/images/core-x86"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	criufs "github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/memfd"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	pipe_data "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe-data"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	remap_file_path "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/rlimit"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/siginfo"
	sk_packet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-packet"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
)

// damaged is a set being spoiled for a test.
type damaged struct {
	t   testing.TB
	set fstest.MapFS
}

// only returns the key of the first image of a kind.
func (d damaged) only(k *Kind) uint64 {
	s, err := Open(d.set)
	require.NoError(d.t, err)
	keys := s.Keys(k)
	require.NotEmpty(d.t, keys, k)
	return keys[0]
}

// leader returns the pid of the root task.
func (d damaged) leader() uint64 {
	s, err := Open(d.set)
	require.NoError(d.t, err)
	list, err := s.Pstree()
	require.NoError(d.t, err)
	return uint64(list[0].GetPid())
}

// edit changes the entries of an image without touching its payloads.
func edit[M proto.Message](d damaged, k *Kind, key uint64, change func(m M)) {
	editList(d, k, key, func(list []proto.Message) []proto.Message {
		for _, m := range list {
			if m, ok := m.(M); ok {
				change(m)
				return list
			}
		}
		d.t.Fatalf("%s has no %T", k.FileName(key), *new(M))
		return nil
	})
}

func editList(d damaged, k *Kind, key uint64, change func(list []proto.Message) []proto.Message) {
	name := k.FileName(key)
	require.Contains(d.t, d.set, name)
	dec, err := NewDecoder(bytes.NewReader(d.set[name].Data), k)
	require.NoError(d.t, err)
	var list []proto.Message
	payloads := map[proto.Message][]byte{}
	for {
		m, err := dec.Next()
		if err != nil {
			break
		}
		var b bytes.Buffer
		_, err = b.ReadFrom(dec.Payload())
		require.NoError(d.t, err)
		payloads[m] = b.Bytes()
		list = append(list, m)
	}
	// By hand: Encoder would refuse some of the damage.
	var out []byte
	if k.Frame == FrameCommon {
		out = binary.LittleEndian.AppendUint32(out, commonMagic)
	}
	out = binary.LittleEndian.AppendUint32(out, k.Magic)
	for _, m := range change(list) {
		b, err := proto.MarshalOptions{AllowPartial: true}.Marshal(m)
		require.NoError(d.t, err)
		out = binary.LittleEndian.AppendUint32(out, uint32(len(b)))
		out = append(append(out, b...), payloads[m]...)
	}
	d.set[name].Data = out
}

func (d damaged) core(change func(c *criu_core.CoreEntry)) { edit(d, Core, d.leader(), change) }

func (d damaged) mm(change func(m *mm.MmEntry)) { edit(d, MM, d.leader(), change) }

func (d damaged) pagemap(change func(list []proto.Message) []proto.Message) {
	editList(d, Pagemap, d.leader(), change)
}

// file changes the first open file that fits.
func (d damaged) file(typ fdinfo.FdTypes, change func(f *fdinfo.FileEntry)) {
	editList(d, Files, 0, func(list []proto.Message) []proto.Message {
		for _, m := range list {
			if f := m.(*fdinfo.FileEntry); f.GetType() == typ {
				change(f)
				return list
			}
		}
		d.t.Fatalf("no file of type %v", typ)
		return nil
	})
}

func (d damaged) vma(status uint32, change func(list []*vma.VmaEntry, i int)) {
	d.mm(func(m *mm.MmEntry) {
		for i, a := range m.Vmas {
			if a.GetStatus()&status == status {
				change(m.Vmas, i)
				return
			}
		}
		d.t.Fatalf("no VMA with status %#x", status)
	})
}

func u32(n uint32) *uint32 { return &n }
func u64(n uint64) *uint64 { return &n }

// damages: SET is the real set to spoil, file and what must occur in one Error.
var damages = []struct {
	name, set, file, what string
	spoil                 func(d damaged)
}{
	{"inventory flag", "counter", "inventory", "fdinfo_per_id", func(d damaged) {
		edit(d, Inventory, 0, func(m *inventory.InventoryEntry) { m.FdinfoPerId = nil })
	}},
	{"inventory ids", "counter", "inventory", "root_ids", func(d damaged) {
		edit(d, Inventory, 0, func(m *inventory.InventoryEntry) { m.RootIds = nil })
	}},
	{"cgroup root zero", "counter", "inventory", "root_cg_set is 0", func(d damaged) {
		edit(d, Inventory, 0, func(m *inventory.InventoryEntry) { m.RootCgSet = u32(0) })
	}},
	{"cgroup root missing", "counter", "core-", "no root_cg_set", func(d damaged) {
		edit(d, Inventory, 0, func(m *inventory.InventoryEntry) { m.RootCgSet = nil })
		d.core(func(c *criu_core.CoreEntry) { c.Tc.CgSet = u32(1) })
	}},
	{"cgroup set unknown", "counter", "core-", "cg_set 9", func(d damaged) {
		d.core(func(c *criu_core.CoreEntry) { c.ThreadCore.CgSet = u32(9) })
	}},
	{"no tasks", "counter", "pstree", "missing", func(d damaged) { delete(d.set, "pstree.img") }},
	{"pid twice", "zoo", "pstree", "occurs twice", func(d damaged) {
		editList(d, Pstree, 0, func(l []proto.Message) []proto.Message { return append(l, l[len(l)-1]) })
	}},
	{"child first", "zoo", "pstree", "before its parent", func(d damaged) {
		editList(d, Pstree, 0, func(l []proto.Message) []proto.Message { l[1].(*pstree.PstreeEntry).Ppid = u32(77777); return l })
	}},
	{"two roots", "zoo", "pstree", "only the first", func(d damaged) {
		editList(d, Pstree, 0, func(l []proto.Message) []proto.Message { l[1].(*pstree.PstreeEntry).Ppid = u32(0); return l })
	}},
	{"leader not first", "zoo", "pstree", "first thread", func(d damaged) {
		edit(d, Pstree, 0, func(e *pstree.PstreeEntry) { e.Threads[0], e.Threads[1] = e.Threads[1], e.Threads[0] })
	}},
	{"thread twice", "zoo", "pstree", "occurs twice", func(d damaged) {
		edit(d, Pstree, 0, func(e *pstree.PstreeEntry) { e.Threads[2] = e.Threads[1] })
	}},
	{"thread without core", "zoo", "core-4999.img", "missing", func(d damaged) {
		edit(d, Pstree, 0, func(e *pstree.PstreeEntry) { e.Threads = append(e.Threads, 4999) })
	}},
	{"task without core", "counter", "core-", "missing", func(d damaged) { delete(d.set, Core.FileName(d.leader())) }},
	{"no ids", "counter", "ids-", "missing", func(d damaged) { delete(d.set, IDs.FileName(d.leader())) }},
	{"no mm", "counter", "mm-", "missing", func(d damaged) { delete(d.set, MM.FileName(d.leader())) }},
	{"no fs", "counter", "fs-", "missing", func(d damaged) { delete(d.set, FS.FileName(d.leader())) }},
	{"no files", "counter", "files", "missing", func(d damaged) { delete(d.set, "files.img") }},
	{"no pagemap", "counter", "pagemap-", "missing", func(d damaged) { delete(d.set, Pagemap.FileName(d.leader())) }},
	{"no pages", "counter", "pages-1.img", "pages-1.img", func(d damaged) { delete(d.set, "pages-1.img") }},
	{"dumper's files_id", "counter", "ids-", "files_id", func(d damaged) {
		edit(d, IDs, d.leader(), func(m *criu_core.TaskKobjIdsEntry) { m.FilesId = u32(1) })
	}},
	{"shared memory map", "zoo", "ids-", "vm_id", func(d damaged) {
		s, _ := Open(d.set)
		for _, k := range s.Keys(IDs) {
			edit(d, IDs, k, func(m *criu_core.TaskKobjIdsEntry) { m.VmId = u32(5) })
		}
	}},
	{"machine", "counter", "core-", "mtype", func(d damaged) {
		d.core(func(c *criu_core.CoreEntry) { c.Mtype = criu_core.CoreEntry_AARCH64.Enum() })
	}},
	{"no tc", "counter", "core-", "tc missing", func(d damaged) { d.core(func(c *criu_core.CoreEntry) { c.Tc = nil }) }},
	{"state", "counter", "core-", "task_state", func(d damaged) {
		d.core(func(c *criu_core.CoreEntry) { c.Tc.TaskState = u32(6) })
	}},
	{"no thread_core", "counter", "core-", "thread_core missing", func(d damaged) {
		d.core(func(c *criu_core.CoreEntry) { c.ThreadCore = nil })
	}},
	{"no thread_info", "counter", "core-", "thread_info missing", func(d damaged) {
		d.core(func(c *criu_core.CoreEntry) { c.ThreadInfo = nil })
	}},
	{"no creds", "counter", "core-", "creds missing", func(d damaged) {
		d.core(func(c *criu_core.CoreEntry) { c.ThreadCore.Creds = nil })
	}},
	{"capability words", "counter", "core-", "cap_eff has 1", func(d damaged) {
		d.core(func(c *criu_core.CoreEntry) { c.ThreadCore.Creds.CapEff = c.ThreadCore.Creds.CapEff[:1] })
	}},
	{"sigactions", "counter", "core-", "61 sigactions", func(d damaged) {
		d.core(func(c *criu_core.CoreEntry) { c.Tc.Sigactions = c.Tc.Sigactions[1:] })
	}},
	{"no timers", "counter", "core-", "tc.timers", func(d damaged) { d.core(func(c *criu_core.CoreEntry) { c.Tc.Timers = nil }) }},
	{"timer range", "counter", "core-", "itimer 0", func(d damaged) {
		d.core(func(c *criu_core.CoreEntry) { c.Tc.Timers.Real.Vusec = u64(1e6) })
	}},
	{"no rlimits", "counter", "core-", "tc.rlimits", func(d damaged) { d.core(func(c *criu_core.CoreEntry) { c.Tc.Rlimits = nil }) }},
	{"rlimits", "counter", "core-", "17 rlimits", func(d damaged) {
		d.core(func(c *criu_core.CoreEntry) {
			c.Tc.Rlimits.Rlimits = append(c.Tc.Rlimits.Rlimits, &rlimit.RlimitEntry{Cur: u64(0), Max: u64(0)})
		})
	}},
	{"siginfo", "zoo", "core-", "siginfo", func(d damaged) {
		d.core(func(c *criu_core.CoreEntry) {
			c.Tc.SignalsS = &siginfo.SignalQueueEntry{Signals: []*siginfo.SiginfoEntry{{Siginfo: make([]byte, 48)}}}
		})
	}},
	{"scheduler", "counter", "core-", "sched_policy 6", func(d damaged) {
		d.core(func(c *criu_core.CoreEntry) { c.ThreadCore.SchedPolicy = u32(6) })
	}},
	{"thread with tc", "zoo", "core-", "not a leader", func(d damaged) {
		s, _ := Open(d.set)
		l, _ := s.Pstree()
		leader, _ := s.Core(l[0].GetPid())
		edit(d, Core, uint64(l[0].GetThreads()[1]), func(c *criu_core.CoreEntry) { c.Tc = leader.Tc })
	}},
	{"cs", "counter", "core-", "cs is", func(d damaged) { d.regs(func(r *core_x86.UserX86RegsEntry) { r.Cs = u64(0x10) }) }},
	{"ip", "counter", "core-", "ip 0x", func(d damaged) { d.regs(func(r *core_x86.UserX86RegsEntry) { r.Ip = r.Sp }) }},
	{"restart code", "counter", "core-", "ax is -512", func(d damaged) {
		d.regs(func(r *core_x86.UserX86RegsEntry) { r.Ax = u64(1<<64 - 512) })
	}},
	{"kernel gs", "counter", "core-", "gs_base", func(d damaged) {
		d.regs(func(r *core_x86.UserX86RegsEntry) { r.GsBase = u64(0xffff888000000000) })
	}},
	{"st_space", "counter", "core-", "st_space", func(d damaged) {
		d.core(func(c *criu_core.CoreEntry) { c.ThreadInfo.Fpregs.StSpace = nil })
	}},
	{"xmm_space", "counter", "core-", "xmm_space", func(d damaged) {
		d.core(func(c *criu_core.CoreEntry) { c.ThreadInfo.Fpregs.XmmSpace = make([]uint32, 63) })
	}},
	{"mxcsr", "counter", "core-", "mxcsr", func(d damaged) {
		d.core(func(c *criu_core.CoreEntry) { c.ThreadInfo.Fpregs.Mxcsr = u32(1 << 31) })
	}},
	{"ymmh_space", "counter", "core-", "ymmh_space", func(d damaged) {
		d.core(func(c *criu_core.CoreEntry) { c.ThreadInfo.Fpregs.Xsave.YmmhSpace = make([]uint32, 16) })
	}},
	{"auxv", "counter", "mm-", "auxv", func(d damaged) { d.mm(func(m *mm.MmEntry) { m.MmSavedAuxv = make([]uint64, 46) }) }},
	{"brk", "counter", "mm-", "mm_brk", func(d damaged) { d.mm(func(m *mm.MmEntry) { m.MmBrk = u64(m.GetMmStartBrk() - 1) }) }},
	{"exe", "counter", "mm-", "exe_file_id", func(d damaged) { d.mm(func(m *mm.MmEntry) { m.ExeFileId = u32(999) }) }},
	{"no VMAs", "counter", "mm-", "no VMAs", func(d damaged) { d.mm(func(m *mm.MmEntry) { m.Vmas = nil }) }},
	{"VMA order", "counter", "mm-", "below the end", func(d damaged) {
		d.mm(func(m *mm.MmEntry) { m.Vmas[0], m.Vmas[1] = m.Vmas[1], m.Vmas[0] })
	}},
	{"VMA overlap", "counter", "mm-", "below the end", func(d damaged) {
		d.mm(func(m *mm.MmEntry) { m.Vmas[0].End = u64(m.Vmas[0].GetEnd() + PageSize) })
	}},
	{"VMA alignment", "counter", "mm-", "not aligned", func(d damaged) {
		d.mm(func(m *mm.MmEntry) { m.Vmas[0].End = u64(m.Vmas[0].GetEnd() - 1) })
	}},
	{"VMA flags", "counter", "mm-", "MAP_SHARED", func(d damaged) { d.mm(func(m *mm.MmEntry) { m.Vmas[0].Flags = u32(3) }) }},
	{"VMA class", "counter", "mm-", "status 0x2c1", func(d damaged) {
		d.vma(VMAFilePrivate, func(l []*vma.VmaEntry, i int) { l[i].Status = u32(l[i].GetStatus() | VMAAnonPrivate | VMAFileShared) })
	}},
	{"VMA run-time bits", "counter", "mm-", "inside CRIU", func(d damaged) {
		d.mm(func(m *mm.MmEntry) { m.Vmas[0].Status = u32(m.Vmas[0].GetStatus() | 1<<30) })
	}},
	{"VMA pgoff in pages", "counter", "mm-", "pgoff", func(d damaged) {
		d.vma(VMAFilePrivate, func(l []*vma.VmaEntry, i int) { l[i].Pgoff = u64(1) })
	}},
	{"VMA file", "counter", "mm-", "shmid of VMA", func(d damaged) {
		d.vma(VMAFilePrivate, func(l []*vma.VmaEntry, i int) { l[i].Shmid = u64(999) })
	}},
	{"VMA file type", "zoo", "mm-", "as REG", func(d damaged) {
		d.vma(VMAFileShared|VMAMemfd, func(l []*vma.VmaEntry, i int) { l[i].Status = u32(l[i].GetStatus() &^ VMAMemfd) })
	}},
	{"vvar dropped", "counter", "mm-", "no vvar", func(d damaged) {
		d.mm(func(m *mm.MmEntry) {
			for i, a := range m.Vmas {
				if a.GetStatus()&VMAVvar != 0 {
					m.Vmas = append(m.Vmas[:i:i], m.Vmas[i+1:]...)
					return
				}
			}
		})
	}},
	{"vDSO page missing", "counter", "pagemap-", "vDSO page", func(d damaged) {
		d.vma(VMAVdso, func(vmas []*vma.VmaEntry, i int) {
			d.pagemap(func(l []proto.Message) []proto.Message {
				return slices.DeleteFunc(l, func(m proto.Message) bool {
					e, ok := m.(*pagemap.PagemapEntry)
					return ok && e.GetVaddr() == vmas[i].GetStart()
				})
			})
		})
	}},
	{"empty pagemap", "counter", "pagemap-", "empty pagemap", func(d damaged) {
		d.pagemap(func(l []proto.Message) []proto.Message { return l[:1] })
		d.set["pages-1.img"].Data = nil
	}},
	{"pagemap order", "counter", "pagemap-", "comes after", func(d damaged) {
		d.pagemap(func(l []proto.Message) []proto.Message { l[1], l[2] = l[2], l[1]; return l })
	}},
	{"pages outside VMAs", "counter", "pagemap-", "no private VMA", func(d damaged) {
		d.pagemap(func(l []proto.Message) []proto.Message { l[1].(*pagemap.PagemapEntry).Vaddr = u64(0x1000); return l })
	}},
	{"parent missing", "counter", "pagemap-", "parent", func(d damaged) {
		d.pagemap(func(l []proto.Message) []proto.Message { l[1].(*pagemap.PagemapEntry).Flags = u32(1); return l })
	}},
	{"pagemap count", "counter", "pages-1.img", "counts", func(d damaged) {
		d.pagemap(func(l []proto.Message) []proto.Message { return l[:len(l)-1] })
	}},
	{"pages cut", "counter", "pages-1.img", "counts", func(d damaged) {
		d.set["pages-1.img"].Data = d.set["pages-1.img"].Data[:5000]
	}},
	{"pages shifted", "counter", "pages-1.img", "not an ELF header", func(d damaged) {
		b := d.set["pages-1.img"].Data
		d.set["pages-1.img"].Data = append(make([]byte, PageSize), b[:len(b)-PageSize]...)
	}},
	{"pages of another pagemap", "zoo", "pagemap-", "also belongs", func(d damaged) {
		s, _ := Open(d.set)
		for _, k := range s.Keys(Pagemap) {
			edit(d, Pagemap, k, func(m *pagemap.PagemapHead) { m.PagesId = u32(3) })
		}
	}},
	{"file id twice", "counter", "files", "occurs twice", func(d damaged) {
		editList(d, Files, 0, func(l []proto.Message) []proto.Message { return append(l, l[0]) })
	}},
	{"file type", "counter", "files", "type 99", func(d damaged) {
		d.file(fdinfo.FdTypes_PIPE, func(f *fdinfo.FileEntry) { f.Type = fdinfo.FdTypes(99).Enum() })
	}},
	{"file member", "counter", "files", "no pipe", func(d damaged) {
		d.file(fdinfo.FdTypes_PIPE, func(f *fdinfo.FileEntry) { f.Pipe = nil })
	}},
	{"file inner id", "counter", "files", "has id", func(d damaged) {
		d.file(fdinfo.FdTypes_PIPE, func(f *fdinfo.FileEntry) { f.Pipe.Id = u32(4711) })
	}},
	{"relative path", "counter", "files", "absolute", func(d damaged) {
		d.file(fdinfo.FdTypes_REG, func(f *fdinfo.FileEntry) { f.Reg.Name = proto.String("etc/passwd") })
	}},
	{"fd of nothing", "counter", "fdinfo-", "refers to file 999", func(d damaged) {
		edit(d, FDInfo, d.only(FDInfo), func(f *fdinfo.FdinfoEntry) { f.Id = u32(999) })
	}},
	{"fd type", "counter", "fdinfo-", "as TTY", func(d damaged) {
		edit(d, FDInfo, d.only(FDInfo), func(f *fdinfo.FdinfoEntry) { f.Type = fdinfo.FdTypes_TTY.Enum() })
	}},
	{"fd twice", "counter", "fdinfo-", "occurs twice", func(d damaged) {
		edit(d, FDInfo, d.only(FDInfo), func(f *fdinfo.FdinfoEntry) { f.Fd = u32(1) })
	}},
	{"orphan pipe", "counter", "files", "no descriptor uses", func(d damaged) {
		editList(d, FDInfo, d.only(FDInfo), func(l []proto.Message) []proto.Message { return l[:len(l)-1] })
	}},
	{"pipe overfull", "counter", "pipes-data", "its size", func(d damaged) {
		edit(d, PipesData, 0, func(p *pipe_data.PipeDataEntry) { p.Size = u32(1) })
	}},
	{"cwd", "counter", "fs-", "cwd_id", func(d damaged) {
		edit(d, FS, d.leader(), func(f *criufs.FsEntry) { f.CwdId = u32(0) })
	}},
	{"orphan tty", "pty", "files", "no descriptor uses", func(d damaged) { delete(d.set, FDInfo.FileName(d.only(FDInfo))) }},
	{"no tty-info", "pty", "tty-info", "missing", func(d damaged) { delete(d.set, "tty-info.img") }},
	{"tty id", "pty", "files", "terminal 0", func(d damaged) {
		edit(d, TTYInfo, 0, func(m *tty.TtyInfoEntry) { m.Id = u32(6) })
	}},
	{"tty regf_id", "pty", "files", "regf_id", func(d damaged) {
		d.file(fdinfo.FdTypes_TTY, func(f *fdinfo.FileEntry) { f.Tty.RegfId = nil })
	}},
	{"c_cc", "pty", "tty-info", "c_cc", func(d damaged) {
		edit(d, TTYInfo, 0, func(m *tty.TtyInfoEntry) { m.Termios.CCc = m.Termios.CCc[:8] })
	}},
	{"pty index", "pty", "tty-info", "pty.index", func(d damaged) {
		edit(d, TTYInfo, 0, func(m *tty.TtyInfoEntry) { m.Pty = nil })
	}},
	{"epoll target", "zoo", "files", "epoll watches fd 700", func(d damaged) {
		d.file(fdinfo.FdTypes_EVENTPOLL, func(f *fdinfo.FileEntry) { f.Epfd.Tfd[0].Tfd = u32(700) })
	}},
	{"unix peer", "zoo", "files", "peer 12", func(d damaged) {
		d.file(fdinfo.FdTypes_UNIXSK, func(f *fdinfo.FileEntry) { f.Usk.Peer = u32(12) })
	}},
	{"packet for nobody", "zoo", "sk-queues", "packet for file 999", func(d damaged) {
		edit(d, SkQueues, 0, func(p *sk_packet.SkPacketEntry) { p.IdFor = u32(999) })
	}},
	{"connected TCP", "zoo", "tcp-stream-", "missing", func(d damaged) {
		d.file(fdinfo.FdTypes_INETSK, func(f *fdinfo.FileEntry) { f.Isk.State = u32(1) })
	}},
	{"no seccomp", "zoo", "seccomp", "missing", func(d damaged) { delete(d.set, "seccomp.img") }},
	{"seccomp circle", "zoo", "seccomp", "circle", func(d damaged) {
		edit(d, Seccomp, 0, func(s *seccomp.SeccompEntry) {
			for i, f := range s.SeccompFilters {
				f.Prev = u32(uint32(i))
			}
		})
	}},
	{"seccomp index", "zoo", "core-", "seccomp_filter", func(d damaged) {
		edit(d, Seccomp, 0, func(s *seccomp.SeccompEntry) { s.SeccompFilters = nil })
	}},
	{"no ghost", "zoo", "ghost-file-1", "missing", func(d damaged) { delete(d.set, "ghost-file-1.img") }},
	{"remap of nothing", "zoo", "remap-fpath", "orig_id", func(d damaged) {
		edit(d, RemapFpath, 0, func(r *remap_file_path.RemapFilePathEntry) { r.OrigId = u32(999) })
	}},
	{"no shared pages", "zoo", "pagemap-shmem-", "missing", func(d damaged) { delete(d.set, PagemapShmem.FileName(d.only(PagemapShmem))) }},
	{"shared object too small", "zoo", "pagemap-shmem-", "the object has", func(d damaged) {
		s, _ := Open(d.set)
		for _, k := range s.Keys(PagemapShmem) {
			edit(d, PagemapShmem, k, func(m *pagemap.PagemapEntry) { m.Vaddr = u64(1 << 30) })
		}
	}},
	{"no memfd inode", "zoo", "files", "memfd inode", func(d damaged) {
		edit(d, MemfdInode, 0, func(m *memfd.MemfdInodeEntry) { m.InodeId = u64(999) })
		editList(d, MemfdInode, 0, func(l []proto.Message) []proto.Message { return l[:1] })
	}},
	{"no System V pages", "ns", "pagemap-shmem-0", "missing", func(d damaged) { delete(d.set, "pagemap-shmem-0.img") }},
	{"no utsns", "ns", "utsns-", "missing", func(d damaged) { delete(d.set, Utsns.FileName(d.only(Utsns))) }},
	{"no ipcns", "ns", "ipcns-var-", "missing", func(d damaged) { delete(d.set, IPCVar.FileName(d.only(IPCVar))) }},
	{"pid namespace", "counter", "ids-", "pid_ns_id", func(d damaged) {
		edit(d, IDs, d.leader(), func(m *criu_core.TaskKobjIdsEntry) { m.PidNsId = u32(50) })
	}},
	{"cgroup sets twice", "counter", "cgroup", "occurs twice", func(d damaged) {
		var b bytes.Buffer
		e := NewEncoder(&b, Cgroup)
		require.NoError(d.t, e.Encode(&cgroup.CgroupEntry{Sets: []*cgroup.CgSetEntry{{Id: u32(1)}, {Id: u32(1)}}}))
		require.NoError(d.t, e.Close())
		d.set["cgroup.img"] = &fstest.MapFile{Data: b.Bytes()}
	}},
}

func (d damaged) regs(change func(r *core_x86.UserX86RegsEntry)) {
	d.core(func(c *criu_core.CoreEntry) { change(c.ThreadInfo.Gpregs) })
}

// TestVerifyDamage spoils real sets of every CRIU version in every way and
// expects to be told, at the right file and with the right words.
func TestVerifyDamage(t *testing.T) {
	for _, dmg := range damages {
		for _, v := range criuVersions {
			t.Run(dmg.name+"/"+v, func(t *testing.T) {
				d := damaged{t, realSet(t, v+"/"+dmg.set)}
				dmg.spoil(d)
				s, err := Open(d.set)
				require.NoError(t, err)
				problems := s.Verify()
				for _, p := range problems {
					if p.Severity == Error && strings.HasPrefix(p.File, dmg.file) && strings.Contains(p.What, dmg.what) {
						return
					}
				}
				t.Fatalf("no error at %s* with %q, but %v", dmg.file, dmg.what, problems)
			})
		}
	}
}

// TestVerifyFraming cuts one image of every kind at many places and flips its bytes: the
// file must be named, with an offset, or the change must leave valid content.
func TestVerifyFraming(t *testing.T) {
	seen := map[*Kind]bool{}
	for _, which := range []string{"3.17.1/pty", "4.2.1/ns"} {
		set := realSet(t, which)
		for name, f := range set {
			k, _, _ := KindOf(name)
			if k.Frame == FrameRaw || k == Inventory || seen[k] {
				continue
			}
			seen[k] = true
			whole := f.Data
			for cut := 0; cut < len(whole); cut += 1 + len(whole)/10 {
				f.Data = whole[:cut]
				s, err := Open(set)
				require.NoError(t, err)
				if entryEnds(t, k, whole)[cut] {
					continue // cut between entries: a shorter, valid file
				}
				requireFormatError(t, s, name, fmt.Sprintf("%s cut at %d of %d", name, cut, len(whole)))
			}
			for i := range 8 {
				f.Data = append([]byte(nil), whole...)
				f.Data[i] ^= 0xff
				s, err := Open(set)
				require.NoError(t, err)
				requireFormatError(t, s, name, fmt.Sprintf("%s byte %d flipped", name, i))
			}
			f.Data = append([]byte(nil), whole...)
			binary.LittleEndian.PutUint32(f.Data[8:], 1<<31)
			s, err := Open(set)
			require.NoError(t, err)
			requireFormatError(t, s, name, name+" with a wrong length")
			f.Data = whole
		}
	}
}

// entryEnds returns the offsets at which a file may end without anybody being
// able to tell: between entries, and inside a payload that has no length.
func entryEnds(t *testing.T, k *Kind, data []byte) map[int]bool {
	ends := map[int]bool{}
	d, err := NewDecoder(bytes.NewReader(data), k)
	require.NoError(t, err)
	for {
		_, err := d.Next()
		if !k.single && d.seq.n > 0 && !(k.rest != nil && d.Offset() <= 8) {
			ends[int(d.Offset())] = true
		}
		if err != nil {
			return ends
		}
		if d.PayloadSize() < 0 {
			for i := int(d.off); i < len(data); i++ {
				ends[i] = true
			}
		}
	}
}

func requireFormatError(t *testing.T, s *Set, file, what string) {
	t.Helper()
	for _, p := range s.Verify() {
		var fe *FormatError
		if p.Severity == Error && p.File == file && (errors.As(p.Err, &fe) && fe.File == file || p.What == "no entry") {
			return
		}
	}
	t.Fatalf("%s: not told", what)
}
