package kernel

import (
	"fmt"
	"time"
)

// SocketOptions are the options of a socket that programs commonly set, with the
// values that getsockopt(2) returns.
type SocketOptions struct {
	ReuseAddr, ReusePort, Broadcast, KeepAlive, OOBInline, DontRoute bool
	PassCred, PassSec                                                bool
	Timestamp, TimestampNS, RxqOvfl, ZeroCopy, NoCheck               bool
	Filter                                                           bool // a BPF program looks at what comes in
	FilterLocked                                                     bool

	SndBuf, RcvBuf             int32 // bytes, with the kernel's share: twice what was set
	SndBufLocked, RcvBufLocked bool  // were set, and are not adapted
	RcvLowat                   int32
	Priority, Mark             uint32
	BoundIf                    int32 // ifindex of SO_BINDTODEVICE
	BusyPoll                   uint32

	RcvTimeout, SndTimeout time.Duration // 0: none
	Linger                 bool
	LingerTime             time.Duration

	// IP; zero for other families.
	TOS, McastTTL                           uint8
	TTL                                     int16 // -1: the default
	PMTUDiscover                            uint8
	FreeBind, Transparent, HdrIncl          bool
	RecvErr, BindAddressNoPort, McastLoop   bool
	PktInfo, RecvTTL, RecvTOS, RecvOrigAddr bool
	IPv6Only                                bool
	IPv6TClass                              uint8
	IPv6HopLimit                            int16
}

type sockOptFields struct {
	RcvTimeo   int64  `k:"sk_rcvtimeo"`
	SndTimeo   int64  `k:"sk_sndtimeo"`
	LingerTime uint64 `k:"sk_lingertime"`
	RcvLowat   int32  `k:"sk_rcvlowat"`
	UserLocks  uint8  `k:"sk_userlocks"`
	NoCheckTx  bool   `k:"sk_no_check_tx"`
	BusyPoll   uint32 `k:"sk_ll_usec,opt"`
	Filter     Addr   `k:"sk_filter"`
	PassCred   bool   `k:"sk_scm_credentials,opt"` // since 6.16; flags of the socket before
	PassSec    bool   `k:"sk_scm_security,opt"`
}

type inetSock struct {
	TTL          int16  `k:"uc_ttl"`
	TOS          uint8  `k:"tos"`
	McastTTL     uint8  `k:"mc_ttl"`
	PMTUDiscover uint8  `k:"pmtudisc"`
	Flags        uint64 `k:"inet_flags,opt"` // since 6.6; single bits before
	CmsgFlags    uint16 `k:"cmsg_flags,opt"`
	FreeBind     bool   `k:"freebind,opt"`
	Transparent  bool   `k:"transparent,opt"`
	HdrIncl      bool   `k:"hdrincl,opt"`
	RecvErr      bool   `k:"recverr,opt"`
	McastLoop    bool   `k:"mc_loop,opt"`
	NoPort       bool   `k:"bind_address_no_port,opt"`
	Pinet6       Addr   `k:"pinet6,opt"`
}

type ipv6Pinfo struct {
	TClass   uint8  `k:"tclass"`
	HopLimit uint16 `k:"hop_limit"` // signed; before 6.8 of 9 bits
}

var (
	sockOptLayout   = LayoutOf[sockOptFields]("sock")
	inetSockLayout  = LayoutOf[inetSock]("inet_sock")
	ipv6PinfoLayout = LayoutOf[ipv6Pinfo]("ipv6_pinfo")
)

// Bits of inet_sock.inet_flags (include/net/inet_sock.h); the first ones are those
// of cmsg_flags before 6.6 too.
const (
	inetFlagPktInfo   = 1 << 0
	inetFlagTTL       = 1 << 1
	inetFlagTOS       = 1 << 2
	inetFlagOrigAddr  = 1 << 5
	inetFlagRecvErr   = 1 << 9
	inetFlagFreeBind  = 1 << 11
	inetFlagHdrIncl   = 1 << 12
	inetFlagMcastLoop = 1 << 13
	inetFlagTransp    = 1 << 15
	inetFlagNoPort    = 1 << 18
)

const (
	sockPassCred = 1 << 3 // SOCK_PASSCRED of struct socket, before 6.16
	sockPassSec  = 1 << 4
	lockSndBuf   = 1 // SOCK_SNDBUF_LOCK
	lockRcvBuf   = 2
)

