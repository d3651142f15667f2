package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// netSock is a socket in what net --json prints.
type netSock struct {
	socketEnds
	Inode   uint64     `json:"inode"`
	UID     uint32     `json:"uid"`
	RecvQ   uint64     `json:"recv_q"`
	SendQ   uint64     `json:"send_q"`
	Backlog uint32     `json:"backlog"` // of a listening socket
	BoundIf string     `json:"bound_if"`
	SndBuf  int32      `json:"sndbuf"`
	RcvBuf  int32      `json:"rcvbuf"`
	Mark    uint32     `json:"mark"`
	Options []string   `json:"options"` // those that are set
	Owners  []netOwner `json:"owners"`
	TCP     *netTCP    `json:"tcp,omitempty"`
}

// netOwner is a descriptor that leads to a socket.
type netOwner struct {
	PID  kernel.PID `json:"pid"`
	FD   int        `json:"fd"`
	Comm string     `json:"comm"`
}

// netTCP is what net --json prints of a TCP connection.
type netTCP struct {
	SndUna      uint32   `json:"snd_una"`
	SndNxt      uint32   `json:"snd_nxt"`
	WriteSeq    uint32   `json:"write_seq"`
	RcvNxt      uint32   `json:"rcv_nxt"`
	CopiedSeq   uint32   `json:"copied_seq"`
	SndWnd      uint32   `json:"snd_wnd"`
	RcvWnd      uint32   `json:"rcv_wnd"`
	MSS         uint32   `json:"mss"`
	Cwnd        uint32   `json:"cwnd"`
	RTTUs       int64    `json:"rtt_us"`
	RTOUs       int64    `json:"rto_us"`
	Retransmits uint8    `json:"retransmits"`
	Congestion  string   `json:"congestion"`
	Timer       string   `json:"timer"`
	TimerLeft   int64    `json:"timer_left_ns"`
	Options     []string `json:"options"` // that both ends use: timestamps, sack, wscale
}

// socketOwners finds the descriptors of all processes that are sockets, by struct
// sock. What changes while it is looked at is left out.
func socketOwners(ctx context.Context, k *kernel.Kernel) (map[kernel.Addr][]netOwner, error) {
	found, err := tasks(k, false)
	if err != nil {
		return nil, err
	}
	owners := map[kernel.Addr][]netOwner{}
	for _, t := range found {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		for fd, err := range t.Files() {
			if err != nil || fd.File.Kind != kernel.KindSocket {
				continue
			}
			if s, err := fd.File.Socket(); err == nil {
				owners[s.Addr] = append(owners[s.Addr], netOwner{t.PID, fd.Num, t.Comm})
			}
		}
	}
	return owners, nil
}

// readSockets returns the sockets of the namespace's tables, and those that only a
// descriptor leads to. A walk that a running guest broke is tried again.
func readSockets(ctx context.Context, n *kernel.Net, owners map[kernel.Addr][]netOwner, names map[int32]string) (all []netSock, err error) {
	for range walkTries {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if all, err = trySockets(n, owners, names); err == nil {
			break
		}
	}
	return all, err
}

func trySockets(n *kernel.Net, owners map[kernel.Addr][]netOwner, names map[int32]string) ([]netSock, error) {
	all := []netSock{}
	seen := map[kernel.Addr]bool{}
	for s, err := range n.Sockets() {
		if err != nil {
			return all, err
		}
		seen[s.Addr] = true
		sock, err := readSocket(s, names)
		if err != nil {
			return all, err
		}
		sock.Owners = append(sock.Owners, owners[s.Addr]...)
		all = append(all, sock)
	}
	for a, o := range owners {
		if seen[a] {
			continue
		}
		s, err := n.Kernel().SockAt(a)
		if err != nil {
			return all, err
		}
		if s.Net != n.Addr {
			continue
		}
		sock, err := readSocket(s, names)
		if err != nil {
			return all, err
		}
		sock.Owners = append(sock.Owners, o...)
		all = append(all, sock)
	}
	return all, nil
}

