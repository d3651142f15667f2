package kernel

import (
	"encoding/binary"
	"iter"
)

// Sockets of a running guest come and go while their tables are walked. A walk sees
// every socket that stays for as long as the walk takes, may see some that come or
// go meanwhile, and drops what is on its way out (no references left) or belongs to
// another namespace. A chain that leads into another one, because a socket moved
// while it was followed, is read again.

const (
	// maxSockBuckets is above the largest tables: thash_entries of TCP is capped
	// at 512 Ki by default, udp_table at 64 Ki.
	maxSockBuckets = 1 << 24
	// maxSockChain bounds one bucket: all ports of a host with SO_REUSEPORT.
	maxSockChain = 1 << 20
	// chainTries is how often a chain is read that changes meanwhile.
	chainTries = 4
)

// sockTable is a hash table of sockets.
type sockTable struct {
	path   string // for errors
	base   Addr   // first bucket
	n      int    // buckets
	stride int    // bytes from one bucket to the next
	head   int    // offset of the list head in a bucket
	node   int    // offset of the list node in a socket
	nulls  bool   // lists end with the number of their bucket
	first  int    // number of the first bucket, for nulls
	mask   uint32 // of sock_common.skc_hash, if that must be the bucket; else 0
}

// sockets yields the sockets of a table that belong to the namespace. It returns
// false when the consumer wants no more.
func (n *Net) tableSockets(t sockTable, yield func(*Socket, error) bool) bool {
	k := n.k
	if t.n < 0 || t.n > maxSockBuckets {
		return yield(nil, corrupt(t.base, t.path, "%d buckets", t.n))
	}
	const perRead = 256
	buf := make([]byte, perRead*t.stride)
	total := 0
	for i := 0; i < t.n; i += perRead {
		m := min(perRead, t.n-i)
		b, err := k.bytesAt(t.base.Add(i*t.stride), m*t.stride, buf)
		if err != nil {
			return yield(nil, &PathError{Path: t.path, Addr: t.base.Add(i * t.stride), Err: err})
		}
		for j := range m {
			first := Addr(binary.LittleEndian.Uint64(b[j*t.stride+t.head:]))
			if first == 0 || first&1 != 0 {
				continue
			}
			nodes, err := n.chain(t, i+j)
			if total += len(nodes); total > maxWalk {
				return yield(nil, &PathError{Path: t.path, Addr: t.base, Err: ErrLimit})
			}
			for _, node := range nodes {
				s, serr := n.member(node-Addr(t.node), t, i+j)
				if (s != nil || serr != nil) && !yield(s, serr) {
					return false
				}
			}
			if err != nil && !yield(nil, err) {
				return false
			}
		}
	}
	return true
}

// chain returns the nodes in a bucket, and an error if the chain is broken behind
// them.
func (n *Net) chain(t sockTable, bucket int) (nodes []Addr, err error) {
	for range chainTries {
		var end Addr
		nodes, end, err = n.k.hlistNodes(t.base.Add(bucket*t.stride + t.head))
		if err != nil {
			err = &PathError{Path: t.path, Addr: t.base.Add(bucket * t.stride), Err: err}
			continue
		}
		if !t.nulls || end == Addr(t.first+bucket)<<1|1 {
			return nodes, nil
		}
		err = corrupt(t.base.Add(bucket*t.stride), t.path, "chain of bucket %d ends with %s", bucket, end)
	}
	return nodes, err
}

// hlistNodes collects a hlist or hlist_nulls, whose end marker it returns.
func (k *Kernel) hlistNodes(head Addr) (nodes []Addr, end Addr, err error) {
	var loop loopCheck
	for a := head; ; {
		next, err := k.ReadAddr(a)
		if err != nil {
			return nodes, 0, err
		}
		if next == 0 || next&1 != 0 {
			return nodes, next, nil
		}
		if !next.IsKernel() || next&7 != 0 {
			return nodes, 0, corrupt(a, "hlist_node", "next is %s", next)
		}
		if len(nodes) >= maxSockChain || loop.seen(next) {
			return nodes, 0, &PathError{Path: "hlist_head", Addr: head, Err: ErrLimit}
		}
		nodes = append(nodes, next)
		a = next
	}
}

// member returns the socket at a if it is alive, hashed where it was found and of
// this namespace, else nil.
func (n *Net) member(a Addr, t sockTable, bucket int) (*Socket, error) {
	s, err := n.k.SockAt(a)
	if err != nil {
		return nil, err
	}
	if s.Net != n.Addr || s.RefCount <= 0 || t.mask != 0 && s.Hash&t.mask != uint32(bucket) {
		return nil, nil
	}
	return s, nil
}

// Sockets yields all sockets of the namespace that the kernel keeps in tables:
// Unix, TCP, UDP, UDP-Lite, raw, ping, netlink and packet. Sockets that are neither
// bound nor connected are in none: only a file leads to them. A socket that cannot
// be read is yielded as an error, and the walk goes on. Of a running guest it sees
// what the package documentation says under consistency.
func (n *Net) Sockets() iter.Seq2[*Socket, error] {
	return func(yield func(*Socket, error) bool) {
		for _, walk := range []iter.Seq2[*Socket, error]{
			n.UnixSockets(), n.TCPSockets(), n.UDPSockets(), n.RawSockets(), n.PingSockets(),
			n.NetlinkSockets(), n.PacketSockets(),
		} {
			for s, err := range walk {
				if !yield(s, err) {
					return
				}
			}
		}
	}
}

// hlistTable describes an array of n hlist_heads at base, whose sockets are linked
// by skc_node.
func (n *Net) hlistTable(path string, base Addr, count int) (sockTable, error) {
	node, err := n.k.offsetOf("sock_common", "skc_node")
	return sockTable{path: path, base: base, n: count, stride: 8, node: node}, err
}

// walk is the iterator over some tables.
func (n *Net) walk(tables func() ([]sockTable, error)) iter.Seq2[*Socket, error] {
	return func(yield func(*Socket, error) bool) {
		all, err := tables()
		for _, t := range all {
			if !n.tableSockets(t, yield) {
				return
			}
		}
		if err != nil {
			yield(nil, err)
		}
	}
}
