package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/kernel"
)

const longNet = `net shows the network namespace of a process: its devices with their addresses, its IPv4
routes, and its sockets with the processes that have them open, like ip addr, ip route
and ss -a. With --all it shows every network namespace of the guest.

The guest runs meanwhile: a socket that comes or goes may be missed.`

func (a *app) netCommand() *cobra.Command {
	all := false
	c := a.command("net PID", "Show the network of a process: devices, routes, sockets", longNet,
		func(c *cobra.Command, args []string) error {
			if all {
				return a.with(c.Context(), needRead, func(g *guest) error {
					return a.showNets(c.Context(), g.Kernel)
				})
			}
			return a.process(c.Context(), needRead, args[0], func(g *guest, t *kernel.Task) error {
				n, err := t.Net()
				if err != nil {
					return err
				}
				v, err := readNet(c.Context(), n, nil)
				return a.showNet(v, err)
			})
		})
	a.orAll(c, &all, "show every network namespace")
	return a.jsonFlag(c)
}

// netView is what net --json prints.
type netView struct {
	NetNS   uint32     `json:"netns"` // number, as in /proc/PID/ns/net
	Devices []netDev   `json:"devices"`
	Routes  []netRoute `json:"routes"`
	Sockets []netSock  `json:"sockets"`
}

type netDev struct {
	IfIndex   int32     `json:"ifindex"`
	Name      string    `json:"name"`
	Kind      string    `json:"kind"`
	Flags     []string  `json:"flags"`
	OperState string    `json:"operstate"`
	MTU       uint32    `json:"mtu"`
	MAC       string    `json:"mac"`
	Qdisc     string    `json:"qdisc"`
	Master    string    `json:"master"`
	Alias     string    `json:"alias"`
	Addrs     []netAddr `json:"addrs"`
}

type netAddr struct {
	Address   string `json:"address"`
	PrefixLen int    `json:"prefixlen"`
	Peer      string `json:"peer"`
	Broadcast string `json:"broadcast"`
	Scope     string `json:"scope"`
	Label     string `json:"label"`
}

type netRoute struct {
	Table    uint32   `json:"table"`
	Dst      string   `json:"dst"`
	Type     uint8    `json:"type"`     // RTN_*
	Protocol uint8    `json:"protocol"` // RTPROT_*
	Scope    uint8    `json:"scope"`    // RT_SCOPE_*
	Metric   uint32   `json:"metric"`
	Src      string   `json:"src"`
	Hops     []netHop `json:"hops"`
}

type netHop struct {
	Via string `json:"via"`
	Dev string `json:"dev"`
}

// showNets prints all namespaces.
func (a *app) showNets(ctx context.Context, k *kernel.Kernel) error {
	owners, err := socketOwners(ctx, k)
	if err != nil {
		return err
	}
	views := []*netView{}
	for n, err := range k.Nets() {
		if err != nil {
			return err
		}
		v, err := readNet(ctx, n, owners)
		if err != nil {
			return err
		}
		views = append(views, v)
	}
	if a.json {
		return a.printJSON(views)
	}
	for i, v := range views {
		if i > 0 {
			fmt.Fprintln(a.stdout)
		}
		if err := a.printNet(v); err != nil {
			return err
		}
	}
	return nil
}

// showNet prints one namespace, and then the error of reading the rest of it.
func (a *app) showNet(v *netView, err error) error {
	if v == nil {
		return err
	}
	if a.json {
		return errors.Join(a.printJSON(v), err)
	}
	return errors.Join(a.printNet(v), err)
}

