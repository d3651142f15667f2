package kernel

import "iter"

// Packet is what a packet socket adds to a Socket.
type Packet struct {
	IfIndex   int32 // device that it is bound to, 0 for all
	Ethertype uint16
	Running   bool // it receives
}

type packetSock struct {
	IfIndex int32   `k:"ifindex"`
	Num     [2]byte `k:"num"`
	Flags   uint64  `k:"flags"`
	Running bool    `k:"running,opt"` // a bit of flags since 6.1
}

var packetSockLayout = LayoutOf[packetSock]("packet_sock") // absent if AF_PACKET is a module

// PacketSockets yields the packet sockets of the namespace; none if the kernel has
// not loaded AF_PACKET. Errors as of Sockets. Source: net/packet/af_packet.c:packet_seq_start.
func (n *Net) PacketSockets() iter.Seq2[*Socket, error] {
	return n.walk(func() ([]sockTable, error) {
		if n.PacketSocks == 0 {
			return nil, nil
		}
		t, err := n.hlistTable("net.packet.sklist", n.PacketSocks, 1)
		return []sockTable{t}, err
	})
}

// Packet returns what is special of a packet socket; ErrWrongKind for others.
// Source: net/packet/af_packet.c:packet_seq_show.
func (s *Socket) Packet() (*Packet, error) {
	if s.Family != AFPacket {
		return nil, s.wrongKind("packet")
	}
	p, err := packetSockLayout.Load(s.k, s.Addr)
	if err != nil {
		return nil, err
	}
	running := p.Running
	if !packetSockLayout.Has(s.k, "Running") {
		bit, err := s.k.enumValue("packet_sock_flags", "PACKET_SOCK_RUNNING")
		if err != nil {
			return nil, err
		}
		running = p.Flags>>bit&1 != 0
	}
	return &Packet{IfIndex: p.IfIndex, Ethertype: uint16(p.Num[0])<<8 | uint16(p.Num[1]), Running: running}, nil
}
