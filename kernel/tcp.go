package kernel

import (
	"fmt"
	"time"
)

// TCP is the state of a TCP connection or listener: what a struct tcp_sock adds to
// a Socket. Sequence numbers wrap; differences are meant modulo 2^32.
type TCP struct {
	tcpFields
	Congestion string        // name of the congestion control
	RTO        time.Duration // retransmission timeout
	DelayedACK time.Duration // how long an acknowledgement may wait
	Linger2    time.Duration // TCP_LINGER2; 0: the namespace's default
	Timer      TCPTimer
	Keepalive  TCPKeepalive
}

type tcpFields struct {
	SndUna    uint32 `k:"snd_una"`    // first that is not acknowledged
	SndNxt    uint32 `k:"snd_nxt"`    // next to send
	WriteSeq  uint32 `k:"write_seq"`  // behind the last that a process wrote
	RcvNxt    uint32 `k:"rcv_nxt"`    // next to come
	CopiedSeq uint32 `k:"copied_seq"` // first that no process has read
	PushedSeq uint32 `k:"pushed_seq"` // last that was pushed
	RcvWup    uint32 `k:"rcv_wup"`    // RcvNxt when the last window update was sent
	SndWl1    uint32 `k:"snd_wl1"`    // of the segment that last updated the window
	SndWnd    uint32 `k:"snd_wnd"`    // window that the peer offers
	MaxWindow uint32 `k:"max_window"` // largest that it ever offered
	RcvWnd    uint32 `k:"rcv_wnd"`    // window that we offer

	MSS         uint32 `k:"mss_cache"` // of what is sent now
	AdvMSS      uint32 `k:"advmss"`    // advertised
	RcvMSS      uint32 `k:"inet_conn.icsk_ack.rcv_mss"`
	PMTU        uint32 `k:"inet_conn.icsk_pmtu_cookie"`
	SndSsthresh uint32 `k:"snd_ssthresh"`
	SndCwnd     uint32 `k:"snd_cwnd"`
	SRTT8       uint32 `k:"srtt_us"` // smoothed round trip time, microseconds times 8
	MDev4       uint32 `k:"mdev_us"` // its mean deviation, microseconds times 4

	PacketsOut    uint32 `k:"packets_out"`
	RetransOut    uint32 `k:"retrans_out"`
	LostOut       uint32 `k:"lost_out"`
	SackedOut     uint32 `k:"sacked_out"`
	TotalRetrans  uint32 `k:"total_retrans"`
	SegsIn        uint32 `k:"segs_in"`
	SegsOut       uint32 `k:"segs_out"`
	BytesAcked    uint64 `k:"bytes_acked"`
	BytesReceived uint64 `k:"bytes_received"`
	BytesSent     uint64 `k:"bytes_sent"`

	// Options that the two ends agreed on.
	SackOK    uint8  `k:"rx_opt.sack_ok"`
	TStampOK  bool   `k:"rx_opt.tstamp_ok"`
	WScaleOK  bool   `k:"rx_opt.wscale_ok"`
	SndWScale uint8  `k:"rx_opt.snd_wscale"`
	RcvWScale uint8  `k:"rx_opt.rcv_wscale"`
	MSSClamp  uint16 `k:"rx_opt.mss_clamp"`
	UserMSS   uint16 `k:"rx_opt.user_mss"`
	TSRecent  uint32 `k:"rx_opt.ts_recent"`
	TSOffset  uint32 `k:"tsoffset"` // what is added to the clock in sent timestamps
	USecTS    bool   `k:"tcp_usec_ts,opt"`

	NonAgle       uint8  `k:"nonagle"` // 1 TCP_NODELAY, 2 TCP_CORK
	Repair        bool   `k:"repair"`
	RawLinger2    int32  `k:"linger2"` // jiffies
	NotSentLowat  uint32 `k:"notsent_lowat"`
	KeepaliveTime uint32 `k:"keepalive_time"` // jiffies; 0: the namespace's default
	KeepaliveIntv uint32 `k:"keepalive_intvl"`
	KeepaliveProb uint8  `k:"keepalive_probes"`
	SynRetries    uint8  `k:"inet_conn.icsk_syn_retries"`
	UserTimeout   uint32 `k:"inet_conn.icsk_user_timeout"` // milliseconds
	DeferAccept   uint8  `k:"inet_conn.icsk_accept_queue.rskq_defer_accept"`
	FastOpenMax   int32  `k:"inet_conn.icsk_accept_queue.fastopenq.max_qlen"`

	Retransmits uint8  `k:"inet_conn.icsk_retransmits"`
	ProbesOut   uint8  `k:"inet_conn.icsk_probes_out"`
	Backoff     uint8  `k:"inet_conn.icsk_backoff"`
	CAState     uint8  `k:"inet_conn.icsk_ca_state"`
	ATO         uint32 `k:"inet_conn.icsk_ack.ato"` // delayed acknowledgement, jiffies
	Quick       uint8  `k:"inet_conn.icsk_ack.quick"`
	PingPong    uint8  `k:"inet_conn.icsk_ack.pingpong"`

	RawRTO        uint32 `k:"inet_conn.icsk_rto"` // jiffies
	Pending       uint8  `k:"inet_conn.icsk_pending"`
	Timeout       uint64 `k:"inet_conn.icsk_timeout|inet_conn.icsk_retransmit_timer.expires|inet_conn.icsk_inet.sk.tcp_retransmit_timer.expires"`
	SKTimer       uint64 `k:"inet_conn.icsk_keepalive_timer.expires|inet_conn.icsk_inet.sk.sk_timer.expires"`
	SKTimerQueued Addr   `k:"inet_conn.icsk_keepalive_timer.entry.pprev|inet_conn.icsk_inet.sk.sk_timer.entry.pprev"`
	CAOps         Addr   `k:"inet_conn.icsk_ca_ops"`
	ULPOps        Addr   `k:"inet_conn.icsk_ulp_ops"` // kTLS and such; 0 for plain TCP
}

