package kernel_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// held calls test for every socket that the holders hold.
func (z *netZoo) held(t *testing.T, test func(name string, h netHolder, want *heldSocket, s *kernel.Socket)) {
	t.Helper()
	for i, h := range z.holders {
		task, err := z.k.Task(h.PID)
		require.NoError(t, err)
		for name, want := range h.Sockets {
			fd, err := task.File(want.FD)
			require.NoError(t, err)
			s, err := fd.File.Socket()
			require.NoError(t, err, name)
			require.Equal(t, want.Ino, s.Ino, name)
			at, err := z.k.SockAt(s.Addr)
			require.NoError(t, err)
			require.Equal(t, s, at, name)
			require.Equal(t, z.net(t, i).Addr, s.Net, name)
			test(fmt.Sprintf("%d %s", i, name), h, want, s)
		}
	}
}

// checkSocketOptions compares the options of every socket with what getsockopt(2) told
// its owner.
func checkSocketOptions(t *testing.T, z *netZoo) {
	d := differences{}
	compared := 0
	z.held(t, func(name string, _ netHolder, want *heldSocket, s *kernel.Socket) {
		got, err := socketOptions(s)
		if err != nil {
			d.add("%s: %v", name, err)
		}
		for opt, v := range got {
			if w, ok := want.Options[opt]; ok {
				compared++
				d.equal(name+" "+opt, v, w)
			}
		}
	})
	d.report(t)
	require.Greater(t, compared, 1000)
}

// socketOptions names options as netzoo.py does.
func socketOptions(s *kernel.Socket) (map[string]any, error) {
	o, err := s.Options()
	if err != nil {
		return nil, err
	}
	num := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	ttl := func(v int16) int16 {
		if v < 0 {
			return 64
		}
		return v
	}
	timeval := func(d time.Duration) []any {
		return []any{int(d / time.Second), int(d % time.Second / time.Microsecond)}
	}
	m := map[string]any{
		"reuseaddr": num(o.ReuseAddr), "type": s.Type, "broadcast": num(o.Broadcast), "sndbuf": o.SndBuf, "rcvbuf": o.RcvBuf,
		"keepalive": num(o.KeepAlive), "oobinline": num(o.OOBInline), "no_check": num(o.NoCheck), "priority": o.Priority,
		"reuseport": num(o.ReusePort), "passcred": num(o.PassCred), "rcvlowat": o.RcvLowat, "dontroute": num(o.DontRoute),
		"acceptconn": num(s.State == kernel.TCPListen), "mark": o.Mark, "protocol": s.Protocol, "domain": s.Family,
		"linger": []any{num(o.Linger), int(o.LingerTime / time.Second)}, "bindtoifindex": o.BoundIf,
		"rcvtimeo": timeval(o.RcvTimeout), "sndtimeo": timeval(o.SndTimeout),
	}
	if s.Family == kernel.AFInet || s.Family == kernel.AFInet6 {
		m["ip_tos"], m["ip_ttl"], m["ip_hdrincl"], m["ip_pktinfo"] = o.TOS, ttl(o.TTL), num(o.HdrIncl), num(o.PktInfo)
		m["ip_mtu_discover"], m["ip_recverr"], m["ip_recvttl"], m["ip_recvtos"] = o.PMTUDiscover, num(o.RecvErr), num(o.RecvTTL), num(o.RecvTOS)
		m["ip_freebind"], m["ip_transparent"], m["ip_mcast_loop"] = num(o.FreeBind), num(o.Transparent), num(o.McastLoop)
		m["ip_mcast_ttl"], m["ip_bind_no_port"] = o.McastTTL, num(o.BindAddressNoPort)
	}
	if s.Family == kernel.AFInet6 {
		m["v6only"], m["tclass"], m["hops"] = num(o.IPv6Only), o.IPv6TClass, ttl(o.IPv6HopLimit)
	}
	return m, nil
}

// checkSocketQueues compares what waits in sockets with what was written to them.
func checkSocketQueues(t *testing.T, z *netZoo) {
	received, sent := 0, 0
	z.held(t, func(name string, h netHolder, want *heldSocket, s *kernel.Socket) {
		if s.State == kernel.TCPListen {
			_, err := s.RecvQueue(0)
			require.ErrorIs(t, err, kernel.ErrWrongKind)
			return
		}
		all, err := s.RecvQueue(8 << 20)
		require.NoError(t, err, name)
		if want.Recv != nil {
			received++
			compareMessages(t, name, h, s, all, want.Recv)
		}
		if want.Send == nil {
			return
		}
		sent++
		all, err = s.SendQueue(8 << 20)
		require.NoError(t, err, name)
		require.True(t, bytes.Equal(want.Send, joined(all)), "%s: %d bytes, not %d", name, len(joined(all)), len(want.Send))
		_, err = s.SendQueue(len(want.Send) - 1)
		require.ErrorIs(t, err, kernel.ErrLimit)
	})
	require.GreaterOrEqual(t, received, 20)
	require.Equal(t, 2, sent)
}

