package criuimg

import (
	"google.golang.org/protobuf/proto"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/apparmor"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/autofs"
	binfmt_misc "github.com/checkpoint-restore/go-criu/v8/crit/images/binfmt-misc"
	bpfmap_data "github.com/checkpoint-restore/go-criu/v8/crit/images/bpfmap-data"
	bpfmap_file "github.com/checkpoint-restore/go-criu/v8/crit/images/bpfmap-file"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/cgroup"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/cpuinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/creds"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	criu_sa "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-sa"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/eventfd"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/eventpoll"
	ext_file "github.com/checkpoint-restore/go-criu/v8/crit/images/ext-file"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fh"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fifo"
	file_lock "github.com/checkpoint-restore/go-criu/v8/crit/images/file-lock"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fsnotify"
	ghost_file "github.com/checkpoint-restore/go-criu/v8/crit/images/ghost-file"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	ipc_msg "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-msg"
	ipc_sem "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-sem"
	ipc_shm "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-shm"
	ipc_var "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-var"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/memfd"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mnt"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/netdev"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/ns"
	packet_sock "github.com/checkpoint-restore/go-criu/v8/crit/images/packet-sock"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pidfd"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pidns"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pipe"
	pipe_data "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe-data"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	remap_file_path "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/rlimit"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/siginfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/signalfd"
	sk_inet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	sk_netlink "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-netlink"
	sk_packet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-packet"
	sk_unix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/stats"
	tcp_stream "github.com/checkpoint-restore/go-criu/v8/crit/images/tcp-stream"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timens"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timer"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timerfd"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tun"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/userns"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/utsns"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
)

// Images of the whole tree: one file each, no key.
var (
	Inventory  = one("inventory", keyNone, 0x58313116, of[inventory.InventoryEntry]).frame(FrameBare) // version, namespaces of the dumper
	Pstree     = many("pstree", keyNone, 0x50273030, of[pstree.PstreeEntry])                          // one entry a process, parents first
	Files      = many("files", keyNone, 0x56303138, of[fdinfo.FileEntry])                             // open files of all types
	TTYInfo    = many("tty-info", keyNone, 0x59453036, of[tty.TtyInfoEntry])                          // one entry a terminal end
	TTYData    = many("tty-data", keyNone, 0x59413026, of[tty.TtyDataEntry])                          // unread terminal input
	Seccomp    = one("seccomp", keyNone, 0x64413049, of[seccomp.SeccompEntry])                        // filters of all threads
	RemapFpath = many("remap-fpath", keyNone, 0x59133954, of[remap_file_path.RemapFilePathEntry])     // files whose path is gone
	MemfdInode = many("memfd", keyNone, 0x48453499, of[memfd.MemfdInodeEntry])                        // memfd objects
	PipesData  = many("pipes-data", keyNone, 0x56453709, of[pipe_data.PipeDataEntry]).with(pipeData)  // bytes in flight, one entry a pipe
	FifoData   = many("fifo-data", keyNone, 0x59333054, of[pipe_data.PipeDataEntry]).with(pipeData)   // the same for named pipes
	SkQueues   = many("sk-queues", keyNone, 0x56264026, of[sk_packet.SkPacketEntry]).with(skQueue)    // received, unread packets
	FileLocks  = many("filelocks", keyNone, 0x54323616, of[file_lock.FileLockEntry])                  // POSIX, flock, lease
	Cgroup     = one("cgroup", keyNone, 0x59383330, of[cgroup.CgroupEntry])                           // cgroup sets and controllers
	CPUInfo    = one("cpuinfo", keyNone, 0x61404013, of[cpuinfo.CpuinfoEntry])                        // only for --cpu-cap checks
	Apparmor   = one("apparmor", keyNone, 0x59423047, of[apparmor.ApparmorEntry])                     // policy
	BPFMapFile = many("bpfmap-file", keyNone, 0x57506142, of[bpfmap_file.BpfmapFileEntry])            // BPF maps
	BPFMapData = many("bpfmap-data", keyNone, 0x64324033, of[bpfmap_data.BpfmapDataEntry]).with(bpfmapData)
	BinfmtMisc = many("binfmt-misc", keyNone, 0x67343323, of[binfmt_misc.BinfmtMiscEntry])
)

