package kernel_test

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// checkHostileNet walks networks in memory that lies. Nothing may panic or run away.
func checkHostileNet(t *testing.T, z *netZoo) {
	mem, err := vmi.Open(t.Context(), z.ram, nil)
	require.NoError(t, err)
	defer mem.Close()
	const seed = 2
	l := &liar{Memory: struct{ vmi.Memory }{mem}, r: rand.New(rand.NewPCG(seed, seed))}
	k, err := kernel.Open(t.Context(), l, nil)
	require.NoError(t, err)
	calls, failed := 0, 0
	for _, one := range []int{20000, 2000, 200, 20} {
		for range 3 {
			for _, h := range z.holders {
				l.on = false
				task, err := k.Task(h.PID)
				require.NoError(t, err)
				n, err := task.Net()
				require.NoError(t, err)
				l.on, l.one = true, one
				tourNet(n, func(err error) bool {
					calls++
					if err != nil {
						failed++
					}
					return err == nil
				})
			}
		}
	}
	require.NotZero(t, failed)
	t.Logf("%d calls, %d failed", calls, failed)
}

// tourNet calls everything there is about a network namespace. Of each walk it takes
// a part: whatever memory says, a walk ends, but not soon if each step is a lie.
func tourNet(n *kernel.Net, try func(error) bool) {
	const enough = 500
	steps := 0
	for s, err := range n.Sockets() {
		if steps++; steps > enough {
			break
		}
		if try(err) {
			tourSocket(s, try)
		}
	}
	steps = 0
	for d, err := range n.NetDevices() {
		if steps++; steps > enough {
			break
		}
		if !try(err) {
			continue
		}
		_, err = d.Qdisc()
		try(err)
		_, err = d.Alias()
		try(err)
		_, err = d.Master()
		try(err)
		for _, err := range d.Addrs() {
			if steps++; !try(err) || steps > enough {
				break
			}
		}
	}
	steps = 0
	for _, err := range n.Routes() {
		if steps++; !try(err) || steps > enough {
			break
		}
	}
}

func tourSocket(s *kernel.Socket, try func(error) bool) {
	s.Inet()
	_, _, err := s.Queues()
	try(err)
	_, err = s.Options()
	try(err)
	_, err = s.RecvQueue(1 << 20)
	try(err)
	_, err = s.SendQueue(1 << 20)
	try(err)
	_, err = s.TCP()
	try(err)
	_, err = s.Remnant()
	try(err)
	_, err = s.UnixName()
	try(err)
	_, err = s.UnixPeer()
	try(err)
	_, err = s.Groups()
	try(err)
	_, err = s.Packet()
	try(err)
	steps := 0
	for _, err := range s.AcceptQueue() {
		if steps++; !try(err) || steps > 100 {
			break
		}
	}
}
