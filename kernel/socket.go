package kernel

import (
	"fmt"
	"net/netip"
)

// Socket is the kernel's side of a socket: a struct sock. A file leads to one
// (File.Socket), and so do the tables of a network namespace (Net.Sockets), which
// also hold sockets that have no file: closed ones whose data is still under way,
// and connections that nobody has accepted.
type Socket struct {
	k    *Kernel
	Addr Addr   // of the struct sock: its identity
	Ino  uint64 // of the socket's inode, 0 without one
	sockCommon
	sockFields // zero if the socket is not Full
}

// sockCommon is what all sockets have, those too that are only memories of a
// connection.
type sockCommon struct {
	Family    uint16    `k:"skc_family"` // AF_*
	State     SockState `k:"skc_state"`  // for other families than TCP too
	Net       Addr      `k:"skc_net"`    // struct net
	Hash      uint32    `k:"skc_hash"`
	RefCount  int32     `k:"skc_refcnt.refs.counter"`
	ReuseAddr uint8     `k:"skc_reuse"`
	ReusePort bool      `k:"skc_reuseport"`
	IPv6Only  bool      `k:"skc_ipv6only"`
	BoundIf   int32     `k:"skc_bound_dev_if"` // SO_BINDTODEVICE
	Flags     uint64    `k:"skc_flags"`        // of a full socket: enum sock_flags
	Prot      Addr      `k:"skc_prot"`

	DAddr  [4]byte  `k:"skc_daddr"`
	SAddr  [4]byte  `k:"skc_rcv_saddr"`
	DPort  [2]byte  `k:"skc_dport"` // network order
	SPort  uint16   `k:"skc_num"`
	DAddr6 [16]byte `k:"skc_v6_daddr,opt"`
	SAddr6 [16]byte `k:"skc_v6_rcv_saddr,opt"`
}

type sockFields struct {
	Type       uint16 `k:"sk_type"` // SOCK_*
	Protocol   uint16 `k:"sk_protocol"`
	Shutdown   uint8  `k:"sk_shutdown"`        // 1 no more reads, 2 no more writes
	Backlog    uint32 `k:"sk_max_ack_backlog"` // of listen(2)
	AckBacklog uint32 `k:"sk_ack_backlog"`     // connections that wait for accept(2); TCP
	SndBuf     int32  `k:"sk_sndbuf"`
	RcvBuf     int32  `k:"sk_rcvbuf"`
	SocketAddr Addr   `k:"sk_socket"`
	InodeNum   uint64 `k:"sk_ino,opt"`            // since 6.19
	RecvQLen   uint32 `k:"sk_receive_queue.qlen"` // buffers received and not read
	WriteQLen  uint32 `k:"sk_write_queue.qlen"`
	ErrorQLen  uint32 `k:"sk_error_queue.qlen"`
	UID        uint32 `k:"sk_uid"` // who made it, in the initial user namespace
	Err        int32  `k:"sk_err"`

	RMemAlloc  int32  `k:"sk_backlog.rmem_alloc.counter"` // memory of what was received
	WMemAlloc  int32  `k:"sk_wmem_alloc.refs.counter"`    // memory of what is being sent, and 1
	WMemQueued int32  `k:"sk_wmem_queued"`
	BacklogLen int32  `k:"sk_backlog.len"`
	Mark       uint32 `k:"sk_mark"`
	Priority   uint32 `k:"sk_priority"`
	PeerPID    Addr   `k:"sk_peer_pid"`

	RecvQ    Addr `k:"&sk_receive_queue"`
	WriteQ   Addr `k:"&sk_write_queue"`
	RtxQueue Addr `k:"&tcp_rtx_queue"`
}

type socket struct {
	SK    Addr   `k:"sk"`
	File  Addr   `k:"file"`
	Flags uint64 `k:"flags"`
}

var (
	sockCommonLayout = LayoutOf[sockCommon]("sock_common")
	sockLayout       = LayoutOf[sockFields]("sock")
	socketLayout     = LayoutOf[socket]("socket")
)

// Address families (include/linux/socket.h).
const (
	AFUnix    = 1
	AFInet    = 2
	AFInet6   = 10
	AFNetlink = 16
	AFPacket  = 17
)

// Types of sockets (include/linux/net.h).
const (
	SockStream    = 1
	SockDgram     = 2
	SockRaw       = 3
	SockRDM       = 4
	SockSeqPacket = 5
	SockPacket    = 10
)

// Protocols of AF_INET and AF_INET6 (include/uapi/linux/in.h).
const (
	ProtoICMP    = 1
	ProtoTCP     = 6
	ProtoUDP     = 17
	ProtoICMPv6  = 58
	ProtoUDPLite = 136
)

// SockState is the state of a socket. The names are TCP's; other families use some
// of them.
type SockState uint8

// States of sockets (include/net/tcp_states.h).
const (
	TCPEstablished SockState = iota + 1
	TCPSynSent
	TCPSynRecv
	TCPFinWait1
	TCPFinWait2
	TCPTimeWait
	TCPClose
	TCPCloseWait
	TCPLastAck
	TCPListen
	TCPClosing
	TCPNewSynRecv // a connection of which only the first packet has come
)

var sockStateNames = [...]string{
	"NONE", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE",
	"CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV",
}

func (s SockState) String() string {
	if int(s) < len(sockStateNames) {
		return sockStateNames[s]
	}
	return fmt.Sprintf("state%d", uint8(s))
}