// Images of one process, thread or file table. The key is a pid or tid in the
// task's own pid namespace unless said otherwise.
var (
	Core         = one("core", keyDecimal, 0x55053847, of[criu_core.CoreEntry])       // registers and task state, one file a thread
	IDs          = one("ids", keyDecimal, 0x54432030, of[criu_core.TaskKobjIdsEntry]) // which objects and namespaces are shared
	MM           = one("mm", keyDecimal, 0x57492820, of[mm.MmEntry])                  // address space with its VMAs
	FS           = one("fs", keyDecimal, 0x51403912, of[fs.FsEntry])                  // cwd, root, umask
	FDInfo       = many("fdinfo", keyDecimal, 0x56213732, of[fdinfo.FdinfoEntry])     // file table; the key is files_id of the ids image
	Pagemap      = many("pagemap", keyDecimal, 0x56084025, of[pagemap.PagemapHead]).then(of[pagemap.PagemapEntry])
	PagemapShmem = many("pagemap-shmem", keyDecimal, 0x56084025, of[pagemap.PagemapHead]).then(of[pagemap.PagemapEntry]) // the key is shmid
	GhostFile    = many("ghost-file", keyHex, 0x52583605, of[ghost_file.GhostFileEntry]).
			then(of[ghost_file.GhostChunkEntry]).with(ghostData) // an unlinked file; the key is remap_id
	TCPStream = one("tcp-stream", keyHex, 0x51465506, of[tcp_stream.TcpStreamEntry]).with(tcpData) // the key is the socket's inode
)

// Images of one namespace; the key is the id that the ids images use.
var (
	Utsns       = one("utsns", keyDecimal, 0x54473203, of[utsns.UtsnsEntry])
	Userns      = one("userns", keyDecimal, 0x55474906, of[userns.UsernsEntry])
	Pidns       = one("pidns", keyDecimal, 0x61157326, of[pidns.PidnsEntry])
	Timens      = one("timens", keyDecimal, 0x43114433, of[timens.TimensEntry]) // key 0: clocks of the host's time namespace
	Netns       = one("netns", keyDecimal, 0x55933752, of[netdev.NetnsEntry])
	Netdev      = many("netdev", keyDecimal, 0x57373951, of[netdev.NetDeviceEntry])
	Mountpoints = many("mountpoints", keyDecimal, 0x55563928, of[mnt.MntEntry])
	IPCVar      = one("ipcns-var", keyDecimal, 0x53115007, of[ipc_var.IpcVarEntry])
	IPCShm      = many("ipcns-shm", keyDecimal, 0x46283044, of[ipc_shm.IpcShmEntry]).with(ipcShmData)
	IPCSem      = many("ipcns-sem", keyDecimal, 0x59573019, of[ipc_sem.IpcSemEntry]).with(ipcSemData)
	IPCMsg      = many("ipcns-msg", keyDecimal, 0x55453737, of[ipc_msg.IpcMsgEntry]).with(ipcMsgData)
	Autofs      = many("autofs", keyDecimal, 0x49353943, of[autofs.AutofsEntry])
)

// Images about CRIU itself; restore never reads the first two.
var (
	StatsDump    = one("stats-dump", keyNone, 0x57093306, of[stats.StatsEntry]).frame(FrameService).suffix("")
	StatsRestore = one("stats-restore", keyNone, 0x57093306, of[stats.StatsEntry]).frame(FrameService).suffix("")
	IrmapCache   = many("irmap-cache", keyNone, 0x57004059, of[fh.IrmapCacheEntry]).frame(FrameService).suffix("")
)

// Raw files: no magic, no entries.
var (
	Pages     = raw("pages", ".img") // the key is pages_id of a pagemap head
	Ifaddr    = raw("ifaddr", ".img")
	Route     = raw("route", ".img")
	Route6    = raw("route6", ".img")
	Rule      = raw("rule", ".img")
	Iptables  = raw("iptables", ".img")
	IP6tables = raw("ip6tables", ".img")
	Nftables  = raw("nftables", ".img")
	NetnsCT   = raw("netns-ct", ".img")
	NetnsExp  = raw("netns-exp", ".img")
	Tmpfs     = raw("tmpfs", ".tar.gz.img")     // the key is a mount id
	TmpfsDev  = raw("tmpfs-dev", ".tar.gz.img") // the key is a device number
)