// tcpSeq are the ends of the two queues.
type tcpSeq struct {
	SndUna    uint32 `k:"snd_una"`
	WriteSeq  uint32 `k:"write_seq"`
	RcvNxt    uint32 `k:"rcv_nxt"`
	CopiedSeq uint32 `k:"copied_seq"`
}

type tcpCongestionOps struct {
	Name [16]byte `k:"name"`
}

var (
	tcpLayout              = LayoutOf[tcpFields]("tcp_sock")
	tcpSeqLayout           = LayoutOf[tcpSeq]("tcp_sock")
	tcpCongestionOpsLayout = LayoutOf[tcpCongestionOps]("tcp_congestion_ops")
)

// TCPTimerKind says which timer of a connection runs next, with the numbers of
// /proc/net/tcp and of inet_diag.
type TCPTimerKind uint8

// Timers of TCP.
const (
	TCPTimerNone       TCPTimerKind = 0
	TCPTimerRetransmit TCPTimerKind = 1
	TCPTimerKeepalive  TCPTimerKind = 2 // keepalive, or the end of FIN_WAIT2
	TCPTimerTimeWait   TCPTimerKind = 3
	TCPTimerProbe      TCPTimerKind = 4 // of a window that is closed
)

var tcpTimerNames = [...]string{"none", "retransmit", "keepalive", "timewait", "probe"}

func (t TCPTimerKind) String() string {
	if int(t) < len(tcpTimerNames) {
		return tcpTimerNames[t]
	}
	return fmt.Sprintf("timer%d", uint8(t))
}

// TCPTimer is the timer that a connection waits for.
type TCPTimer struct {
	Kind TCPTimerKind
	Left time.Duration // negative if it is overdue
}

// TCPKeepalive is how idle connections are probed; zero where the namespace's
// defaults hold.
type TCPKeepalive struct {
	Time, Interval time.Duration
	Probes         int
}

// Kinds of timers in inet_connection_sock.icsk_pending.
const (
	icskTimeRetrans   = 1
	icskTimeProbe0    = 3
	icskTimeLossProbe = 5
	icskTimeReoTimer  = 6
)

// SRTT returns the smoothed round trip time.
func (t *TCP) SRTT() time.Duration { return time.Duration(t.SRTT8/8) * time.Microsecond }

// RTTVar returns the mean deviation of the round trip time.
func (t *TCP) RTTVar() time.Duration { return time.Duration(t.MDev4/4) * time.Microsecond }

// Timestamp returns the value that the connection puts into the timestamps of its
// segments at a moment: what getsockopt(TCP_TIMESTAMP) returns. Source:
// net/ipv4/tcp.c:tcp_clock_ts.
func (t *TCP) Timestamp(now Clocks) uint32 {
	unit := time.Millisecond
	if t.USecTS {
		unit = time.Microsecond
	}
	return uint32(now.Monotonic/unit) + t.TSOffset
}