func joined(all []kernel.Message) (b []byte) {
	for _, m := range all {
		b = append(b, m.Data...)
	}
	return b
}

func compareMessages(t *testing.T, name string, h netHolder, s *kernel.Socket, all []kernel.Message, want [][]byte) {
	t.Helper()
	if s.Type == kernel.SockStream { // pieces may be cut otherwise
		got, wanted := joined(all), bytes.Join(want, nil)
		require.True(t, bytes.Equal(wanted, got), "%s: %d bytes, not %d", name, len(got), len(wanted))
	} else {
		require.Len(t, all, len(want), name)
		for i, m := range all {
			require.True(t, bytes.Equal(want[i], m.Data), "%s: message %d is %d bytes, not %d", name, i, len(m.Data), len(want[i]))
		}
	}
	recv, _, err := s.Queues()
	require.NoError(t, err)
	switch {
	case s.Family == kernel.AFUnix && s.Type == kernel.SockStream:
		require.EqualValues(t, len(joined(all)), recv, name)
		require.Equal(t, h.PID, all[1].PID)
		task, err := s.Kernel().Task(h.PID)
		require.NoError(t, err)
		for i, m := range all {
			if i != 1 {
				require.Empty(t, m.Files)
				continue
			}
			require.Len(t, m.Files, 2)
			fd, err := task.File(1)
			require.NoError(t, err)
			require.Equal(t, fd.File.Addr, m.Files[0])
			fd, err = task.File(h.Sockets["unix.listen"].FD)
			require.NoError(t, err)
			require.Equal(t, fd.File.Addr, m.Files[1])
		}
	case strings.HasSuffix(name, " udp"), strings.HasSuffix(name, "udp.reader"):
		for _, m := range all {
			require.Equal(t, "127.0.0.1:7202", m.From.String())
		}
	case s.Type == kernel.SockStream:
		require.LessOrEqual(t, int(recv)-len(joined(all)), 1, name) // the end of the stream counts too
	}
}

// checkSocketPeers follows Unix sockets to their peers and listening sockets to the
// connections that wait there.
func checkSocketPeers(t *testing.T, z *netZoo) {
	pairs := map[string]string{
		"unix.pair0": "unix.pair1", "unix.pair1": "unix.pair0", "unix.seq0": "unix.seq1",
		"unix.dgram.from": "unix.dgram", "unix.dgram": "", "unix.widow": "?",
	}
	waiting := map[string]int{"listen": 2, "listen6": 0, "reuseport": 0, "unix.listen": 3}
	z.held(t, func(name string, h netHolder, want *heldSocket, s *kernel.Socket) {
		_, short, _ := strings.Cut(name, " ")
		if other, ok := pairs[short]; ok {
			peer, err := s.UnixPeer()
			require.NoError(t, err)
			switch other {
			case "":
				require.Nil(t, peer)
			case "?":
				require.Zero(t, peer.Ino)
			default:
				require.Equal(t, h.Sockets[other].Ino, peer.Ino)
			}
		}
		if n, ok := waiting[short]; ok {
			got := 0
			for c, err := range s.AcceptQueue() {
				require.NoError(t, err)
				require.Equal(t, kernel.TCPEstablished, c.State)
				require.Equal(t, s.Net, c.Net)
				if s.Family == kernel.AFUnix {
					peer, err := c.UnixPeer()
					require.NoError(t, err)
					require.Equal(t, h.Sockets[fmt.Sprintf("unix.backlog%d", got)].Ino, peer.Ino)
				} else {
					m, err := c.RecvQueue(100)
					require.NoError(t, err)
					require.Equal(t, "early", string(joined(m)))
				}
				got++
			}
			require.Equal(t, n, got, name)
		}
		if short == "unix.gone" {
			p, err := s.UnixPath()
			require.NoError(t, err)
			n, err := z.k.PathName(p, kernel.Path{})
			require.NoError(t, err)
			require.True(t, n.Deleted)
			bound, err := s.UnixName()
			require.NoError(t, err)
			require.Equal(t, n.Name, bound)
		}
	})
}