// Options returns the options of a full socket; ErrWrongKind for others. Source:
// net/core/sock.c:sk_getsockopt, net/ipv4/ip_sockglue.c:do_ip_getsockopt.
func (s *Socket) Options() (*SocketOptions, error) {
	if !s.Full() {
		return nil, s.wrongKind("full")
	}
	f, err := sockOptLayout.Load(s.k, s.Addr)
	if err != nil {
		return nil, err
	}
	tick, err := s.k.tick()
	if err != nil {
		return nil, err
	}
	timeout := func(j int64) time.Duration { return max(jiffiesDuration(j, tick), 0) }
	o := &SocketOptions{
		ReuseAddr: s.ReuseAddr != 0, ReusePort: s.ReusePort, IPv6Only: s.IPv6Only, BoundIf: s.BoundIf,
		SndBuf: s.SndBuf, RcvBuf: s.RcvBuf, SndBufLocked: f.UserLocks&lockSndBuf != 0, RcvBufLocked: f.UserLocks&lockRcvBuf != 0,
		RcvLowat: f.RcvLowat, Priority: s.Priority, Mark: s.Mark, BusyPoll: f.BusyPoll, NoCheck: f.NoCheckTx, Filter: f.Filter != 0,
		RcvTimeout: timeout(f.RcvTimeo), SndTimeout: timeout(f.SndTimeo), LingerTime: timeout(int64(f.LingerTime)),
		PassCred: f.PassCred, PassSec: f.PassSec,
	}
	if !sockOptLayout.Has(s.k, "PassCred") && s.SocketAddr != 0 {
		sock, err := socketLayout.Load(s.k, s.SocketAddr)
		if err != nil {
			return nil, err
		}
		o.PassCred, o.PassSec = sock.Flags&sockPassCred != 0, sock.Flags&sockPassSec != 0
	}
	for name, on := range map[string]*bool{
		"SOCK_BROADCAST": &o.Broadcast, "SOCK_KEEPOPEN": &o.KeepAlive, "SOCK_URGINLINE": &o.OOBInline,
		"SOCK_LOCALROUTE": &o.DontRoute, "SOCK_LINGER": &o.Linger, "SOCK_RCVTSTAMP": &o.Timestamp,
		"SOCK_RCVTSTAMPNS": &o.TimestampNS, "SOCK_RXQ_OVFL": &o.RxqOvfl, "SOCK_ZEROCOPY": &o.ZeroCopy,
		"SOCK_FILTER_LOCKED": &o.FilterLocked,
	} {
		bit, err := s.k.enumValue("sock_flags", name)
		if err != nil {
			return nil, err
		}
		*on = s.Flags>>bit&1 != 0
	}
	o.Timestamp = o.Timestamp && !o.TimestampNS
	if s.isInet() {
		return o, s.inetOptions(o)
	}
	return o, nil
}

func (s *Socket) inetOptions(o *SocketOptions) error {
	i, err := inetSockLayout.Load(s.k, s.Addr)
	if err != nil {
		return err
	}
	o.TTL, o.TOS, o.McastTTL, o.PMTUDiscover = i.TTL, i.TOS, i.McastTTL, i.PMTUDiscover
	o.FreeBind, o.Transparent, o.HdrIncl = i.FreeBind, i.Transparent, i.HdrIncl
	o.RecvErr, o.McastLoop, o.BindAddressNoPort = i.RecvErr, i.McastLoop, i.NoPort
	cmsg := uint64(i.CmsgFlags)
	if inetSockLayout.Has(s.k, "Flags") {
		cmsg = i.Flags
		o.FreeBind, o.Transparent = cmsg&inetFlagFreeBind != 0, cmsg&inetFlagTransp != 0
		o.HdrIncl, o.RecvErr = cmsg&inetFlagHdrIncl != 0, cmsg&inetFlagRecvErr != 0
		o.McastLoop, o.BindAddressNoPort = cmsg&inetFlagMcastLoop != 0, cmsg&inetFlagNoPort != 0
	}
	o.PktInfo, o.RecvTTL = cmsg&inetFlagPktInfo != 0, cmsg&inetFlagTTL != 0
	o.RecvTOS, o.RecvOrigAddr = cmsg&inetFlagTOS != 0, cmsg&inetFlagOrigAddr != 0
	if s.Family != AFInet6 || i.Pinet6 == 0 {
		return nil
	}
	p, err := ipv6PinfoLayout.Load(s.k, i.Pinet6)
	o.IPv6TClass, o.IPv6HopLimit = p.TClass, int16(p.HopLimit)
	if p.HopLimit == 1<<9-1 {
		o.IPv6HopLimit = -1
	}
	return err
}

// enumValue returns the value of a constant, which must be a bit number.
func (k *Kernel) enumValue(enum, name string) (uint, error) {
	key := offsetKey{enum, name}
	if v, ok := k.lazy.offsets.Load(key); ok {
		return uint(v.(int)), nil
	}
	e, err := k.types.Enum(enum)
	if err != nil {
		return 0, err
	}
	v, err := e.EnumValue(name)
	if err != nil {
		return 0, err
	}
	if v < 0 || v > 63 {
		return 0, fmt.Errorf("%w: %s.%s is %d, no number of a bit", ErrCorrupt, enum, name, v)
	}
	k.lazy.offsets.Store(key, int(v))
	return uint(v), nil
}
