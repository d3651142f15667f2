package kernel_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// ipLink is an element of what ip -j -d addr prints.
type ipLink struct {
	IfIndex   int32    `json:"ifindex"`
	IfName    string   `json:"ifname"`
	Flags     []string `json:"flags"`
	MTU       uint32   `json:"mtu"`
	Qdisc     string   `json:"qdisc"`
	OperState string   `json:"operstate"`
	TxQLen    uint32   `json:"txqlen"`
	LinkType  string   `json:"link_type"`
	Address   string   `json:"address"`
	Broadcast string   `json:"broadcast"`
	IfAlias   string   `json:"ifalias"`
	Master    string   `json:"master"`
	LinkInfo  struct {
		Kind string `json:"info_kind"`
	} `json:"linkinfo"`
	AddrInfo []struct {
		Local     string  `json:"local"`
		Address   string  `json:"address"` // of the peer
		PrefixLen int     `json:"prefixlen"`
		Broadcast string  `json:"broadcast"`
		Scope     string  `json:"scope"`
		Label     string  `json:"label"`
		Valid     float64 `json:"valid_life_time"`
	} `json:"addr_info"`
}

var iffNames = []struct {
	bit  uint32
	name string
}{
	{kernel.IffLoopback, "LOOPBACK"},
	{kernel.IffBroadcast, "BROADCAST"},
	{kernel.IffPointo, "POINTOPOINT"},
	{kernel.IffMulticast, "MULTICAST"},
	{kernel.IffNoARP, "NOARP"},
	{kernel.IffAllMulti, "ALLMULTI"},
	{kernel.IffPromisc, "PROMISC"},
	{kernel.IffUp, "UP"},
	{kernel.IffLowerUp, "LOWER_UP"},
	{kernel.IffDormant, "DORMANT"},
}

// checkNetDevices compares devices and their addresses with ip addr.
func checkNetDevices(t *testing.T, z *netZoo) {
	kinds := map[string]bool{}
	z.agree(t, func(d differences, n *kernel.Net, v netView) {
		var links []ipLink
		require.NoError(t, json.Unmarshal([]byte(v.Addr), &links))
		var got []string
		for dev, err := range n.NetDevices() {
			if err != nil {
				d.add("%v", err)
				continue
			}
			kinds[dev.Kind] = true
			lines, err := deviceLines(dev)
			if err != nil {
				d.add("%s: %v", dev.Name, err)
			}
			got = append(got, lines...)
		}
		var want []string
		for _, l := range links {
			want = append(want, l.lines()...)
		}
		slices.Sort(got)
		slices.Sort(want)
		for _, l := range missing(want, got) {
			d.add("net %d: only the guest has %s", n.Inum, l)
		}
		for _, l := range missing(got, want) {
			d.add("net %d: only we have   %s", n.Inum, l)
		}
	})
	require.True(t, kinds["veth"] && kinds["tun"] && kinds[""])
}

func (l *ipLink) lines() []string {
	var flags []string
	for _, f := range iffNames {
		if slices.Contains(l.Flags, f.name) {
			flags = append(flags, f.name)
		}
	}
	all := []string{fmt.Sprintf("%d %s %v mtu %d qdisc %s %s qlen %d %q %q alias %q kind %q master %q", l.IfIndex, l.IfName, flags, l.MTU, l.Qdisc,
		l.OperState, l.TxQLen, l.Address, l.Broadcast, l.IfAlias, l.LinkInfo.Kind, l.Master)}
	for _, a := range l.AddrInfo {
		peer := a.Address
		all = append(all, fmt.Sprintf("%s: %s/%d peer %q brd %q %s %q", l.IfName, a.Local, a.PrefixLen, peer, a.Broadcast, a.Scope, a.Label))
	}
	return all
}

