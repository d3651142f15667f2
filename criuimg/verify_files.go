package criuimg

import (
	"fmt"
	"io/fs"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	ghost_file "github.com/checkpoint-restore/go-criu/v8/crit/images/ghost-file"
	ipc_shm "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-shm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/memfd"
	pipe_data "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe-data"
	remap_file_path "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	sk_packet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-packet"
	tcp_stream "github.com/checkpoint-restore/go-criu/v8/crit/images/tcp-stream"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
)

// controlChars is how many entries c_cc must have (NCCS of the kernel).
const controlChars = 19

// members gives the field of file_entry that holds each type.
var members = map[fdinfo.FdTypes]protoreflect.Name{
	fdinfo.FdTypes_REG: "reg", fdinfo.FdTypes_PIPE: "pipe", fdinfo.FdTypes_FIFO: "fifo", fdinfo.FdTypes_INETSK: "isk",
	fdinfo.FdTypes_UNIXSK: "usk", fdinfo.FdTypes_EVENTFD: "efd", fdinfo.FdTypes_EVENTPOLL: "epfd", fdinfo.FdTypes_INOTIFY: "ify",
	fdinfo.FdTypes_SIGNALFD: "sgfd", fdinfo.FdTypes_PACKETSK: "psk", fdinfo.FdTypes_TTY: "tty", fdinfo.FdTypes_FANOTIFY: "ffy",
	fdinfo.FdTypes_NETLINKSK: "nlsk", fdinfo.FdTypes_NS: "nsf", fdinfo.FdTypes_TUNF: "tunf", fdinfo.FdTypes_EXT: "ext",
	fdinfo.FdTypes_TIMERFD: "tfd", fdinfo.FdTypes_MEMFD: "memfd", fdinfo.FdTypes_BPFMAP: "bpf", fdinfo.FdTypes_PIDFD: "pidfd",
}

// fileTable reads files.img into v.files and checks each entry by itself.
func (v *verifier) fileTable() {
	name := Files.FileName(0)
	if !v.readable(Files, 0, "executables and directories come from it") {
		return
	}
	for _, f := range get[*fdinfo.FileEntry](v, Files, 0) {
		if v.files[f.GetId()] != nil {
			v.errorf(name, "id %d occurs twice", f.GetId())
			continue
		}
		v.files[f.GetId()] = f
		member, ok := members[f.GetType()]
		if !ok {
			v.errorf(name, "id %d has type %d, which CRIU up to 4.2 does not know", f.GetId(), f.GetType())
			continue
		}
		r := f.ProtoReflect()
		fd := r.Descriptor().Fields().ByName(member)
		if !r.Has(fd) {
			v.errorf(name, "id %d has type %v but no %s", f.GetId(), f.GetType(), member)
			continue
		}
		inner := r.Get(fd).Message()
		if id := inner.Descriptor().Fields().ByName("id"); id != nil && inner.Get(id).Uint() != uint64(f.GetId()) {
			v.errorf(name, "id %d: %s has id %d", f.GetId(), member, inner.Get(id).Uint())
		}
		if g := f.GetReg(); g != nil && !g.GetExt() && !strings.HasPrefix(g.GetName(), "/") {
			v.errorf(name, "id %d: name %q is no absolute path", f.GetId(), g.GetName())
		}
	}
}

// wantFile reports a reference to a file that is missing or of another type.
func (v *verifier) wantFile(from, what string, id uint32, typ fdinfo.FdTypes) {
	if v.bad[Files.FileName(0)] || !v.s.Has(Files, 0) {
		return // reported once, for the file itself
	}
	f := v.files[id]
	if f == nil {
		v.errorf(from, "%s refers to file %d, which is not in %s", what, id, Files)
	} else if f.GetType() != typ {
		v.errorf(from, "%s refers to file %d as %v, but it is %v", what, id, typ, f.GetType())
	}
}

