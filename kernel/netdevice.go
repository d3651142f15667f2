package kernel

import (
	"fmt"
	"iter"
	"net"
)

// NetDevice is a network device.
type NetDevice struct {
	k    *Kernel
	Addr Addr // of the struct net_device: its identity
	Name string
	Kind string // of the driver, as ip link's info_kind: "veth"; "" for hardware and lo
	MAC  net.HardwareAddr
	// Broadcast is the link-layer broadcast address.
	Broadcast net.HardwareAddr
	netDeviceFields
}

type netDeviceFields struct {
	RawName   [16]byte `k:"name"`
	IfIndex   int32    `k:"ifindex"`
	RawFlags  uint32   `k:"flags"`
	GFlags    uint16   `k:"gflags"`
	State     uint64   `k:"state"`
	OperState uint32   `k:"operstate"` // IF_OPER_*, see OperStateName
	LinkMode  uint8    `k:"link_mode"`
	MTU       uint32   `k:"mtu"`
	Type      uint16   `k:"type"` // ARPHRD_*
	Net       Addr     `k:"nd_net"`
	RegState  uint8    `k:"reg_state"`
	Group     int32    `k:"group"`
	Promisc   uint32   `k:"promiscuity"`
	TxQueues  uint32   `k:"num_tx_queues"`
	TxQLen    uint32   `k:"tx_queue_len"`

	AddrLen   uint8    `k:"addr_len"`
	DevAddr   Addr     `k:"dev_addr"`
	BcastAddr [32]byte `k:"broadcast"`
	LinkOps   Addr     `k:"rtnl_link_ops"`
	Ops       Addr     `k:"netdev_ops"`
	IfAlias   Addr     `k:"ifalias"`
	IPPtr     Addr     `k:"ip_ptr"`
	IP6Ptr    Addr     `k:"ip6_ptr"`
	RootQdisc Addr     `k:"qdisc"`
	Uppers    Addr     `k:"&adj_list.upper"`
}

type rtnlLinkOps struct {
	Kind Addr `k:"kind"`
}

type qdisc struct {
	Ops    Addr   `k:"ops"`
	Handle uint32 `k:"handle"`
}

type qdiscOps struct {
	ID [16]byte `k:"id"`
}

type netdevAdjacent struct {
	Dev    Addr `k:"dev"`
	Master bool `k:"master"`
}

var (
	netDeviceLayout      = LayoutOf[netDeviceFields]("net_device")
	rtnlLinkOpsLayout    = LayoutOf[rtnlLinkOps]("rtnl_link_ops")
	qdiscLayout          = LayoutOf[qdisc]("Qdisc")
	qdiscOpsLayout       = LayoutOf[qdiscOps]("Qdisc_ops")
	netdevAdjacentLayout = LayoutOf[netdevAdjacent]("netdev_adjacent")
)

// Flags of devices (include/uapi/linux/if.h).
const (
	IffUp        = 1 << 0
	IffBroadcast = 1 << 1
	IffLoopback  = 1 << 3
	IffPointo    = 1 << 4
	IffRunning   = 1 << 6
	IffNoARP     = 1 << 7
	IffPromisc   = 1 << 8
	IffAllMulti  = 1 << 9
	IffMulticast = 1 << 12
	IffLowerUp   = 1 << 16
	IffDormant   = 1 << 17
)

// Bits of net_device.state (enum netdev_state_t).
const (
	linkStateStart     = 1 << 0
	linkStateNoCarrier = 1 << 2
	linkStateDormant   = 1 << 4
)

const (
	ifOperUnknown = 0
	ifOperDown    = 2
	ifOperUp      = 6

	// maxNetDevices is more devices than one namespace gets to.
	maxNetDevices = 1 << 20
	maxMACLen     = 32  // MAX_ADDR_LEN
	maxIfAlias    = 256 // IFALIASZ
	maxUppers     = 1 << 16
)

var operStateNames = [...]string{"UNKNOWN", "NOTPRESENT", "DOWN", "LOWERLAYERDOWN", "TESTING", "DORMANT", "UP"}

// NetDevices yields the network devices of the namespace in order of registration.
// One that cannot be read is yielded as an error and the walk goes on; a broken
// list ends it. Source: include/linux/netdevice.h:for_each_netdev.
func (n *Net) NetDevices() iter.Seq2[*NetDevice, error] {
	return func(yield func(*NetDevice, error) bool) {
		off, err := n.k.offsetOf("net_device", "dev_list")
		if err != nil {
			yield(nil, err)
			return
		}
		seen := 0
		for node, err := range n.k.List(n.DevBase) {
			if seen++; err == nil && seen > maxNetDevices {
				err = &PathError{Path: "net.dev_base_head", Addr: n.Addr, Err: ErrLimit}
			}
			if err != nil {
				yield(nil, err)
				return
			}
			d, err := n.k.NetDeviceAt(node - Addr(off))
			if err == nil && d.Net != n.Addr {
				continue // has just moved to another namespace
			}
			if !yield(d, err) {
				return
			}
		}
	}
}