// readNet reads a namespace. owners is nil if they are not known yet.
func readNet(ctx context.Context, n *kernel.Net, owners map[kernel.Addr][]netOwner) (*netView, error) {
	var err error
	if owners == nil {
		if owners, err = socketOwners(ctx, n.Kernel()); err != nil {
			return nil, err
		}
	}
	v := &netView{NetNS: n.Inum, Devices: []netDev{}, Routes: []netRoute{}, Sockets: []netSock{}}
	names := map[int32]string{}
	for d, err := range n.NetDevices() {
		if err != nil {
			return nil, err
		}
		dev, err := readNetDev(d)
		if err != nil {
			return nil, err
		}
		names[d.IfIndex] = d.Name
		v.Devices = append(v.Devices, dev)
	}
	for r, err := range n.Routes() {
		if err != nil {
			return nil, err
		}
		v.Routes = append(v.Routes, newNetRoute(&r, names))
	}
	v.Sockets, err = readSockets(ctx, n, owners, names)
	return v, err
}

func readNetDev(d *kernel.NetDevice) (netDev, error) {
	dev := netDev{
		IfIndex: d.IfIndex, Name: d.Name, Kind: d.Kind, Flags: deviceFlags(d.Flags()), OperState: d.OperStateName(),
		MTU: d.MTU, MAC: d.MAC.String(), Addrs: []netAddr{},
	}
	var err error
	if dev.Qdisc, err = d.Qdisc(); err != nil {
		return dev, err
	}
	if dev.Alias, err = d.Alias(); err != nil {
		return dev, err
	}
	master, err := d.Master()
	if err != nil {
		return dev, err
	}
	if master != nil {
		dev.Master = master.Name
	}
	for a, err := range d.Addrs() {
		if err != nil {
			return dev, err
		}
		addr := netAddr{Address: a.Prefix.Addr().String(), PrefixLen: a.Prefix.Bits(), Scope: a.ScopeName(), Label: a.Label}
		if a.Peer.IsValid() {
			addr.Peer = a.Peer.String()
		}
		if a.Broadcast.IsValid() {
			addr.Broadcast = a.Broadcast.String()
		}
		dev.Addrs = append(dev.Addrs, addr)
	}
	return dev, nil
}

func deviceFlags(f uint32) []string {
	names := []string{}
	for _, n := range []struct {
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
		{kernel.IffRunning, "RUNNING"},
		{kernel.IffLowerUp, "LOWER_UP"},
		{kernel.IffDormant, "DORMANT"},
	} {
		if f&n.bit != 0 {
			names = append(names, n.name)
		}
	}
	return names
}

func newNetRoute(r *kernel.Route, names map[int32]string) netRoute {
	out := netRoute{Table: r.Table, Dst: r.Dst.String(), Type: r.Type, Protocol: r.Protocol, Scope: r.Scope, Metric: r.Priority, Hops: []netHop{}}
	if r.PrefSrc.IsValid() {
		out.Src = r.PrefSrc.String()
	}
	for _, h := range r.Hops {
		hop := netHop{Dev: names[h.IfIndex]}
		if h.Gateway.IsValid() {
			hop.Via = h.Gateway.String()
		}
		out.Hops = append(out.Hops, hop)
	}
	return out
}

func (a *app) printNet(v *netView) error {
	fmt.Fprintf(a.stdout, "net:[%d]\n", v.NetNS)
	t := newTable(a.stdout, "DEVICE", "KIND", "STATE", "MTU", "MAC", "ADDRESSES")
	for _, d := range v.Devices {
		var addrs []string
		for _, a := range d.Addrs {
			addrs = append(addrs, fmt.Sprintf("%s/%d", a.Address, a.PrefixLen))
		}
		t.row(d.Name, d.Kind, d.OperState, d.MTU, d.MAC, strings.Join(addrs, " "))
	}
	if err := t.flush(); err != nil {
		return err
	}
	const main = 254
	t = newTable(a.stdout, "ROUTE", "VIA", "DEV", "SRC", "METRIC")
	for _, r := range v.Routes {
		if r.Table != main {
			continue
		}
		hop := netHop{}
		if len(r.Hops) > 0 {
			hop = r.Hops[0]
		}
		t.row(r.Dst, hop.Via, hop.Dev, r.Src, r.Metric)
	}
	if err := t.flush(); err != nil {
		return err
	}
	return a.printSockets(v.Sockets)
}
