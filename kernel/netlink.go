package kernel

import "iter"

// Netlink is what a netlink socket adds to a Socket. Its protocol (NETLINK_*) is
// the Socket's.
type Netlink struct{ netlinkSock }

type netlinkSock struct {
	PortID    uint32 `k:"portid"` // 0 for those of the kernel
	DstPortID uint32 `k:"dst_portid"`
	DstGroup  uint32 `k:"dst_group"`
	NGroups   uint32 `k:"ngroups"`
	GroupBits Addr   `k:"groups"`
	DumpUnder bool   `k:"cb_running"` // a dump is under way
}

type netlinkTable struct {
	Hash Addr `k:"&hash"`
}

var (
	netlinkSockLayout  = LayoutOf[netlinkSock]("netlink_sock")
	netlinkTableLayout = LayoutOf[netlinkTable]("netlink_table")
)

const (
	netlinkTables    = 32      // MAX_LINKS
	maxNetlinkGroups = 1 << 16 // generic netlink has some dozens
)

// NetlinkSockets yields the netlink sockets of the namespace, those of the kernel
// itself too. Errors as of Sockets. Source: net/netlink/af_netlink.c:netlink_walk_start.
func (n *Net) NetlinkSockets() iter.Seq2[*Socket, error] {
	return func(yield func(*Socket, error) bool) {
		k := n.k
		table, size, err := n.netlinkTables()
		if err != nil {
			yield(nil, err)
			return
		}
		for i := range netlinkTables {
			t, err := netlinkTableLayout.Load(k, table.Add(i*size))
			if err != nil {
				yield(nil, err)
				return
			}
			seen := map[Addr]bool{} // a table that grows may show one twice
			for a, err := range k.RHashTable(t.Hash) {
				var s *Socket
				if err == nil {
					s, err = n.member(a, sockTable{}, 0)
				}
				if err == nil && (s == nil || s.Family != AFNetlink || seen[a]) {
					continue
				}
				seen[a] = true
				if !yield(s, err) {
					return
				}
			}
		}
	}
}

func (n *Net) netlinkTables() (table Addr, size int, err error) {
	a, err := n.k.Symbol("nl_table")
	if err != nil {
		return 0, 0, err
	}
	if table, err = n.k.ReadAddr(a); err != nil {
		return 0, 0, err
	}
	size, err = netlinkTableLayout.Size(n.k)
	return table, size, err
}

// Netlink returns what is special of a netlink socket; ErrWrongKind for others.
func (s *Socket) Netlink() (*Netlink, error) {
	if s.Family != AFNetlink {
		return nil, s.wrongKind("netlink")
	}
	n, err := netlinkSockLayout.Load(s.k, s.Addr)
	if err != nil {
		return nil, err
	}
	return &Netlink{n}, nil
}

// Groups returns the multicast groups that a netlink socket listens to, as a bit
// mask of 32 groups an element: group 1 is bit 0 of the first.
func (s *Socket) Groups() ([]uint32, error) {
	n, err := s.Netlink()
	if err != nil || n.GroupBits == 0 {
		return nil, err
	}
	if n.NGroups > maxNetlinkGroups {
		return nil, corrupt(s.Addr, "netlink_sock", "%d groups", n.NGroups)
	}
	var groups []uint32
	for i := 0; i < int(n.NGroups); i += 32 {
		g, err := s.k.ReadU32(n.GroupBits.Add(i / 8))
		if err != nil {
			return nil, &PathError{Path: "netlink_sock.groups", Addr: s.Addr, Err: err}
		}
		groups = append(groups, g)
	}
	return groups, nil
}
