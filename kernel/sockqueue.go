package kernel

import (
	"iter"
	"net/netip"
)

// Message is one buffer that a socket has received and no process has read: a
// datagram, or a piece of a stream.
type Message struct {
	Data []byte
	// Of a Unix socket: who sent it, with numbers of the initial namespaces, and
	// the struct files of the descriptors that were passed along (see FileAt).
	PID      PID
	UID, GID uint32
	Files    []Addr
	// From is where a UDP datagram comes from.
	From netip.AddrPort
	// Seq is the sequence number of the first byte of Data, for TCP.
	Seq uint32
}

type tcpSKBCB struct {
	Seq    uint32 `k:"seq"`
	EndSeq uint32 `k:"end_seq"`
	Flags  uint16 `k:"tcp_flags"`
}

type udpSock struct {
	ReaderQueue    Addr  `k:"&reader_queue"`
	ForwardDeficit int32 `k:"forward_deficit"`
}

var (
	tcpSKBCBLayout = LayoutOf[tcpSKBCB]("tcp_skb_cb")
	udpSockLayout  = LayoutOf[udpSock]("udp_sock")
)

// RecvQueue returns what a socket has received and no process has read. Parts of a
// stream that were read are left out. It fails with ErrLimit if that is more than
// max bytes of data. A listening socket has none: see AcceptQueue. What a process
// is just reading, or the network just bringing (the backlog), is not in it.
func (s *Socket) RecvQueue(max int) ([]Message, error) {
	if !s.Full() || s.State == TCPListen {
		return nil, s.wrongKind("receiving")
	}
	if s.isTCP() {
		t, err := tcpSeqLayout.Load(s.k, s.Addr)
		if err != nil {
			return nil, err
		}
		return s.tcpStream(s.k.SKBQueue(s.RecvQ), t.CopiedSeq, t.RcvNxt, max)
	}
	var all []Message
	add := func(head Addr) error {
		for b, err := range s.k.SKBQueue(head) {
			if err != nil {
				return err
			}
			m, err := s.message(b, max)
			if err != nil {
				return err
			}
			max -= len(m.Data)
			all = append(all, m)
		}
		return nil
	}
	if s.isInet() && s.isUDP() {
		// Readers take the whole queue over, and then go on with their own.
		u, err := udpSockLayout.Load(s.k, s.Addr)
		if err != nil {
			return nil, err
		}
		if err := add(u.ReaderQueue); err != nil {
			return nil, err
		}
	}
	err := add(s.RecvQ)
	return all, err
}

func (s *Socket) message(b *SKB, max int) (m Message, err error) {
	if s.Family == AFUnix {
		return m, b.unixMessage(&m, max)
	}
	if m.Data, err = b.Bytes(0, max); err != nil || !s.isInet() || !s.isUDP() {
		return m, err
	}
	m.From, err = b.udpSource()
	return m, err
}

// udpSource reads the sender from the headers in front of a datagram.
func (b *SKB) udpSource() (netip.AddrPort, error) {
	const unset = 0xffff
	if b.NetworkHeader == unset || b.TransportHeader == unset ||
		uint32(b.NetworkHeader)+40 > b.End || uint32(b.TransportHeader)+8 > b.End {
		return netip.AddrPort{}, corrupt(b.Addr, "sk_buff", "network header at %d, transport header at %d", b.NetworkHeader, b.TransportHeader)
	}
	var ip [40]byte
	if _, err := b.k.ReadAt(ip[:], b.Head.Add(int(b.NetworkHeader))); err != nil {
		return netip.AddrPort{}, err
	}
	var udp [2]byte
	if _, err := b.k.ReadAt(udp[:], b.Head.Add(int(b.TransportHeader))); err != nil {
		return netip.AddrPort{}, err
	}
	from := netip.AddrFrom16([16]byte(ip[8:24]))
	if ip[0]>>4 == 4 {
		from = netip.AddrFrom4([4]byte(ip[12:16]))
	}
	return netip.AddrPortFrom(from, uint16(udp[0])<<8|uint16(udp[1])), nil
}

