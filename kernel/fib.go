package kernel

import (
	"encoding/binary"
	"iter"
	"net/netip"
)

// Route is an IPv4 route.
type Route struct {
	Table    uint32 // 254 main, 255 local, 253 default
	Dst      netip.Prefix
	Type     uint8 // RTN_*: 1 unicast, 2 local, 3 broadcast, 6 blackhole, 7 unreachable
	Protocol uint8 // RTPROT_*: who made it; 2 the kernel, 3 ip route
	Scope    uint8 // RT_SCOPE_*
	Priority uint32
	TOS      uint8
	PrefSrc  netip.Addr // invalid if there is none
	Hops     []NextHop  // one, or several that share the traffic; none for blackholes
}

// NextHop is where a route leads to.
type NextHop struct {
	IfIndex int32
	Gateway netip.Addr // invalid for a network that is directly attached
	Flags   uint8      // RTNH_F_*
	Weight  int32
}

type fibTable struct {
	Hash Addr   `k:"&tb_hlist"`
	ID   uint32 `k:"tb_id"`
	Data Addr   `k:"tb_data"`
}

type trieRoot struct {
	KV Addr `k:"&kv"`
}

type keyVector struct {
	Key   uint32 `k:"key"`
	Pos   uint8  `k:"pos"`
	Bits  uint8  `k:"bits"`
	Leaf  Addr   `k:"&leaf"`
	Child Addr   `k:"&tnode"`
}

type fibAlias struct {
	Info Addr   `k:"fa_info"`
	TOS  uint8  `k:"fa_dscp|fa_tos"`
	Type uint8  `k:"fa_type"`
	SLen uint8  `k:"fa_slen"`
	Tab  uint32 `k:"tb_id"`
}

type fibInfo struct {
	Protocol uint8   `k:"fib_protocol"`
	Scope    uint8   `k:"fib_scope"`
	PrefSrc  [4]byte `k:"fib_prefsrc"`
	Priority uint32  `k:"fib_priority"`
	NHs      uint32  `k:"fib_nhs"`
	NH       Addr    `k:"nh"` // a nexthop object instead of an array
	FibNH    Addr    `k:"&fib_nh"`
}

type fibNHCommon struct {
	OIF      int32    `k:"nhc_oif"`
	GWFamily uint8    `k:"nhc_gw_family"`
	Flags    uint8    `k:"nhc_flags"`
	GW       [16]byte `k:"nhc_gw"`
	Weight   int32    `k:"nhc_weight"`
}

type nexthop struct {
	IsGroup bool `k:"is_group"`
	Info    Addr `k:"nh_info"`
}

type nhInfo struct {
	FibNHC Addr `k:"&fib_nhc"`
}

var (
	fibTableLayout    = LayoutOf[fibTable]("fib_table")
	trieLayout        = LayoutOf[trieRoot]("trie")
	keyVectorLayout   = LayoutOf[keyVector]("key_vector")
	fibAliasLayout    = LayoutOf[fibAlias]("fib_alias")
	fibInfoLayout     = LayoutOf[fibInfo]("fib_info")
	fibNHCommonLayout = LayoutOf[fibNHCommon]("fib_nh_common")
	nexthopLayout     = LayoutOf[nexthop]("nexthop")
	nhInfoLayout      = LayoutOf[nhInfo]("nh_info")
)

const (
	fibTableBuckets = 256 // FIB_TABLE_HASHSZ with CONFIG_IP_MULTIPLE_TABLES
	maxFIBTables    = 1 << 16
	maxFIBDepth     = 34 // each level takes a bit of the address at least
	maxFIBNHs       = 256
	maxFIBBits      = 24
)

// Routes yields the IPv4 routes of all tables of the namespace. A part of a table
// that cannot be read is yielded as an error, and the walk goes on with the rest.
// Routes by groups of nexthop objects have no Hops. Source:
// net/ipv4/fib_frontend.c:inet_dump_fib, net/ipv4/fib_trie.c:fn_trie_dump_leaf.
func (n *Net) Routes() iter.Seq2[Route, error] {
	return func(yield func(Route, error) bool) {
		tables := 0
		for i := range fibTableBuckets {
			for a, err := range n.k.HList(n.FIBTables.Add(8 * i)) {
				if tables++; err == nil && tables > maxFIBTables {
					err = &PathError{Path: "netns_ipv4.fib_table_hash", Addr: n.Addr, Err: ErrLimit}
				}
				if err != nil {
					if !yield(Route{}, err) || tables > maxFIBTables {
						return
					}
					break
				}
				w := fibWalk{k: n.k, yield: yield}
				if !w.table(a) {
					return
				}
			}
		}
	}
}

type fibWalk struct {
	k     *Kernel
	yield func(Route, error) bool
	id    uint32
	nodes int
}

