package kernel

import (
	"iter"
	"net/netip"
	"time"
)

// IfAddr is an IPv4 or IPv6 address of a network device.
type IfAddr struct {
	Prefix    netip.Prefix // the address itself, and the length of its network
	Peer      netip.Addr   // at the other end of a point-to-point link, else invalid
	Broadcast netip.Addr   // IPv4, else invalid
	Label     string       // IPv4
	Scope     uint8        // RT_SCOPE_*, see ScopeName
	Flags     uint32       // IFA_F_*
	// Lifetimes as they were set; negative for no limit.
	Valid, Preferred time.Duration
}

type inDevice struct {
	Dev     Addr `k:"dev"`
	IfaList Addr `k:"ifa_list"`
}

type inIfaddr struct {
	Next      Addr     `k:"ifa_next"`
	InDev     Addr     `k:"ifa_dev"`
	Local     [4]byte  `k:"ifa_local"`
	Address   [4]byte  `k:"ifa_address"`
	Broadcast [4]byte  `k:"ifa_broadcast"`
	Scope     uint8    `k:"ifa_scope"`
	PrefixLen uint8    `k:"ifa_prefixlen"`
	Flags     uint32   `k:"ifa_flags"`
	Label     [16]byte `k:"ifa_label"`
	Valid     uint32   `k:"ifa_valid_lft"`
	Preferred uint32   `k:"ifa_preferred_lft"`
}

type inet6Dev struct {
	Dev      Addr `k:"dev"`
	AddrList Addr `k:"&addr_list"`
}

type inet6Ifaddr struct {
	Addr      [16]byte `k:"addr"`
	Peer      [16]byte `k:"peer_addr"`
	PrefixLen uint32   `k:"prefix_len"`
	Valid     uint32   `k:"valid_lft"`
	Preferred uint32   `k:"prefered_lft"`
	Flags     uint32   `k:"flags"`
	Scope     uint16   `k:"scope"`
	Idev      Addr     `k:"idev"`
}

var (
	inDeviceLayout    = LayoutOf[inDevice]("in_device")
	inIfaddrLayout    = LayoutOf[inIfaddr]("in_ifaddr")
	inet6DevLayout    = LayoutOf[inet6Dev]("inet6_dev")
	inet6IfaddrLayout = LayoutOf[inet6Ifaddr]("inet6_ifaddr")
)

// Scopes of addresses and routes (include/uapi/linux/rtnetlink.h).
const (
	scopeUniverse = 0
	scopeSite     = 200
	scopeLink     = 253
	scopeHost     = 254
	scopeNowhere  = 255
)

var scopeNames = map[uint8]string{
	scopeUniverse: "global", scopeSite: "site", scopeLink: "link", scopeHost: "host", scopeNowhere: "nowhere",
}

// ScopeName returns the name that ip addr gives to the scope, "" for a number
// without a name.
func (a *IfAddr) ScopeName() string { return scopeNames[a.Scope] }

// maxIfAddrs is more addresses than a device gets to.
const maxIfAddrs = 1 << 20

// Addrs yields the IPv4 addresses of the device, in the kernel's order, and then
// the IPv6 addresses. An error ends the walk over one family. Source:
// net/ipv4/devinet.c:inet_fill_ifaddr, net/ipv6/addrconf.c:inet6_fill_ifaddr.
func (d *NetDevice) Addrs() iter.Seq2[IfAddr, error] {
	return func(yield func(IfAddr, error) bool) {
		if d.addrs4(yield) {
			d.addrs6(yield)
		}
	}
}