// SendQueue returns what processes wrote to a TCP socket and its peer has not
// acknowledged, the part that was never sent included. It fails with ErrLimit if
// that is more than max bytes, with ErrWrongKind for other sockets. Source:
// tcp_rtx_queue and sk_write_queue.
func (s *Socket) SendQueue(max int) ([]Message, error) {
	if !s.isTCP() || s.State == TCPListen {
		return nil, s.wrongKind("TCP")
	}
	t, err := tcpSeqLayout.Load(s.k, s.Addr)
	if err != nil {
		return nil, err
	}
	return s.tcpStream(func(yield func(*SKB, error) bool) {
		// A buffer's node in the tree is its first member.
		for a, err := range s.k.RBTree(s.RtxQueue) {
			var b *SKB
			if err == nil {
				b, err = s.k.SKBAt(a)
			}
			if !yield(b, err) || err != nil {
				return
			}
		}
		for b, err := range s.k.SKBQueue(s.WriteQ) {
			if !yield(b, err) {
				return
			}
		}
	}, t.SndUna, t.WriteSeq, max)
}

// tcpStream returns the bytes with the sequence numbers from from up to end that
// are in some buffers.
func (s *Socket) tcpStream(bufs iter.Seq2[*SKB, error], from, end uint32, max int) ([]Message, error) {
	var all []Message
	for b, err := range bufs {
		if err != nil {
			return nil, err
		}
		cb, err := tcpSKBCBLayout.Load(s.k, b.CB)
		if err != nil {
			return nil, err
		}
		const syn = 2
		first := cb.Seq
		if cb.Flags&syn != 0 {
			first++ // takes a number and has no byte
		}
		skip := int32(from - first)
		if skip < 0 && b.Len > 0 {
			return nil, corrupt(b.Addr, "tcp_skb_cb", "sequence number %d, not %d", first, from)
		}
		if skip < 0 || uint32(skip) >= b.Len {
			continue // read, or acknowledged, already
		}
		data, err := b.Bytes(int(skip), max)
		if err != nil {
			return nil, err
		}
		if over := int32(from + uint32(len(data)) - end); over > 0 {
			return nil, corrupt(b.Addr, "tcp_skb_cb", "%d bytes beyond the end of the stream", over)
		}
		max -= len(data)
		all = append(all, Message{Data: data, Seq: from})
		from += uint32(len(data))
	}
	return all, nil
}

type acceptQueue struct {
	Head Addr `k:"icsk_accept_queue.rskq_accept_head"`
}

var acceptQueueLayout = LayoutOf[acceptQueue]("inet_connection_sock")

// AcceptQueue yields the connections of a listening TCP or Unix socket that wait for
// accept(2), in order. An error ends the walk. Source:
// net/ipv4/inet_connection_sock.c:reqsk_queue_remove, net/unix/af_unix.c:unix_accept.
func (s *Socket) AcceptQueue() iter.Seq2[*Socket, error] {
	return func(yield func(*Socket, error) bool) {
		switch {
		case s.State != TCPListen || s.Family != AFUnix && !s.isTCP():
			yield(nil, s.wrongKind("listening"))
		case s.Family == AFUnix:
			for b, err := range s.k.SKBQueue(s.RecvQ) {
				var sk *Socket
				if err == nil {
					sk, err = s.k.SockAt(b.SK)
				}
				if !yield(sk, err) || err != nil {
					return
				}
			}
		default:
			s.acceptTCP(yield)
		}
	}
}

func (s *Socket) acceptTCP(yield func(*Socket, error) bool) {
	q, err := acceptQueueLayout.Load(s.k, s.Addr)
	if err != nil {
		yield(nil, err)
		return
	}
	for a, n := q.Head, 0; a != 0; n++ {
		var sk *Socket
		r, err := requestSockLayout.Load(s.k, a)
		if err == nil {
			sk, err = s.k.SockAt(r.SK)
		}
		if err == nil && n >= maxSockChain {
			err = &PathError{Path: "request_sock_queue", Addr: s.Addr, Err: ErrLimit}
		}
		if !yield(sk, err) || err != nil {
			return
		}
		a = r.Next
	}
}
