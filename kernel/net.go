package kernel

import (
	"fmt"
	"iter"
)

// Net is a network namespace: its devices, addresses, routes and sockets.
type Net struct {
	k    *Kernel
	Addr Addr // of the struct net: its identity
	netFields
}

type netFields struct {
	Inum uint32 `k:"ns.inum"` // the number that /proc/PID/ns/net shows

	DevBase     Addr `k:"&dev_base_head"`
	UnixBuckets Addr `k:"unx.table.buckets,opt"` // one table for all namespaces before 6.0
	TCPHash     Addr `k:"ipv4.tcp_death_row.hashinfo"`
	UDPTable    Addr `k:"ipv4.udp_table,opt"` // one table for all namespaces before 6.2
	PacketSocks Addr `k:"&packet.sklist,opt"` // without CONFIG_PACKET there is none
	FIBTables   Addr `k:"ipv4.fib_table_hash"`
}

var netLayout = LayoutOf[netFields]("net")

// NetAt reads the struct net at a.
func (k *Kernel) NetAt(a Addr) (*Net, error) {
	n := &Net{k: k, Addr: a}
	if err := netLayout.LoadInto(k, a, &n.netFields); err != nil {
		return nil, err
	}
	return n, nil
}

// Net returns the network namespace of t. The error wraps ErrNoNS for a task that
// has exited.
func (t *Task) Net() (*Net, error) {
	if t.NSProxy == 0 {
		return nil, fmt.Errorf("pid %d (%s): %w", t.PID, t.Comm, ErrNoNS)
	}
	p, err := nsproxyLayout.Load(t.k, t.NSProxy)
	if err != nil {
		return nil, err
	}
	return t.k.NetAt(p.Net)
}

// maxNets is more network namespaces than a machine can hold.
const maxNets = 1 << 20

// Nets yields all network namespaces, that of the system first. One that cannot be
// read is yielded as an error and the walk goes on; a broken list ends it. Source:
// include/net/net_namespace.h:for_each_net.
func (k *Kernel) Nets() iter.Seq2[*Net, error] {
	return func(yield func(*Net, error) bool) {
		head, err := k.Symbol("net_namespace_list")
		if err != nil {
			yield(nil, err)
			return
		}
		off, err := k.offsetOf("net", "list")
		if err != nil {
			yield(nil, err)
			return
		}
		seen := 0
		for node, err := range k.List(head) {
			if seen++; err == nil && seen > maxNets {
				err = &PathError{Path: "net_namespace_list", Addr: head, Err: ErrLimit}
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(k.NetAt(node - Addr(off))) {
				return
			}
		}
	}
}

// Kernel returns the kernel that n was read from.
func (n *Net) Kernel() *Kernel { return n.k }