// fileUse checks what files of special types need besides their entry.
func (v *verifier) fileUse() {
	v.sockets()
	name := Files.FileName(0)
	ttys := v.terminals()
	pipes := map[uint32]bool{}
	for _, f := range get[*fdinfo.FileEntry](v, Files, 0) {
		id := f.GetId()
		switch {
		case f.Pipe != nil:
			pipes[f.Pipe.GetPipeId()] = true
			v.wantUsed(f)
		case f.Tty != nil:
			v.wantUsed(f)
			if !ttys[f.Tty.GetTtyInfoId()] {
				v.errorf(name, "id %d: terminal %d is not in %s", id, f.Tty.GetTtyInfoId(), TTYInfo)
			}
			if f.Tty.RegfId == nil {
				v.errorf(name, "id %d: tty without regf_id", id)
			} else {
				v.wantFile(name, "tty "+utoa(id), f.Tty.GetRegfId(), fdinfo.FdTypes_REG)
			}
		case f.Fifo != nil:
			pipes[f.Fifo.GetPipeId()] = true
			v.wantFile(name, "fifo "+utoa(id), f.Fifo.GetRegfId(), fdinfo.FdTypes_REG)
		case f.Epfd != nil:
			v.epoll(f)
		}
	}
	for _, k := range []*Kind{PipesData, FifoData} {
		seen := map[uint32]bool{}
		for _, p := range get[*pipe_data.PipeDataEntry](v, k, 0) {
			if seen[p.GetPipeId()] {
				v.errorf(k.FileName(0), "pipe_id %d occurs twice", p.GetPipeId())
			}
			seen[p.GetPipeId()] = true
			if !pipes[p.GetPipeId()] {
				v.warnf(k.FileName(0), "pipe_id %d is no pipe in %s", p.GetPipeId(), Files)
			}
			if p.Size != nil && p.GetBytes() > p.GetSize() {
				v.errorf(k.FileName(0), "pipe_id %d holds %d bytes, its size is %d", p.GetPipeId(), p.GetBytes(), p.GetSize())
			}
		}
	}
	v.remaps()
}

// wantUsed: CRIU stops with BUG on pipes and terminals without a descriptor.
func (v *verifier) wantUsed(f *fdinfo.FileEntry) {
	if !v.used[f.GetId()] {
		v.errorf(Files.FileName(0), "id %d: no descriptor uses this %v: CRIU crashes", f.GetId(), f.GetType())
	}
}

// epoll checks that watched descriptors are open in a task that has the epoll
// descriptor: restore adds them by number.
func (v *verifier) epoll(f *fdinfo.FileEntry) {
	t := v.holder[f.GetId()]
	if t == nil {
		return
	}
	for _, w := range f.Epfd.GetTfd() {
		if _, ok := t.fds[w.GetTfd()]; !ok {
			v.errorf(Files.FileName(0), "id %d: epoll watches fd %d, which is not open in pid %d", f.GetId(), w.GetTfd(), t.e.GetPid())
		}
	}
}

// terminals checks tty-info.img and returns its ids.
func (v *verifier) terminals() map[uint32]bool {
	name := TTYInfo.FileName(0)
	used := map[uint32]bool{}
	for _, f := range v.files {
		if f.Tty != nil {
			used[f.Tty.GetTtyInfoId()] = true
		}
	}
	ids := map[uint32]bool{}
	if len(used) > 0 && !v.readable(TTYInfo, 0, "there are terminals") {
		return ids
	}
	for _, t := range get[*tty.TtyInfoEntry](v, TTYInfo, 0) {
		id := t.GetId()
		if ids[id] {
			v.errorf(name, "id %d occurs twice", id)
		}
		ids[id] = true
		if !used[id] {
			v.warnf(name, "id %d: no file uses this terminal", id)
		}
		if t.GetType() < tty.TtyType_PTY || t.GetType() > tty.TtyType_SERIAL {
			v.errorf(name, "id %d has type %d", id, t.GetType())
		}
		if t.GetType() == tty.TtyType_PTY && t.Pty == nil {
			v.errorf(name, "id %d is a PTY without pty.index", id)
		} else if t.Pty != nil && id>>1 != t.Pty.GetIndex() {
			v.warnf(name, "id %d is not made from index %d: CRIU will not find the other end", id, t.Pty.GetIndex())
		}
		for _, m := range []*tty.TermiosEntry{t.Termios, t.TermiosLocked} {
			if m != nil && len(m.GetCCc()) < controlChars {
				v.errorf(name, "id %d: c_cc has %d words, must be %d", id, len(m.GetCCc()), controlChars)
			}
		}
	}
	return ids
}

