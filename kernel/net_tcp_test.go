package kernel_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// checkTCPInfo compares TCP connections with what TCP_INFO, socket options, ioctls and
// repair mode told their owner.
func checkTCPInfo(t *testing.T, z *netZoo) {
	d := differences{}
	connections := 0
	z.held(t, func(name string, h netHolder, want *heldSocket, s *kernel.Socket) {
		info, ok := want.Options["info"].([]any)
		if strings.HasSuffix(name, " syn_sent") {
			return // gives up some minutes after its owner asked
		}
		if !ok {
			_, err := s.TCP()
			require.ErrorIs(t, err, kernel.ErrWrongKind)
			return
		}
		got, err := s.TCP()
		require.NoError(t, err, name)
		equal := func(what string, got, want any) { d.equal(name+" "+what, got, want) }
		equal("state", uint8(s.State), info[0])
		equal("congestion", got.Congestion, want.Options["congestion"])
		tcpOptions(func(opt string, got any) { equal(opt, got, want.Options["tcp_"+opt]) }, got)
		recv, send, err := s.Queues()
		require.NoError(t, err)
		if w, ok := want.Options["outq"]; ok && s.State == kernel.TCPEstablished {
			equal("outq", send, w)
			equal("inq", recv, want.Options["inq"])
			equal("unsent", got.WriteSeq-got.SndNxt, want.Options["unsent"])
		}
		if s.State == kernel.TCPListen {
			return
		}
		connections++
		tcpInfo(equal, got, info)
		if w, ok := want.Options["window"].([]any); ok {
			equal("rcv_nxt", got.RcvNxt, want.Options["rcv_nxt"])
			equal("write_seq", got.WriteSeq, want.Options["write_seq"])
			for i, v := range []uint32{got.SndWl1, got.SndWnd, got.MaxWindow, got.RcvWnd, got.RcvWup} {
				equal([]string{"snd_wl1", "snd_wnd", "max_window", "rcv_wnd", "rcv_wup"}[i], v, w[i])
			}
			timestampNear(t, name, z.k, got, want)
		}
	})
	d.report(t)
	require.GreaterOrEqual(t, connections, 20)
}

func tcpOptions(equal func(opt string, got any), t *kernel.TCP) {
	or := func(v, otherwise time.Duration) int {
		if v == 0 {
			v = otherwise
		}
		return int(v / time.Second)
	}
	const noDelay, cork = 1, 2
	equal("nodelay", t.NonAgle&noDelay)
	equal("cork", t.NonAgle&cork>>1)
	equal("keepidle", or(t.Keepalive.Time, 2*time.Hour))
	equal("keepintvl", or(t.Keepalive.Interval, 75*time.Second))
	probes, syns := t.Keepalive.Probes, t.SynRetries
	if probes == 0 {
		probes = 9
	}
	if syns == 0 {
		syns = 6
	}
	equal("keepcnt", probes)
	equal("syncnt", syns)
	equal("linger2", or(t.Linger2, time.Minute))
	equal("user_timeout", t.UserTimeout)
}

// tcpInfo compares with a struct tcp_info (include/uapi/linux/tcp.h), its eight bytes
// and the words behind them.
func tcpInfo(equal func(what string, got, want any), t *kernel.TCP, info []any) {
	const timestamps, sack, wscale = 1, 2, 4
	var options, scales int
	if t.TStampOK {
		options |= timestamps
	}
	if t.SackOK != 0 {
		options |= sack
	}
	if t.WScaleOK {
		options |= wscale
		scales = int(t.SndWScale) | int(t.RcvWScale)<<4
	}
	got, _ := info[5].(json.Number).Int64()
	equal("options", options, got&7)
	equal("wscale", scales, info[6])
	equal("retransmits", t.Retransmits, info[2])
	equal("rto", t.RTO.Microseconds(), info[8])
	equal("snd_mss", t.MSS, info[10])
	equal("rcv_mss", t.RcvMSS, info[11])
	equal("lost", t.LostOut, info[14])
	equal("pmtu", t.PMTU, info[21])
	equal("rtt", t.SRTT().Microseconds(), info[23])
	equal("rttvar", t.RTTVar().Microseconds(), info[24])
	equal("ssthresh", t.SndSsthresh, info[25])
	equal("cwnd", t.SndCwnd, info[26])
	equal("advmss", t.AdvMSS, info[27])
	equal("total_retrans", t.TotalRetrans, info[31])
}

// timestampNear checks the clock of timestamps: it has gone on since its owner asked,
// by less than the guest is old.
func timestampNear(t *testing.T, name string, k *kernel.Kernel, got *kernel.TCP, want *heldSocket) {
	t.Helper()
	then, err := want.Options["timestamp"].(json.Number).Int64()
	require.NoError(t, err)
	now, err := k.Clocks()
	require.NoError(t, err)
	since := time.Duration(int32(got.Timestamp(now)-uint32(then))) * time.Millisecond
	require.Positive(t, since+time.Second, name)
	require.Less(t, since, now.Monotonic, name)
}