func (d *NetDevice) addrs4(yield func(IfAddr, error) bool) bool {
	if d.IPPtr == 0 {
		return true
	}
	in, err := inDeviceLayout.Load(d.k, d.IPPtr)
	if err == nil && in.Dev != d.Addr {
		err = corrupt(d.IPPtr, "in_device", "belongs to %s, not %s", in.Dev, d.Addr)
	}
	if err != nil {
		return yield(IfAddr{}, err)
	}
	var loop loopCheck
	for a, n := in.IfaList, 0; a != 0; n++ {
		if n >= maxIfAddrs || loop.seen(a) {
			return yield(IfAddr{}, &PathError{Path: "in_device.ifa_list", Addr: d.IPPtr, Err: ErrLimit})
		}
		raw, err := inIfaddrLayout.Load(d.k, a)
		if err == nil && (raw.InDev != d.IPPtr || raw.PrefixLen > 32) {
			err = corrupt(a, "in_ifaddr", "of in_device %s, prefix length %d", raw.InDev, raw.PrefixLen)
		}
		if err != nil {
			return yield(IfAddr{}, err)
		}
		if !yield(raw.ifAddr(), nil) {
			return false
		}
		a = raw.Next
	}
	return true
}

func (raw *inIfaddr) ifAddr() IfAddr {
	a := IfAddr{
		Prefix: netip.PrefixFrom(netip.AddrFrom4(raw.Local), int(raw.PrefixLen)),
		Label:  cstring(raw.Label[:]), Scope: raw.Scope, Flags: raw.Flags,
		Valid: lifetime(raw.Valid), Preferred: lifetime(raw.Preferred),
	}
	if raw.Address != raw.Local {
		a.Peer = netip.AddrFrom4(raw.Address)
	}
	if raw.Broadcast != [4]byte{} {
		a.Broadcast = netip.AddrFrom4(raw.Broadcast)
	}
	return a
}

func lifetime(s uint32) time.Duration {
	if s == ^uint32(0) {
		return -1
	}
	return time.Duration(s) * time.Second
}

func (d *NetDevice) addrs6(yield func(IfAddr, error) bool) bool {
	if d.IP6Ptr == 0 {
		return true
	}
	in, err := inet6DevLayout.Load(d.k, d.IP6Ptr)
	if err == nil && in.Dev != d.Addr {
		err = corrupt(d.IP6Ptr, "inet6_dev", "belongs to %s, not %s", in.Dev, d.Addr)
	}
	if err != nil {
		return yield(IfAddr{}, err)
	}
	off, err := d.k.offsetOf("inet6_ifaddr", "if_list")
	if err != nil {
		return yield(IfAddr{}, err)
	}
	n := 0
	for node, err := range d.k.List(in.AddrList) {
		if n++; err == nil && n > maxIfAddrs {
			err = &PathError{Path: "inet6_dev.addr_list", Addr: d.IP6Ptr, Err: ErrLimit}
		}
		if err != nil {
			return yield(IfAddr{}, err)
		}
		raw, err := inet6IfaddrLayout.Load(d.k, node-Addr(off))
		if err == nil && (raw.Idev != d.IP6Ptr || raw.PrefixLen > 128) {
			err = corrupt(node-Addr(off), "inet6_ifaddr", "of inet6_dev %s, prefix length %d", raw.Idev, raw.PrefixLen)
		}
		if err != nil {
			return yield(IfAddr{}, err)
		}
		if !yield(raw.ifAddr(), nil) {
			return false
		}
	}
	return true
}

func (raw *inet6Ifaddr) ifAddr() IfAddr {
	a := IfAddr{
		Prefix: netip.PrefixFrom(netip.AddrFrom16(raw.Addr), int(raw.PrefixLen)),
		Flags:  raw.Flags, Valid: lifetime(raw.Valid), Preferred: lifetime(raw.Preferred),
	}
	if raw.Peer != [16]byte{} {
		a.Peer = netip.AddrFrom16(raw.Peer)
	}
	// IPV6_ADDR_* of include/net/ipv6.h, as net/ipv6/addrconf.c:rt_scope maps them.
	switch s := raw.Scope; {
	case s&0x10 != 0:
		a.Scope = scopeHost
	case s&0x20 != 0:
		a.Scope = scopeLink
	case s&0x40 != 0:
		a.Scope = scopeSite
	}
	return a
}
