package kernel

import (
	"fmt"
	"net/netip"
)

// Socket is the state of a file of KindSocket.
type Socket struct {
	k    *Kernel
	Addr Addr // of the struct sock: its identity
	Ino  uint64
	sockFields
}

type sockFields struct {
	Family     uint16 `k:"__sk_common.skc_family"` // AF_*
	State      uint8  `k:"__sk_common.skc_state"`  // TCP_*, for other families too
	Net        Addr   `k:"__sk_common.skc_net"`    // struct net
	Type       uint16 `k:"sk_type"`                // SOCK_*
	Protocol   uint16 `k:"sk_protocol"`
	Shutdown   uint8  `k:"sk_shutdown"` // 1 no more reads, 2 no more writes
	Backlog    uint32 `k:"sk_max_ack_backlog"`
	SndBuf     int32  `k:"sk_sndbuf"`
	RcvBuf     int32  `k:"sk_rcvbuf"`
	SocketAddr Addr   `k:"sk_socket"`
	RecvQLen   uint32 `k:"sk_receive_queue.qlen"` // buffers received and not read
	WriteQLen  uint32 `k:"sk_write_queue.qlen"`

	DAddr   [4]byte  `k:"__sk_common.skc_daddr"`
	SAddr   [4]byte  `k:"__sk_common.skc_rcv_saddr"`
	DPort   [2]byte  `k:"__sk_common.skc_dport"` // network order
	SPort   uint16   `k:"__sk_common.skc_num"`
	DAddr6  [16]byte `k:"__sk_common.skc_v6_daddr,opt"`
	SAddr6  [16]byte `k:"__sk_common.skc_v6_rcv_saddr,opt"`
	BoundIf int32    `k:"__sk_common.skc_bound_dev_if"`
}

type socket struct {
	SK   Addr `k:"sk"`
	File Addr `k:"file"`
}

type unixSock struct {
	UAddr Addr `k:"addr"`
	Peer  Addr `k:"peer"`
}

type unixAddress struct {
	Len  int32 `k:"len"`
	Name Addr  `k:"&name"`
}

var (
	sockLayout        = LayoutOf[sockFields]("sock")
	socketLayout      = LayoutOf[socket]("socket")
	unixSockLayout    = LayoutOf[unixSock]("unix_sock") // absent if AF_UNIX is a module
	unixAddressLayout = LayoutOf[unixAddress]("unix_address")
)

// Address families (include/linux/socket.h).
const (
	AFUnix    = 1
	AFInet    = 2
	AFInet6   = 10
	AFNetlink = 16
	AFPacket  = 17
)

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

// SockAt reads the struct sock at a. Its Ino is not known.
func (k *Kernel) SockAt(a Addr) (*Socket, error) {
	s := &Socket{k: k, Addr: a}
	if err := sockLayout.LoadInto(k, a, &s.sockFields); err != nil {
		return nil, err
	}
	return s, nil
}

// Inet returns the local and the remote end of an IPv4 or IPv6 socket; invalid
// values for other families.
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

// UnixName returns the name that a Unix socket is bound to: a path, or after a NUL
// byte an abstract name; "" if it is not bound. Source: net/unix/af_unix.c:
// unix_seq_show.
func (s *Socket) UnixName() (string, error) {
	u, err := s.unix()
	if err != nil || u.UAddr == 0 {
		return "", err
	}
	a, err := unixAddressLayout.Load(s.k, u.UAddr)
	if err != nil {
		return "", err
	}
	n := int(a.Len) - 2 // sun_family
	if n < 0 || n > 108 {
		return "", corrupt(u.UAddr, "unix_address", "length %d", a.Len)
	}
	b := make([]byte, n)
	if _, err := s.k.ReadAt(b, a.Name+2); err != nil {
		return "", err
	}
	if n > 0 && b[0] != 0 {
		return cstring(b), nil
	}
	return string(b), nil
}

// UnixPeer returns the socket at the other end of a Unix socket, nil if it is not
// connected.
func (s *Socket) UnixPeer() (*Socket, error) {
	u, err := s.unix()
	if err != nil || u.Peer == 0 {
		return nil, err
	}
	p, err := s.k.SockAt(u.Peer)
	if err != nil || p.SocketAddr == 0 {
		return p, err // the peer was closed
	}
	off, err := s.k.offsetOf("socket_alloc", "vfs_inode")
	if err != nil {
		return nil, err
	}
	in, err := s.k.InodeAt(p.SocketAddr.Add(off))
	if err != nil {
		return nil, err
	}
	p.Ino = in.Ino
	return p, nil
}

func (s *Socket) unix() (unixSock, error) {
	if s.Family != AFUnix {
		return unixSock{}, &PathError{Path: "sock", Addr: s.Addr, Err: fmt.Errorf("%w: family %d, not AF_UNIX", ErrWrongKind, s.Family)}
	}
	return unixSockLayout.Load(s.k, s.Addr)
}
