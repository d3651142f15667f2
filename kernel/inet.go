package kernel

import (
	"errors"
	"iter"
)

type inetHashinfo struct {
	EHash     Addr   `k:"ehash"`
	EHashMask uint32 `k:"ehash_mask"`
	LHash2    Addr   `k:"lhash2"`
	LHashMask uint32 `k:"lhash2_mask"`
	// Before 5.19 a table of all listeners by port, which lhash2 is an index to.
	Listening Addr `k:"&listening_hash,opt"`
}

type inetListenBucket struct {
	Head Addr `k:"&nulls_head"`
}

type udpTable struct {
	Hash Addr   `k:"hash"`
	Mask uint32 `k:"mask"`
}

type udpSlot struct {
	Head Addr `k:"&head"`
}

type rawHashinfo struct {
	HT Addr `k:"&ht"`
}

type pingTable struct {
	Hash Addr `k:"&hash"`
}

var (
	inetHashinfoLayout     = LayoutOf[inetHashinfo]("inet_hashinfo")
	inetListenBucketLayout = LayoutOf[inetListenBucket]("inet_listen_hashbucket")
	udpTableLayout         = LayoutOf[udpTable]("udp_table")
	udpSlotLayout          = LayoutOf[udpSlot]("udp_hslot")
	rawHashinfoLayout      = LayoutOf[rawHashinfo]("raw_hashinfo")
	pingTableLayout        = LayoutOf[pingTable]("ping_table")
)

const (
	listenBuckets    = 32      // INET_LHTABLE_SIZE, before 5.19
	listenNullsFirst = 1 << 29 // LISTENING_NULLS_BASE
	rawBuckets       = 256     // RAW_HTABLE_SIZE
	pingBuckets      = 64      // PING_HTABLE_SIZE
)

// TCPSockets yields the TCP sockets of the namespace, IPv4 and IPv6: listening
// ones, connections, and what is left of them or about to be one (see
// Socket.Full). Errors as of Sockets. Source: net/ipv4/tcp_ipv4.c:tcp_seq_start.
func (n *Net) TCPSockets() iter.Seq2[*Socket, error] {
	return n.walk(func() ([]sockTable, error) {
		k := n.k
		h, err := inetHashinfoLayout.Load(k, n.TCPHash)
		if err != nil {
			return nil, err
		}
		node, err := k.offsetOf("sock_common", "skc_nulls_node")
		if err != nil {
			return nil, err
		}
		size, err := inetListenBucketLayout.Size(k)
		if err != nil {
			return nil, err
		}
		head, err := k.offsetOf("inet_listen_hashbucket", "nulls_head")
		if err != nil {
			return nil, err
		}
		listen := sockTable{
			path: "inet_hashinfo.lhash2", base: h.LHash2, n: int(h.LHashMask) + 1, stride: size, head: head, node: node,
			nulls: true, first: listenNullsFirst,
		}
		if h.Listening != 0 {
			listen.path, listen.base, listen.n = "inet_hashinfo.listening_hash", h.Listening, listenBuckets
		}
		if bad := maskError(n.TCPHash, "inet_hashinfo", h.EHashMask); bad != nil {
			return []sockTable{listen}, bad
		}
		return []sockTable{listen, {
			path: "inet_hashinfo.ehash", base: h.EHash, n: int(h.EHashMask) + 1, stride: 8, node: node,
			nulls: true, mask: h.EHashMask,
		}}, nil
	})
}

func maskError(a Addr, path string, mask uint32) error {
	if mask&(mask+1) != 0 || mask >= maxSockBuckets {
		return corrupt(a, path, "hash mask %#x", mask)
	}
	return nil
}

// UDPSockets yields the bound UDP and UDP-Lite sockets of the namespace, IPv4 and
// IPv6. Errors as of Sockets. Source: net/ipv4/udp.c:udp_get_first.
func (n *Net) UDPSockets() iter.Seq2[*Socket, error] {
	return n.walk(func() ([]sockTable, error) {
		k := n.k
		table := n.UDPTable
		if !netLayout.Has(k, "UDPTable") {
			var err error
			if table, err = k.Symbol("udp_table"); err != nil {
				return nil, err
			}
		}
		udp, err := n.udpTable("udp_table", table)
		if err != nil {
			return nil, err
		}
		lite, err := k.Symbol("udplite_table")
		if errors.Is(err, ErrNoSymbol) {
			return []sockTable{udp}, nil // removed in 7.0
		}
		if err != nil {
			return []sockTable{udp}, err
		}
		t, err := n.udpTable("udplite_table", lite)
		if err != nil {
			return []sockTable{udp}, err
		}
		return []sockTable{udp, t}, nil
	})
}

func (n *Net) udpTable(path string, a Addr) (sockTable, error) {
	t, err := udpTableLayout.Load(n.k, a)
	if err != nil {
		return sockTable{}, err
	}
	if err := maskError(a, path, t.Mask); err != nil {
		return sockTable{}, err
	}
	s, err := n.hlistTable(path, t.Hash, int(t.Mask)+1)
	if err != nil {
		return s, err
	}
	if s.stride, err = udpSlotLayout.Size(n.k); err != nil {
		return s, err
	}
	s.head, err = n.k.offsetOf("udp_hslot", "head")
	return s, err
}

// RawSockets yields the raw IP sockets of the namespace, IPv4 and IPv6. Errors as of
// Sockets. Source: net/ipv4/raw.c:raw_get_first.
func (n *Net) RawSockets() iter.Seq2[*Socket, error] {
	return n.walk(func() ([]sockTable, error) {
		var all []sockTable
		for _, name := range []string{"raw_v4_hashinfo", "raw_v6_hashinfo"} {
			a, err := n.k.Symbol(name)
			if err != nil {
				return all, err
			}
			h, err := rawHashinfoLayout.Load(n.k, a)
			if err != nil {
				return all, err
			}
			t, err := n.hlistTable(name, h.HT, rawBuckets)
			if err != nil {
				return all, err
			}
			all = append(all, t)
		}
		return all, nil
	})
}

// PingSockets yields the ICMP datagram sockets of the namespace, IPv4 and IPv6.
// Errors as of Sockets. Source: net/ipv4/ping.c:ping_get_first.
func (n *Net) PingSockets() iter.Seq2[*Socket, error] {
	return n.walk(func() ([]sockTable, error) {
		a, err := n.k.pingTable()
		if err != nil {
			return nil, err
		}
		p, err := pingTableLayout.Load(n.k, a)
		if err != nil {
			return nil, err
		}
		t, err := n.hlistTable("ping_table", p.Hash, pingBuckets)
		return []sockTable{t}, err
	})
}