// Socket returns the socket behind a file. Errors: ErrWrongKind, *PathError,
// ErrCorrupt. Source: net/socket.c:sock_from_file.
func (f *File) Socket() (*Socket, error) {
	if f.Kind != KindSocket || f.Private == 0 {
		return nil, f.wrongKind("socket")
	}
	s, err := socketLayout.Load(f.k, f.Private)
	if err != nil {
		return nil, err
	}
	if s.File != f.Addr {
		return nil, corrupt(f.Private, "socket", "belongs to file %s, not %s", s.File, f.Addr)
	}
	sk, err := f.k.SockAt(s.SK)
	if err != nil {
		return nil, err
	}
	sk.Ino = f.Inode.Ino
	return sk, nil
}

// SockAt reads the struct sock at a, or what is left of one: see Full. Errors:
// *PathError.
func (k *Kernel) SockAt(a Addr) (*Socket, error) {
	s := &Socket{k: k, Addr: a}
	if err := sockCommonLayout.LoadInto(k, a, &s.sockCommon); err != nil {
		return nil, err
	}
	if !s.Full() {
		return s, nil
	}
	if err := sockLayout.LoadInto(k, a, &s.sockFields); err != nil {
		return nil, err
	}
	var err error
	s.Ino, err = s.inode()
	return s, err
}

// inode is net/core/sock.c:sock_i_ino.
func (s *Socket) inode() (uint64, error) {
	if s.SocketAddr == 0 || sockLayout.Has(s.k, "InodeNum") {
		return s.InodeNum, nil
	}
	inode, err := s.k.offsetOf("socket_alloc", "vfs_inode")
	if err != nil {
		return 0, err
	}
	ino, err := s.k.offsetOf("inode", "i_ino")
	if err != nil {
		return 0, err
	}
	n, err := s.k.ReadU64(s.SocketAddr.Add(inode + ino))
	if err != nil {
		return 0, &PathError{Path: "sock.sk_socket", Addr: s.Addr, Err: err}
	}
	return n, nil
}

// Kernel returns the kernel that s was read from.
func (s *Socket) Kernel() *Kernel { return s.k }

// Full says whether s is a whole socket. A connection in TIME_WAIT, and one whose
// handshake has only begun (NEW_SYN_RECV), have addresses and a state, but no
// queues, options or inode. Source: include/net/sock.h:sk_fullsock.
func (s *Socket) Full() bool {
	return s.Family != AFInet && s.Family != AFInet6 || s.State != TCPTimeWait && s.State != TCPNewSynRecv
}

// Inet returns the local and the remote end of an IPv4 or IPv6 socket; invalid
// values for other families. An IPv6 socket that talks IPv4 has addresses like
// ::ffff:127.0.0.1; netip.Addr.Unmap makes them short. The local port of a raw
// socket is its protocol.
func (s *Socket) Inet() (local, remote netip.AddrPort) {
	dport := uint16(s.DPort[0])<<8 | uint16(s.DPort[1])
	switch s.Family {
	case AFInet:
		return netip.AddrPortFrom(netip.AddrFrom4(s.SAddr), s.SPort), netip.AddrPortFrom(netip.AddrFrom4(s.DAddr), dport)
	case AFInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(s.SAddr6), s.SPort), netip.AddrPortFrom(netip.AddrFrom16(s.DAddr6), dport)
	}
	return
}

func (s *Socket) isInet() bool { return s.Family == AFInet || s.Family == AFInet6 }

// wrongKind is the error of asking a socket for what it is not.
func (s *Socket) wrongKind(want string) error {
	return &PathError{Path: "sock", Addr: s.Addr, Err: fmt.Errorf("%w: family %d, protocol %d, %s is no %s socket",
		ErrWrongKind, s.Family, s.Protocol, s.State, want)}
}

// Queues returns how much waits to be read and how much was written and not yet
// acknowledged or taken, as ss and /proc/net show them: bytes of the stream for
// TCP, what the unread data occupies in memory for UDP, raw, netlink and packet
// sockets; bytes to read, and memory of what was sent, for Unix sockets. For
// listening sockets recv counts the connections that wait for accept(2).
func (s *Socket) Queues() (recv, send uint64, err error) {
	if !s.Full() {
		return 0, 0, nil
	}
	count := func(n int32) uint64 { return uint64(max(n, 0)) }
	recv, send = count(s.RMemAlloc), count(s.WMemAlloc-1)
	switch {
	case s.Family == AFUnix && s.State == TCPListen:
		return uint64(s.RecvQLen), 0, nil
	case s.Family == AFUnix:
		recv, err = s.unixUnread()
	case s.isInet() && s.Protocol == ProtoTCP && s.Type == SockStream:
		if s.State == TCPListen {
			return uint64(s.AckBacklog), 0, nil
		}
		t, err := tcpSeqLayout.Load(s.k, s.Addr)
		if err != nil {
			return 0, 0, err
		}
		return count(int32(t.RcvNxt - t.CopiedSeq)), uint64(t.WriteSeq - t.SndUna), nil
	case s.isInet() && s.isUDP():
		u, err := udpSockLayout.Load(s.k, s.Addr)
		if err != nil {
			return 0, 0, err
		}
		recv = count(s.RMemAlloc - u.ForwardDeficit)
	}
	return recv, send, err
}

func (s *Socket) isUDP() bool {
	return s.Type == SockDgram && (s.Protocol == ProtoUDP || s.Protocol == ProtoUDPLite)
}