func readSocket(s *kernel.Socket, names map[int32]string) (netSock, error) {
	sock := netSock{Inode: s.Ino, UID: s.UID, BoundIf: names[s.BoundIf], Options: []string{}, Owners: []netOwner{}}
	var err error
	if sock.socketEnds, err = ends(s); err != nil || !s.Full() {
		if err == nil {
			sock.State, err = remnantState(s)
		}
		return sock, err
	}
	if s.State == kernel.TCPListen {
		sock.Backlog = s.Backlog
	}
	if s.Family == kernel.AFPacket {
		p, err := s.Packet()
		if err != nil {
			return sock, err
		}
		sock.BoundIf = names[p.IfIndex]
	}
	if sock.RecvQ, sock.SendQ, err = s.Queues(); err != nil {
		return sock, err
	}
	o, err := s.Options()
	if err != nil {
		return sock, err
	}
	sock.SndBuf, sock.RcvBuf, sock.Mark = o.SndBuf, o.RcvBuf, o.Mark
	sock.Options = append(sock.Options, optionNames(o)...)
	if sock.Protocol == "tcp" && sock.Type == "stream" {
		sock.TCP, err = readTCP(s)
	}
	return sock, err
}

// remnantState tells FIN_WAIT2 from TIME_WAIT.
func remnantState(s *kernel.Socket) (string, error) {
	r, err := s.Remnant()
	if err != nil {
		return "", err
	}
	return r.State.String(), nil
}

func optionNames(o *kernel.SocketOptions) (names []string) {
	for _, f := range []struct {
		on   bool
		name string
	}{
		{o.ReuseAddr, "reuseaddr"},
		{o.ReusePort, "reuseport"},
		{o.Broadcast, "broadcast"},
		{o.KeepAlive, "keepalive"},
		{o.OOBInline, "oobinline"},
		{o.DontRoute, "dontroute"},
		{o.Linger, "linger"},
		{o.PassCred, "passcred"},
		{o.PassSec, "passsec"},
		{o.Timestamp, "timestamp"},
		{o.TimestampNS, "timestampns"},
		{o.RxqOvfl, "rxq_ovfl"},
		{o.ZeroCopy, "zerocopy"},
		{o.NoCheck, "no_check"},
		{o.Filter, "filter"},
		{o.FilterLocked, "lock_filter"},
		{o.IPv6Only, "v6only"},
		{o.FreeBind, "freebind"},
		{o.Transparent, "transparent"},
		{o.HdrIncl, "hdrincl"},
		{o.RecvErr, "recverr"},
		{o.BindAddressNoPort, "bind_address_no_port"},
		{o.PktInfo, "pktinfo"},
	} {
		if f.on {
			names = append(names, f.name)
		}
	}
	return names
}

func readTCP(s *kernel.Socket) (*netTCP, error) {
	t, err := s.TCP()
	if err != nil {
		return nil, err
	}
	out := &netTCP{
		SndUna: t.SndUna, SndNxt: t.SndNxt, WriteSeq: t.WriteSeq, RcvNxt: t.RcvNxt, CopiedSeq: t.CopiedSeq,
		SndWnd: t.SndWnd, RcvWnd: t.RcvWnd, MSS: t.MSS, Cwnd: t.SndCwnd, RTTUs: t.SRTT().Microseconds(), RTOUs: t.RTO.Microseconds(),
		Retransmits: t.Retransmits, Congestion: t.Congestion, Timer: t.Timer.Kind.String(), TimerLeft: t.Timer.Left.Nanoseconds(),
		Options: []string{},
	}
	if t.TStampOK {
		out.Options = append(out.Options, "timestamps")
	}
	if t.SackOK != 0 {
		out.Options = append(out.Options, "sack")
	}
	if t.WScaleOK {
		out.Options = append(out.Options, fmt.Sprintf("wscale:%d,%d", t.SndWScale, t.RcvWScale))
	}
	return out, nil
}

func (a *app) printSockets(all []netSock) error {
	t := newTable(a.stdout, "SOCKET", "STATE", "RECV-Q", "SEND-Q", "LOCAL", "REMOTE", "PROCESS")
	for _, s := range all {
		kind := s.Protocol
		if s.Family == "unix" || s.Family == "netlink" || s.Family == "packet" {
			kind = s.Family + "/" + s.Type
		}
		remote := s.Remote
		if remote == "" && s.Peer != 0 {
			remote = fmt.Sprintf("socket:[%d]", s.Peer)
		}
		var owners []string
		for _, o := range s.Owners {
			owners = append(owners, fmt.Sprintf("%s(%d,fd=%d)", o.Comm, o.PID, o.FD))
		}
		t.row(kind, s.State, s.RecvQ, s.SendQ, s.Local, remote, strings.Join(owners, " "))
	}
	return t.flush()
}