// TCP returns the TCP state of a full socket; ErrWrongKind for others. Source:
// net/ipv4/tcp.c:tcp_get_info, net/ipv4/tcp_ipv4.c:get_tcp4_sock.
func (s *Socket) TCP() (*TCP, error) {
	if !s.isTCP() {
		return nil, s.wrongKind("TCP")
	}
	t := &TCP{}
	if err := tcpLayout.LoadInto(s.k, s.Addr, &t.tcpFields); err != nil {
		return nil, err
	}
	ops, err := tcpCongestionOpsLayout.Load(s.k, t.CAOps)
	if err != nil {
		return nil, &PathError{Path: "inet_connection_sock.icsk_ca_ops", Addr: s.Addr, Err: err}
	}
	t.Congestion = cstring(ops.Name[:])
	tick, err := s.k.tick()
	if err != nil {
		return nil, err
	}
	now, err := s.k.jiffies()
	if err != nil {
		return nil, err
	}
	t.RTO, t.DelayedACK = jiffiesDuration(int64(t.RawRTO), tick), jiffiesDuration(int64(t.ATO), tick)
	t.Linger2 = jiffiesDuration(int64(t.RawLinger2), tick)
	t.Keepalive = TCPKeepalive{
		jiffiesDuration(int64(t.KeepaliveTime), tick), jiffiesDuration(int64(t.KeepaliveIntv), tick), int(t.KeepaliveProb),
	}
	kind, expires := t.timer()
	if kind != TCPTimerNone {
		t.Timer = TCPTimer{kind, ticksLeft(expires, now, tick)}
	}
	return t, nil
}

func (s *Socket) isTCP() bool {
	return s.Full() && s.isInet() && s.Protocol == ProtoTCP && s.Type == SockStream
}

func (t *tcpFields) timer() (TCPTimerKind, uint64) {
	switch t.Pending {
	case icskTimeRetrans, icskTimeLossProbe, icskTimeReoTimer:
		return TCPTimerRetransmit, t.Timeout
	case icskTimeProbe0:
		return TCPTimerProbe, t.Timeout
	}
	if t.SKTimerQueued != 0 {
		return TCPTimerKeepalive, t.SKTimer
	}
	return TCPTimerNone, 0
}

// ticksLeft returns the time until a timer fires, at most about a day either way:
// no timer of TCP runs longer but keepalive, and what is longer is nonsense of a
// guest.
func ticksLeft(expires, now uint64, tick time.Duration) time.Duration {
	const most = 1 << 31
	return time.Duration(max(min(int64(expires-now), most), -most)) * tick
}

type timeWait struct {
	Substate uint8  `k:"tw_substate"`
	Mark     uint32 `k:"tw_mark,opt"`
	Expires  uint64 `k:"tw_timer.expires"`
}

type requestSock struct {
	NumTimeout uint8  `k:"num_timeout"`
	MSS        uint16 `k:"mss"`
	Expires    uint64 `k:"rsk_timer.expires"`
	SK         Addr   `k:"sk"`
	Next       Addr   `k:"dl_next"`
	Listener   Addr   `k:"__req_common.skc_listener"`
}

var (
	timeWaitLayout    = LayoutOf[timeWait]("inet_timewait_sock")
	requestSockLayout = LayoutOf[requestSock]("request_sock")
)

// TCPRemnant is what is known of a connection that is no full socket.
type TCPRemnant struct {
	State SockState // FIN_WAIT2 or TIME_WAIT; SYN_RECV for one that begins
	Timer TCPTimer
	// Listener is the socket that a beginning connection goes to.
	Listener Addr
	Timeouts uint8 // how often the answer to its first packet was repeated
}

// Remnant returns what is left of a closed connection, or known of a beginning one;
// ErrWrongKind for full sockets. Source: net/ipv4/tcp_ipv4.c:get_timewait4_sock,
// get_openreq4.
func (s *Socket) Remnant() (*TCPRemnant, error) {
	if s.Full() {
		return nil, s.wrongKind("partial")
	}
	tick, err := s.k.tick()
	if err != nil {
		return nil, err
	}
	now, err := s.k.jiffies()
	if err != nil {
		return nil, err
	}
	if s.State == TCPTimeWait {
		w, err := timeWaitLayout.Load(s.k, s.Addr)
		if err != nil {
			return nil, err
		}
		return &TCPRemnant{State: SockState(w.Substate), Timer: TCPTimer{TCPTimerTimeWait, ticksLeft(w.Expires, now, tick)}}, nil
	}
	r, err := requestSockLayout.Load(s.k, s.Addr)
	if err != nil {
		return nil, err
	}
	return &TCPRemnant{
		State: TCPSynRecv, Listener: r.Listener, Timeouts: r.NumTimeout,
		Timer: TCPTimer{TCPTimerRetransmit, ticksLeft(r.Expires, now, tick)},
	}, nil
}