func deviceLines(d *kernel.NetDevice) ([]string, error) {
	var flags []string
	for _, f := range iffNames {
		if d.Flags()&f.bit != 0 {
			flags = append(flags, f.name)
		}
	}
	qdisc, err := d.Qdisc()
	if err != nil {
		return nil, err
	}
	alias, err := d.Alias()
	if err != nil {
		return nil, err
	}
	master, err := d.Master()
	if err != nil {
		return nil, err
	}
	m := ""
	if master != nil {
		m = master.Name
	}
	text := func(a netip.Addr) string {
		if !a.IsValid() {
			return ""
		}
		return a.String()
	}
	all := []string{fmt.Sprintf("%d %s %v mtu %d qdisc %s %s qlen %d %q %q alias %q kind %q master %q", d.IfIndex, d.Name, flags, d.MTU, qdisc,
		d.OperStateName(), d.TxQLen, d.MAC, d.Broadcast, alias, d.Kind, m)}
	for a, err := range d.Addrs() {
		if err != nil {
			return all, err
		}
		all = append(all, fmt.Sprintf("%s: %s peer %q brd %q %s %q", d.Name, a.Prefix, text(a.Peer), text(a.Broadcast), a.ScopeName(), a.Label))
	}
	return all, nil
}

// checkRoutes compares IPv4 routes of all tables with ip route.
func checkRoutes(t *testing.T, z *netZoo) {
	tables := map[uint32]int{}
	z.agree(t, func(d differences, n *kernel.Net, v netView) {
		names := map[int32]string{}
		for dev, err := range n.NetDevices() {
			require.NoError(t, err)
			names[dev.IfIndex] = dev.Name
		}
		var got, want []string
		for r, err := range n.Routes() {
			if err != nil {
				d.add("%v", err)
				continue
			}
			tables[r.Table]++
			got = append(got, routeLine(&r, names))
		}
		var all []map[string]any
		require.NoError(t, json.Unmarshal([]byte(v.Route), &all))
		for _, r := range all {
			want = append(want, ipRouteLine(r))
		}
		slices.Sort(got)
		slices.Sort(want)
		for _, l := range missing(want, got) {
			d.add("net %d: only the guest has %s", n.Inum, l)
		}
		for _, l := range missing(got, want) {
			d.add("net %d: only we have   %s", n.Inum, l)
		}
	})
	require.NotZero(t, tables[254])
	require.NotZero(t, tables[255])
	require.NotZero(t, tables[77])
}

func routeLine(r *kernel.Route, names map[int32]string) string {
	dst := r.Dst.String()
	if r.Dst.IsSingleIP() {
		dst = r.Dst.Addr().String()
	} else if r.Dst.Bits() == 0 {
		dst = "default"
	}
	table := map[uint32]string{254: "", 255: "local"}
	name, ok := table[r.Table]
	if !ok {
		name = fmt.Sprint(r.Table)
	}
	types := map[uint8]string{1: "", 2: "local", 3: "broadcast", 6: "blackhole"}
	protos := map[uint8]string{2: "kernel", 3: "", 4: "static"}
	scopes := map[uint8]string{0: "", 253: "link", 254: "host"}
	var dev, via, src string
	if len(r.Hops) > 0 {
		dev = names[r.Hops[0].IfIndex]
		if r.Hops[0].Gateway.IsValid() {
			via = r.Hops[0].Gateway.String()
		}
	}
	if r.PrefSrc.IsValid() {
		src = r.PrefSrc.String()
	}
	return strings.Join([]string{types[r.Type], dst, "via", via, "dev", dev, "table", name, "proto", protos[r.Protocol], "scope", scopes[r.Scope], "src", src, "metric", fmt.Sprint(r.Priority)}, " ")
}

func ipRouteLine(r map[string]any) string {
	s := func(key string) string {
		if v, ok := r[key]; ok {
			return fmt.Sprint(v)
		}
		return ""
	}
	metric := s("metric")
	if metric == "" {
		metric = "0"
	}
	return strings.Join([]string{s("type"), s("dst"), "via", s("gateway"), "dev", s("dev"), "table", s("table"), "proto", s("protocol"), "scope", s("scope"), "src", s("prefsrc"), "metric", metric}, " ")
}