func (w *fibWalk) table(a Addr) bool {
	off, err := w.k.offsetOf("fib_table", "tb_hlist")
	if err != nil {
		return w.yield(Route{}, err)
	}
	t, err := fibTableLayout.Load(w.k, a-Addr(off))
	if err != nil {
		return w.yield(Route{}, err)
	}
	w.id = t.ID
	root, err := trieLayout.Load(w.k, t.Data)
	if err != nil {
		return w.yield(Route{}, err)
	}
	kv, err := keyVectorLayout.Load(w.k, root.KV)
	if err != nil {
		return w.yield(Route{}, err)
	}
	first, err := w.k.ReadAddr(kv.Child)
	if err != nil || first == 0 {
		return err == nil || w.yield(Route{}, err)
	}
	return w.node(first, 0, 32)
}

// node walks the trie below a, whose position must be below that of its parent.
func (w *fibWalk) node(a Addr, depth, below int) bool {
	if w.nodes++; w.nodes > maxWalk || depth > maxFIBDepth {
		w.yield(Route{}, &PathError{Path: "key_vector", Addr: a, Err: ErrLimit})
		return false
	}
	kv, err := keyVectorLayout.Load(w.k, a)
	if err != nil {
		return w.yield(Route{}, err)
	}
	if kv.Bits == 0 {
		return w.leaf(&kv)
	}
	if kv.Bits > maxFIBBits || int(kv.Pos)+int(kv.Bits) > below {
		return w.yield(Route{}, corrupt(a, "key_vector", "%d bits at %d, below %d", kv.Bits, kv.Pos, below))
	}
	const perRead = 512
	var buf [8 * perRead]byte
	for i := 0; i < 1<<kv.Bits; i += perRead {
		m := min(perRead, 1<<kv.Bits-i)
		b, err := w.k.bytesAt(kv.Child.Add(8*i), 8*m, buf[:])
		if err != nil {
			return w.yield(Route{}, &PathError{Path: "key_vector.tnode", Addr: a, Err: err})
		}
		for j := range m {
			child := Addr(binary.LittleEndian.Uint64(b[8*j:]))
			if child != 0 && !w.node(child, depth+1, int(kv.Pos)) {
				return false
			}
		}
	}
	return true
}

func (w *fibWalk) leaf(kv *keyVector) bool {
	off, err := w.k.offsetOf("fib_alias", "fa_list")
	if err != nil {
		return w.yield(Route{}, err)
	}
	for node, err := range w.k.HList(kv.Leaf) {
		if w.nodes++; err == nil && w.nodes > maxWalk {
			err = &PathError{Path: "key_vector.leaf", Addr: kv.Leaf, Err: ErrLimit}
		}
		if err != nil {
			return w.yield(Route{}, err)
		}
		fa, err := fibAliasLayout.Load(w.k, node-Addr(off))
		if err == nil && fa.Tab != w.id {
			continue // tables that have no rules between them share a trie
		}
		var r Route
		if err == nil {
			r, err = w.route(kv.Key, &fa, node-Addr(off))
		}
		if !w.yield(r, err) {
			return false
		}
	}
	return true
}

func (w *fibWalk) route(key uint32, fa *fibAlias, at Addr) (Route, error) {
	fi, err := fibInfoLayout.Load(w.k, fa.Info)
	if err != nil {
		return Route{}, err
	}
	if fa.SLen > 32 || fi.NHs > maxFIBNHs {
		return Route{}, corrupt(at, "fib_alias", "suffix length %d, %d next hops", fa.SLen, fi.NHs)
	}
	var dst [4]byte
	binary.BigEndian.PutUint32(dst[:], key)
	r := Route{
		Table: w.id, Dst: netip.PrefixFrom(netip.AddrFrom4(dst), 32-int(fa.SLen)), Type: fa.Type,
		Protocol: fi.Protocol, Scope: fi.Scope, Priority: fi.Priority, TOS: fa.TOS,
	}
	if fi.PrefSrc != [4]byte{} {
		r.PrefSrc = netip.AddrFrom4(fi.PrefSrc)
	}
	r.Hops, err = w.hops(&fi)
	return r, err
}

func (w *fibWalk) hops(fi *fibInfo) ([]NextHop, error) {
	if fi.NH != 0 {
		nh, err := nexthopLayout.Load(w.k, fi.NH)
		if err != nil || nh.IsGroup {
			return nil, err
		}
		info, err := nhInfoLayout.Load(w.k, nh.Info)
		if err != nil {
			return nil, err
		}
		h, err := w.hop(info.FibNHC)
		return []NextHop{h}, err
	}
	nh, err := w.k.types.Struct("fib_nh")
	if err != nil {
		return nil, err
	}
	var hops []NextHop
	for i := range int(fi.NHs) {
		h, err := w.hop(fi.FibNH.Add(i * nh.Size)) // begins with its fib_nh_common
		if err != nil {
			return nil, err
		}
		if h.IfIndex != 0 || h.Gateway.IsValid() {
			hops = append(hops, h)
		}
	}
	return hops, nil
}

func (w *fibWalk) hop(a Addr) (NextHop, error) {
	c, err := fibNHCommonLayout.Load(w.k, a)
	h := NextHop{IfIndex: c.OIF, Flags: c.Flags, Weight: c.Weight}
	switch c.GWFamily {
	case AFInet:
		h.Gateway = netip.AddrFrom4([4]byte(c.GW[:4]))
	case AFInet6:
		h.Gateway = netip.AddrFrom16(c.GW)
	}
	return h, err
}
