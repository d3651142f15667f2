package kernel_test

import (
	"fmt"
	"strings"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// procNetLine returns the file of /proc/net that a socket is in, and its line in the
// columns of procNetColumns.
func procNetLine(s *kernel.Socket) (file, line string, err error) {
	switch s.Family {
	case kernel.AFUnix:
		line, err = procUnix(s)
		return "unix", line, err
	case kernel.AFNetlink:
		line, err = procNetlink(s)
		return "netlink", line, err
	case kernel.AFPacket:
		line, err = procPacket(s)
		return "packet", line, err
	case kernel.AFInet:
	case kernel.AFInet6:
		file = "6"
	default:
		return "", "", fmt.Errorf("family %d", s.Family)
	}
	local, remote := s.Inet()
	ends := procAddr(local) + " " + procAddr(remote)
	if !s.Full() {
		line, err = procRemnant(s, ends)
		return "tcp" + file, line, err
	}
	recv, send, err := s.Queues()
	if err != nil {
		return "inet", ends, err
	}
	switch {
	case s.Type == kernel.SockStream:
		line, err = procTCP(s, ends, recv, send)
		return "tcp" + file, line, err
	case s.Type == kernel.SockRaw:
		file = "raw" + file
	case s.Protocol == kernel.ProtoUDP:
		file = "udp" + file
	case s.Protocol == kernel.ProtoUDPLite:
		file = "udplite" + file
	default:
		file = "icmp" + file
	}
	return file, fmt.Sprintf("%s %02X %08X:%08X %d %d %d", ends, uint8(s.State), send, recv, s.UID, s.Ino, s.RefCount), nil
}

func procUnix(s *kernel.Socket) (string, error) {
	const acceptCon = 1 << 16 // __SO_ACCEPTCON
	flags, st := 0, 1         // SS_UNCONNECTED
	if s.State == kernel.TCPListen {
		flags = acceptCon
	}
	switch {
	case s.State == kernel.TCPEstablished && s.SocketAddr != 0:
		st = 3 // SS_CONNECTED
	case s.State == kernel.TCPEstablished:
		st = 2
	case s.SocketAddr == 0:
		st = 4
	}
	name, err := s.UnixName()
	if strings.HasPrefix(name, "\x00") {
		name = strings.ReplaceAll(name, "\x00", "@")
	}
	return strings.TrimSpace(fmt.Sprintf("%08X %04X %02X %d %s", flags, s.Type, st, s.Ino, latin1(name))), err
}

func procNetlink(s *kernel.Socket) (string, error) {
	n, err := s.Netlink()
	if err != nil {
		return "", err
	}
	groups, err := s.Groups()
	first := uint32(0)
	if len(groups) > 0 {
		first = groups[0]
	}
	dump := 0
	if n.DumpUnder {
		dump = 1
	}
	recv, send, qerr := s.Queues()
	if err == nil {
		err = qerr
	}
	return fmt.Sprintf("%d %d %08x %d %d %d %d %d", s.Protocol, n.PortID, first, recv, send, dump, s.RefCount, s.Ino), err
}

func procPacket(s *kernel.Socket) (string, error) {
	p, err := s.Packet()
	if err != nil {
		return "", err
	}
	running := 0
	if p.Running {
		running = 1
	}
	recv, _, err := s.Queues()
	return fmt.Sprintf("%d %d %04x %d %d %d %d %d", s.RefCount, s.Type, p.Ethertype, p.IfIndex, running, recv, s.UID, s.Ino), err
}

func procTCP(s *kernel.Socket, ends string, recv, send uint64) (string, error) {
	t, err := s.TCP()
	if err != nil {
		return ends, err
	}
	ssthresh := int64(int32(t.SndSsthresh))
	switch {
	case s.State == kernel.TCPListen:
		ssthresh = int64(t.FastOpenMax)
	case t.SndSsthresh >= 0x7fffffff: // TCP_INFINITE_SSTHRESH
		ssthresh = -1
	}
	const tick = 10 * time.Millisecond // USER_HZ
	return fmt.Sprintf("%s %02X %08X:%08X %02X %08X %d %d %d %d %d %d %d %d %d", ends, uint8(s.State), send, recv,
		uint8(t.Timer.Kind), t.Retransmits, s.UID, t.ProbesOut, s.Ino, s.RefCount,
		t.RTO/tick, t.DelayedACK/tick, t.Quick, t.SndCwnd, ssthresh), nil
}

func procRemnant(s *kernel.Socket, ends string) (string, error) {
	r, err := s.Remnant()
	if err != nil {
		return ends, err
	}
	return fmt.Sprintf("%s %02X 00000000:00000000 %02X %08X 0 0 0 %d", ends, uint8(r.State), uint8(r.Timer.Kind), r.Timeouts, remnantRefs(s)), nil
}

// remnantRefs is what /proc/net/tcp shows as references: none for connections that
// begin.
func remnantRefs(s *kernel.Socket) int32 {
	if s.State == kernel.TCPTimeWait {
		return s.RefCount
	}
	return 0
}