// NetDeviceAt reads the struct net_device at a. Errors: *PathError, ErrCorrupt.
func (k *Kernel) NetDeviceAt(a Addr) (*NetDevice, error) {
	d := &NetDevice{k: k, Addr: a}
	if err := netDeviceLayout.LoadInto(k, a, &d.netDeviceFields); err != nil {
		return nil, err
	}
	d.Name = cstring(d.RawName[:])
	if d.AddrLen > maxMACLen {
		return nil, corrupt(a, "net_device", "address of %d bytes", d.AddrLen)
	}
	d.Broadcast = append(net.HardwareAddr{}, d.BcastAddr[:d.AddrLen]...)
	d.MAC = make(net.HardwareAddr, d.AddrLen)
	if _, err := k.ReadAt(d.MAC, d.DevAddr); err != nil && d.AddrLen > 0 {
		return nil, &PathError{Path: "net_device.dev_addr", Addr: a, Err: err}
	}
	if d.LinkOps == 0 {
		return d, nil
	}
	ops, err := rtnlLinkOpsLayout.Load(k, d.LinkOps)
	if err != nil {
		return nil, err
	}
	if d.Kind, err = k.CString(ops.Kind, 32); err != nil {
		return nil, &PathError{Path: "rtnl_link_ops.kind", Addr: d.LinkOps, Err: err}
	}
	return d, nil
}

// Flags returns the flags that ip link shows, Iff*. Source:
// net/core/dev.c:dev_get_flags.
func (d *NetDevice) Flags() uint32 {
	f := d.RawFlags&^(IffPromisc|IffAllMulti|IffRunning|IffLowerUp|IffDormant) |
		uint32(d.GFlags)&(IffPromisc|IffAllMulti)
	if d.State&linkStateStart == 0 {
		return f
	}
	if d.OperState == ifOperUp || d.OperState == ifOperUnknown {
		f |= IffRunning
	}
	if d.State&linkStateNoCarrier == 0 {
		f |= IffLowerUp
	}
	if d.State&linkStateDormant != 0 {
		f |= IffDormant
	}
	return f
}

// OperStateName returns the state that ip link shows: "UP", "DOWN", "UNKNOWN".
// Source: net/core/rtnetlink.c:rtnl_fill_ifinfo.
func (d *NetDevice) OperStateName() string {
	s := d.OperState
	if d.State&linkStateStart == 0 {
		s = ifOperDown
	}
	if int(s) < len(operStateNames) {
		return operStateNames[s]
	}
	return fmt.Sprintf("state%d", s)
}

// Qdisc returns the name of the queueing discipline at the root of the device, ""
// if it has none.
func (d *NetDevice) Qdisc() (string, error) {
	if d.RootQdisc == 0 {
		return "", nil
	}
	q, err := qdiscLayout.Load(d.k, d.RootQdisc)
	if err != nil {
		return "", err
	}
	ops, err := qdiscOpsLayout.Load(d.k, q.Ops)
	return cstring(ops.ID[:]), err
}

// Alias returns the device's ifalias, "" if it has none.
func (d *NetDevice) Alias() (string, error) {
	if d.IfAlias == 0 {
		return "", nil
	}
	off, err := d.k.offsetOf("dev_ifalias", "ifalias")
	if err != nil {
		return "", err
	}
	return d.k.CString(d.IfAlias.Add(off), maxIfAlias)
}

// Master returns the device that d is a port of, such as a bridge, nil if there is
// none. Source: net/core/dev.c:netdev_master_upper_dev_get.
func (d *NetDevice) Master() (*NetDevice, error) {
	off, err := d.k.offsetOf("netdev_adjacent", "list")
	if err != nil {
		return nil, err
	}
	seen := 0
	for node, err := range d.k.List(d.Uppers) {
		if seen++; err == nil && seen > maxUppers {
			err = &PathError{Path: "net_device.adj_list", Addr: d.Addr, Err: ErrLimit}
		}
		if err != nil {
			return nil, err
		}
		a, err := netdevAdjacentLayout.Load(d.k, node-Addr(off))
		if err != nil {
			return nil, err
		}
		if a.Master {
			return d.k.NetDeviceAt(a.Dev)
		}
	}
	return nil, nil
}