// sockets checks unix peers, queued packets and TCP state.
func (v *verifier) sockets() {
	name := Files.FileName(0)
	unix := map[uint32]*fdinfo.FileEntry{}
	for _, f := range v.files {
		if f.Usk != nil {
			unix[f.Usk.GetIno()] = f
		}
	}
	for _, f := range get[*fdinfo.FileEntry](v, Files, 0) {
		switch {
		case f.Usk != nil:
			const extern = 1
			if p := f.Usk.GetPeer(); p != 0 && unix[p] == nil && f.Usk.GetUflags()&extern == 0 {
				v.errorf(name, "id %d: peer %d of the unix socket is not in the set", f.GetId(), p)
			}
		case f.Isk != nil:
			const tcp, listen, closed = 6, 10, 7
			i := f.Isk
			if i.GetProto() == tcp && i.GetState() != listen && i.GetState() != closed {
				if v.readable(TCPStream, uint64(i.GetIno()), "a TCP socket is connected") {
					v.warnf(name, "id %d: connected TCP socket: restore needs --tcp-established or --tcp-close", f.GetId())
					if s, ok := first[*tcp_stream.TcpStreamEntry](v, TCPStream, uint64(i.GetIno())); ok && s.UnsqLen == nil {
						v.errorf(TCPStream.FileName(uint64(i.GetIno())), "unsq_len missing")
					}
				}
			}
		}
	}
	queues := SkQueues.FileName(0)
	for _, p := range get[*sk_packet.SkPacketEntry](v, SkQueues, 0) {
		if v.files[p.GetIdFor()] == nil {
			v.errorf(queues, "packet for file %d, which is not in %s", p.GetIdFor(), Files)
		}
		for _, s := range p.GetScm() {
			for _, id := range s.GetRights() {
				v.used[id] = true
				if v.files[id] == nil {
					v.errorf(queues, "packet carries file %d, which is not in %s", id, Files)
				}
			}
		}
	}
}

// remaps checks files whose path is gone.
func (v *verifier) remaps() {
	name := RemapFpath.FileName(0)
	ghosts := map[uint64]bool{}
	for _, r := range get[*remap_file_path.RemapFilePathEntry](v, RemapFpath, 0) {
		if v.files[r.GetOrigId()] == nil && r.GetRemapType() != remap_file_path.RemapType_PROCFS {
			v.errorf(name, "orig_id %d is not in %s", r.GetOrigId(), Files)
		}
		switch r.GetRemapType() {
		case remap_file_path.RemapType_GHOST:
			ghosts[uint64(r.GetRemapId())] = true
			v.readable(GhostFile, uint64(r.GetRemapId()), fmt.Sprintf("%s needs it for file %d", name, r.GetOrigId()))
		case remap_file_path.RemapType_LINKED:
			v.wantFile(name, "remap_id", r.GetRemapId(), fdinfo.FdTypes_REG)
		}
	}
	for _, id := range v.s.Keys(GhostFile) {
		file := GhostFile.FileName(id)
		if !ghosts[id] {
			v.warnf(file, "nothing in the set refers to it")
		}
		var size uint64
		for _, m := range get[proto.Message](v, GhostFile, id) {
			switch m := m.(type) {
			case *ghost_file.GhostFileEntry:
				size = m.GetSize()
			case *ghost_file.GhostChunkEntry:
				if m.GetLen() > size || m.GetOff() > size-m.GetLen() {
					v.errorf(file, "chunk of %d bytes at %d is outside the file of %d", m.GetLen(), m.GetOff(), size)
				}
			}
		}
	}
}

// sharedObjects collects the sizes of memfd and System V objects.
func (v *verifier) sharedObjects() {
	inodes := map[uint64]bool{}
	want := func(id, size uint64, what string) {
		v.sharedBy[id] = max(v.sharedBy[id], size)
		if size > 0 && !v.s.Has(PagemapShmem, id) {
			v.add(Error, PagemapShmem.FileName(id), fs.ErrNotExist, "missing: %s has content", what)
		}
	}
	for _, m := range get[*memfd.MemfdInodeEntry](v, MemfdInode, 0) {
		inodes[m.GetInodeId()] = true
		want(uint64(m.GetShmid()), m.GetSize(), fmt.Sprintf("memfd inode %d", m.GetInodeId()))
	}
	for id, f := range v.files {
		if f.Memfd != nil && !inodes[uint64(f.Memfd.GetInodeId())] {
			v.errorf(Files.FileName(0), "id %d: memfd inode %d is not in %s", id, f.Memfd.GetInodeId(), MemfdInode)
		}
	}
	for _, ns := range v.s.Keys(IPCShm) {
		for _, m := range get[*ipc_shm.IpcShmEntry](v, IPCShm, ns) {
			if m.GetInPagemaps() {
				want(uint64(m.GetDesc().GetId()), m.GetSize(), fmt.Sprintf("System V segment %d", m.GetDesc().GetId()))
			}
		}
	}
}
