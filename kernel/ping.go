package kernel

import "encoding/binary"

// pingTable returns the table of ICMP datagram sockets: the symbol, or in a kernel
// without symbols of variables what the links of a socket lead to that a process has
// open. Source: net/ipv4/ping.c:ping_table.
func (k *Kernel) pingTable() (Addr, error) {
	a, missing := k.Symbol("ping_table")
	if missing == nil {
		return a, nil
	}
	if a, ok := k.lazy.pingTable.Load().(Addr); ok {
		return a, nil
	}
	for t, err := range k.Tasks() {
		if err != nil {
			continue
		}
		for fd, err := range t.Files() {
			if err != nil || fd.File.Kind != KindSocket {
				continue
			}
			s, err := fd.File.Socket()
			if err != nil || !s.isPing() {
				continue
			}
			if a, err := k.pingTableOf(s); err == nil {
				k.lazy.pingTable.Store(a)
				return a, nil
			}
		}
	}
	return 0, missing
}

// isPing says whether s is an ICMP datagram socket that has been given a number, by
// which it is in the table.
func (s *Socket) isPing() bool {
	return s.Full() && s.Type == SockDgram && s.SPort != 0 &&
		(s.Family == AFInet && s.Protocol == ProtoICMP || s.Family == AFInet6 && s.Protocol == ProtoICMPv6)
}

// pingTableOf finds the table that s is in: links back lead to the head of its bucket,
// and its number says which that is. Source: include/net/ping.h, net/ipv4/ping.c:ping_hashfn.
func (k *Kernel) pingTableOf(s *Socket) (Addr, error) {
	node, err := k.offsetOf("sock_common", "skc_node")
	if err != nil {
		return 0, err
	}
	back, err := k.offsetOf("hlist_node", "pprev")
	if err != nil {
		return 0, err
	}
	mix, err := k.offsetOf("net", "hash_mix")
	if err != nil {
		return 0, err
	}
	head := s.Addr.Add(node)
	for n := 0; !k.inImage(head); n++ {
		if n >= maxSockChain {
			return 0, &PathError{Path: "ping_table", Addr: s.Addr, Err: ErrLimit}
		}
		if head, err = k.ReadAddr(head.Add(back)); err != nil {
			return 0, err
		}
	}
	salt, err := k.ReadU32(s.Net.Add(mix))
	if err != nil {
		return 0, err
	}
	table := head - 8*Addr((uint32(s.SPort)+salt)%pingBuckets)
	b, err := k.bytesAt(table, 8*pingBuckets, nil)
	if err != nil {
		return 0, err
	}
	for i := range pingBuckets {
		if a := Addr(binary.LittleEndian.Uint64(b[8*i:])); a != 0 && a != Addr(i)<<1|1 && (!a.IsKernel() || a%8 != 0) {
			return 0, corrupt(table, "ping_table", "bucket %d begins with %s", i, a)
		}
	}
	return table, nil
}