// Images that only old versions wrote, or that newer ones fold into core and
// files images. They are decoded, never written by this module.
var (
	OldCreds         = one("creds", keyDecimal, 0x54023547, of[creds.CredsEntry])
	OldVMAs          = many("vmas", keyDecimal, 0x54123737, of[vma.VmaEntry])
	OldItimers       = many("itimers", keyDecimal, 0x57464056, of[timer.ItimerEntry])
	OldPosixTimers   = many("posix-timers", keyDecimal, 0x52603957, of[timer.PosixTimerEntry])
	OldRlimit        = many("rlimit", keyDecimal, 0x57113925, of[rlimit.RlimitEntry])
	OldSigacts       = many("sigacts", keyDecimal, 0x55344201, of[criu_sa.SaEntry])
	OldSignalShared  = many("signal-s", keyDecimal, 0x59255647, of[siginfo.SiginfoEntry])
	OldSignalPrivate = many("signal-p", keyDecimal, 0x59255647, of[siginfo.SiginfoEntry])
	OldRegFiles      = many("reg-files", keyNone, 0x50363636, of[regfile.RegFileEntry])
	OldExtFiles      = many("ext-files", keyNone, 0x59255641, of[ext_file.ExtFileEntry])
	OldNSFiles       = many("ns-files", keyNone, 0x61394011, of[ns.NsFileEntry])
	OldEventfd       = many("eventfd", keyNone, 0x44523722, of[eventfd.EventfdFileEntry])
	OldEventpoll     = many("eventpoll", keyNone, 0x45023858, of[eventpoll.EventpollFileEntry])
	OldEventpollTfd  = many("eventpoll-tfd", keyNone, 0x44433746, of[eventpoll.EventpollTfdEntry])
	OldSignalfd      = many("signalfd", keyNone, 0x57323820, of[signalfd.SignalfdEntry])
	OldInotify       = many("inotify", keyNone, 0x48424431, of[fsnotify.InotifyFileEntry])
	OldInotifyWd     = many("inotify-wd", keyNone, 0x54562009, of[fsnotify.InotifyWdEntry])
	OldFanotify      = many("fanotify", keyNone, 0x55096122, of[fsnotify.FanotifyFileEntry])
	OldFanotifyMark  = many("fanotify-mark", keyNone, 0x56506035, of[fsnotify.FanotifyMarkEntry])
	OldPipes         = many("pipes", keyNone, 0x56513555, of[pipe.PipeEntry])
	OldFifo          = many("fifo", keyNone, 0x58364939, of[fifo.FifoEntry])
	OldUnixsk        = many("unixsk", keyNone, 0x54373943, of[sk_unix.UnixSkEntry])
	OldInetsk        = many("inetsk", keyNone, 0x56443851, of[sk_inet.InetSkEntry])
	OldPacketsk      = many("packetsk", keyNone, 0x60454618, of[packet_sock.PacketSockEntry])
	OldNetlinksk     = many("netlinksk", keyNone, 0x58005614, of[sk_netlink.NetlinkSkEntry])
	OldTTY           = many("tty", keyNone, 0x59433025, of[tty.TtyFileEntry])
	OldTunfile       = many("tunfile", keyNone, 0x57143751, of[tun.TunfileEntry])
	OldTimerfd       = many("timerfd", keyNone, 0x50493712, of[timerfd.TimerfdEntry])
	OldPidfd         = many("pidfd", keyNone, 0x54435556, of[pidfd.PidfdEntry])
)

var kinds = []*Kind{
	Inventory, Pstree, Files, TTYInfo, TTYData, Seccomp, RemapFpath, MemfdInode, PipesData, FifoData,
	SkQueues, FileLocks, Cgroup, CPUInfo, Apparmor, BPFMapFile, BPFMapData, BinfmtMisc,
	Core, IDs, MM, FS, FDInfo, Pagemap, PagemapShmem, GhostFile, TCPStream,
	Utsns, Userns, Pidns, Timens, Netns, Netdev, Mountpoints, IPCVar, IPCShm, IPCSem, IPCMsg, Autofs,
	StatsDump, StatsRestore, IrmapCache,
	Pages, Ifaddr, Route, Route6, Rule, Iptables, IP6tables, Nftables, NetnsCT, NetnsExp, Tmpfs, TmpfsDev,
	OldCreds, OldVMAs, OldItimers, OldPosixTimers, OldRlimit, OldSigacts, OldSignalShared, OldSignalPrivate,
	OldRegFiles, OldExtFiles, OldNSFiles, OldEventfd, OldEventpoll, OldEventpollTfd, OldSignalfd, OldInotify,
	OldInotifyWd, OldFanotify, OldFanotifyMark, OldPipes, OldFifo, OldUnixsk, OldInetsk, OldPacketsk,
	OldNetlinksk, OldTTY, OldTunfile, OldTimerfd, OldPidfd,
}

// of makes an empty *T where *T is a message.
func of[T any, M interface {
	*T
	proto.Message
}]() proto.Message {
	return M(new(T))
}

func many(name string, key keyForm, magic uint32, first func() proto.Message) *Kind {
	return &Kind{Name: name, Magic: magic, Frame: FrameCommon, ext: ".img", key: key, first: first}
}

func one(name string, key keyForm, magic uint32, first func() proto.Message) *Kind {
	k := many(name, key, magic, first)
	k.single = true
	return k
}

func raw(name, ext string) *Kind {
	return &Kind{Name: name, Frame: FrameRaw, ext: ext, key: keyDecimal}
}

func (k *Kind) frame(f Frame) *Kind               { k.Frame = f; return k }
func (k *Kind) suffix(s string) *Kind             { k.ext = s; return k }
func (k *Kind) then(m func() proto.Message) *Kind { k.rest = m; return k }
func (k *Kind) with(p payloadRule) *Kind          { k.payload = p; return k }
