package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// socketEnds is what fds and net say of any socket.
type socketEnds struct {
	Family   string `json:"family"`   // unix, inet, inet6, netlink, packet
	Type     string `json:"type"`     // stream, dgram, raw, rdm, seqpacket, packet
	Protocol string `json:"protocol"` // tcp, udp, udplite, icmp, icmp6, or a number
	State    string `json:"state"`
	Local    string `json:"local"`  // address and port, path, @abstract name, netlink port; "" if not bound
	Remote   string `json:"remote"` // "" if not connected
	Peer     uint64 `json:"peer"`   // inode of a Unix socket's peer, 0 for none
}

var familyNames = map[uint16]string{
	kernel.AFUnix: "unix", kernel.AFInet: "inet", kernel.AFInet6: "inet6", kernel.AFNetlink: "netlink", kernel.AFPacket: "packet",
}

var sockTypeNames = map[uint16]string{
	kernel.SockStream: "stream", kernel.SockDgram: "dgram", kernel.SockRaw: "raw", kernel.SockRDM: "rdm",
	kernel.SockSeqPacket: "seqpacket", kernel.SockPacket: "packet",
}

var protocolNames = map[uint16]string{
	kernel.ProtoICMP: "icmp", kernel.ProtoTCP: "tcp", kernel.ProtoUDP: "udp", kernel.ProtoICMPv6: "icmp6", kernel.ProtoUDPLite: "udplite",
}

func nameOr(names map[uint16]string, v uint16) string {
	if n, ok := names[v]; ok {
		return n
	}
	return fmt.Sprint(v)
}

// ends describes s.
func ends(s *kernel.Socket) (e socketEnds, err error) {
	e = socketEnds{
		Family: nameOr(familyNames, s.Family), Type: nameOr(sockTypeNames, s.Type),
		Protocol: fmt.Sprint(s.Protocol), State: s.State.String(),
	}
	switch s.Family {
	case kernel.AFInet, kernel.AFInet6:
		if !s.Full() { // only TCP has such
			e.Type, e.Protocol = "stream", "tcp"
		} else {
			e.Protocol = nameOr(protocolNames, s.Protocol)
		}
		local, remote := s.Inet()
		if s.SPort != 0 || !local.Addr().IsUnspecified() {
			e.Local = endName(local, s.Type)
		}
		if remote.Port() != 0 || !remote.Addr().IsUnspecified() {
			e.Remote = endName(remote, s.Type)
		}
	case kernel.AFUnix:
		err = e.unix(s)
	case kernel.AFNetlink:
		n, nerr := s.Netlink()
		if nerr != nil {
			return e, nerr
		}
		e.Local = fmt.Sprint(n.PortID)
		if n.DstPortID != 0 {
			e.Remote = fmt.Sprint(n.DstPortID)
		}
	case kernel.AFPacket:
		p, perr := s.Packet()
		if perr != nil {
			return e, perr
		}
		e.Protocol = fmt.Sprintf("0x%04x", p.Ethertype)
	}
	return e, err
}

// endName writes an address as users know it; a raw socket has no port.
func endName(a netip.AddrPort, typ uint16) string {
	if typ == kernel.SockRaw {
		return a.Addr().Unmap().String()
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String()
}

func (e *socketEnds) unix(s *kernel.Socket) error {
	name, err := s.UnixName()
	if err != nil {
		return err
	}
	e.Local = unixName(name)
	peer, err := s.UnixPeer()
	if err != nil || peer == nil {
		return err
	}
	e.Peer = peer.Ino
	name, err = peer.UnixName()
	e.Remote = unixName(name)
	return err
}

// unixName writes abstract names as ss does, with @ for each NUL.
func unixName(n string) string {
	if strings.HasPrefix(n, "\x00") {
		return strings.ReplaceAll(n, "\x00", "@")
	}
	return n
}

// text is the short form behind a descriptor's path.
func (e *socketEnds) text() string {
	s := e.Protocol
	if e.Family == "unix" {
		s = "unix " + e.Type
	} else if e.Family == "netlink" || e.Family == "packet" {
		s = e.Family + " " + e.Protocol
	}
	s += " " + e.State
	if e.Local != "" {
		s += " " + e.Local
	}
	if e.Remote != "" {
		s += " -> " + e.Remote
	}
	return s
}
