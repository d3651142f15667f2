package kernel_test

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
)

var (
	//go:embed testdata/netzoo.py
	netZooProgram []byte
	//go:embed testdata/netdump.py
	netDumpProgram []byte
)

// netZoo is a guest that holds sockets of every kind in two network namespaces.
type netZoo struct {
	vm      *testvm.VM
	k       *kernel.Kernel
	ram     string
	holders []netHolder // in the first namespace, in another
}

// netHolder is what a process of netzoo.py says of its sockets.
type netHolder struct {
	PID     kernel.PID
	Sockets map[string]*heldSocket
}

type heldSocket struct {
	Ino     uint64
	FD      int
	Recv    [][]byte
	Send    []byte
	Options map[string]any // numbers, lists of them, strings
}

// netView is what the guest says of a namespace: see netdump.py.
type netView struct {
	Inum  string
	Proc  map[string]string
	Unix  string
	Addr  string
	Route string
}

// netGuests are the guests that the tests of sockets and devices run on.
var netGuests = []testvm.Config{
	{Kernel: "bullseye-cloud"}, {Suite: "bookworm"}, {Suite: "trixie"}, {Kernel: "sid-generic"},
}

// netChecks are all that is compared of a network namespace.
var netChecks = []struct {
	name string
	test func(t *testing.T, z *netZoo)
}{
	{"namespaces", checkNets},
	{"tables", checkSocketTables},
	{"options", checkSocketOptions},
	{"queues", checkSocketQueues},
	{"peers", checkSocketPeers},
	{"TCP", checkTCPInfo},
	{"devices", checkNetDevices},
	{"routes", checkRoutes},
	{"hostile memory", checkHostileNet},
}

// TestNetwork compares the sockets, devices and routes of two network namespaces with
// what the guest says of them.
func TestNetwork(t *testing.T) {
	for _, c := range netGuests {
		t.Run(c.Kernel+c.Suite, func(t *testing.T) {
			c.KernelArgs = "ovm.role=net"
			z := startNetZoo(t, testvm.StartShared(t, c))
			t.Log(z.k.Release())
			for _, check := range netChecks {
				t.Run(check.name, func(t *testing.T) { check.test(t, z) })
			}
			z.vm.CheckKernel(t)
		})
	}
}

// network is a row of the matrix: what is compared of networks.
func network(names ...string) func(t *testing.T, z *zoo) {
	return func(t *testing.T, z *zoo) {
		n := startNetZoo(t, z.vm)
		for _, check := range netChecks {
			if slices.Contains(names, check.name) {
				check.test(t, n)
			}
		}
	}
}

func startNetZoo(t *testing.T, vm *testvm.VM) *netZoo {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if _, err := vm.Exec(ctx, "test", "-e", "/root/netzoo.py"); err != nil { // the first test with this guest
		for path, b := range map[string][]byte{"/root/netzoo.py": netZooProgram, "/root/netdump.py": netDumpProgram} {
			require.NoError(t, vm.Put(ctx, path, bytes.NewReader(b), 0o644))
		}
		_, err := vm.StartProcess(ctx, testvm.Process{Argv: []string{"python3", "/root/netzoo.py"}, Stdout: "/root/netzoo.log", Dir: "/root"})
		require.NoError(t, err)
	}
	z := &netZoo{vm: vm, ram: vm.RAMTarget(), holders: make([]netHolder, 2)}
	for i := range z.holders {
		var out []byte
		err := testvm.Wait(ctx, "netzoo.py", func() (ok bool, err error) {
			out, err = vm.Exec(ctx, "sh", "-c", fmt.Sprintf("cat /root/netzoo.log >&2; [ ! -s /root/netzoo.log ] || exit 1; cat /root/netzoo.%d.json 2>/dev/null || true", i))
			return len(out) > 0, err
		})
		require.NoError(t, err, "netzoo.py")
		z.holders[i] = parseHolder(t, out)
	}
	mem, err := vmi.Open(ctx, z.ram, nil)
	require.NoError(t, err)
	t.Cleanup(func() { mem.Close() })
	z.k, err = kernel.Open(ctx, mem, nil)
	require.NoError(t, err)
	return z
}

func parseHolder(t *testing.T, b []byte) (h netHolder) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	require.NoError(t, d.Decode(&h))
	return h
}

// views asks the guest about the namespaces of both holders.
func (z *netZoo) views(t *testing.T) []netView {
	t.Helper()
	argv := []string{"python3", "/root/netdump.py"}
	for _, h := range z.holders {
		argv = append(argv, fmt.Sprint(h.PID))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := z.vm.Exec(ctx, argv...)
	require.NoError(t, err)
	return z.parseViews(t, out)
}

func (z *netZoo) parseViews(t *testing.T, out []byte) []netView {
	var all map[string]netView
	require.NoError(t, json.Unmarshal(out, &all))
	views := make([]netView, len(z.holders))
	for i, h := range z.holders {
		views[i] = all[fmt.Sprint(h.PID)]
	}
	return views
}

func (z *netZoo) net(t *testing.T, holder int) *kernel.Net {
	t.Helper()
	task, err := z.k.Task(z.holders[holder].PID)
	require.NoError(t, err)
	n, err := task.Net()
	require.NoError(t, err)
	return n
}

// agree compares both namespaces up to five times, as the guest goes on meanwhile:
// what differs in the same way every time fails.
func (z *netZoo) agree(t *testing.T, compare func(d differences, n *kernel.Net, v netView)) {
	t.Helper()
	var same differences
	for round := range 5 {
		d := differences{}
		for i, v := range z.views(t) {
			n := z.net(t, i)
			require.Equal(t, v.Inum, fmt.Sprintf("net:[%d]", n.Inum))
			compare(d, n, v)
		}
		maps.DeleteFunc(same, func(what, _ string) bool { return d[what] == "" })
		if round == 0 {
			same = d
		}
		if len(same) == 0 {
			return
		}
	}
	same.report(t)
}

// checkSocketTables compares all sockets of two namespaces, line by line and column
// by column, with the guest's own /proc/net.
func checkSocketTables(t *testing.T, z *netZoo) {
	kinds := map[string]int{}
	z.agree(t, func(d differences, n *kernel.Net, v netView) {
		got := map[string][]string{}
		for s, err := range n.Sockets() {
			if err != nil {
				d.add("%v", err)
				continue
			}
			file, line, err := procNetLine(s)
			if err != nil {
				d.add("%s: %v", file, err)
			}
			got[file] = append(got[file], line)
		}
		for file, text := range v.Proc {
			columns := procNetColumns[strings.TrimSuffix(file, "6")]
			if columns == nil {
				continue
			}
			var want []string
			for line := range strings.Lines(text) {
				if w := columns(strings.Fields(line)); w != "" {
					want = append(want, w)
				}
			}
			kinds[file] = max(kinds[file], len(want))
			slices.Sort(want)
			slices.Sort(got[file])
			for _, l := range missing(want, got[file]) {
				d.add("%s of %d: only the guest has %s", file, n.Inum, l)
			}
			for _, l := range missing(got[file], want) {
				d.add("%s of %d: only we have   %s", file, n.Inum, l)
			}
		}
	})
	for _, file := range []string{"unix", "tcp", "tcp6", "udp", "udp6", "raw", "raw6", "icmp", "icmp6", "netlink", "packet"} {
		require.NotZero(t, kinds[file], "sockets in %s", file)
	}
	t.Log(z.k.Release(), kinds)
}

// missing returns the lines of a that b has not, both sorted.
func missing(a, b []string) (m []string) {
	n := map[string]int{}
	for _, l := range b {
		n[l]++
	}
	for _, l := range a {
		if n[l]--; n[l] < 0 {
			m = append(m, l)
		}
	}
	return m
}

// procNetColumns picks from a line of a file of /proc/net what procNetLine has; ""
// for the heading. Left out are hashed addresses and counters that run.
var procNetColumns = map[string]func(f []string) string{
	"tcp": func(f []string) string {
		if f[0] == "sl" {
			return ""
		}
		timer, _, _ := strings.Cut(f[5], ":")
		keep := append(slices.Clone(f[1:5]), timer, f[6], f[7], f[8], f[9], f[10])
		if len(f) > 12 {
			quick := fmt.Sprint(atoi(f[14]) >> 1)
			keep = append(keep, f[12], f[13], quick, f[15], f[16])
		}
		return strings.Join(keep, " ")
	},
	"udp": datagramColumns, "udplite": datagramColumns, "raw": datagramColumns, "icmp": datagramColumns,
	"unix": func(f []string) string {
		if f[0] == "Num" {
			return ""
		}
		return strings.Join(append(f[3:6:6], f[6:]...), " ")
	},
	"netlink": func(f []string) string {
		if f[0] == "sk" {
			return ""
		}
		return strings.Join([]string{f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[9]}, " ")
	},
	"packet": func(f []string) string {
		if f[0] == "sk" {
			return ""
		}
		return strings.Join(f[1:], " ")
	},
}

func datagramColumns(f []string) string {
	if f[0] == "sl" {
		return ""
	}
	return strings.Join([]string{f[1], f[2], f[3], f[4], f[7], f[9], f[10]}, " ")
}

func atoi(s string) (n int) {
	fmt.Sscan(s, &n)
	return n
}

// procAddr writes an address and a port as /proc/net does: words of the machine.
func procAddr(a netip.AddrPort) string {
	b := a.Addr().AsSlice()
	var s strings.Builder
	for i := 0; i < len(b); i += 4 {
		fmt.Fprintf(&s, "%02X%02X%02X%02X", b[i+3], b[i+2], b[i+1], b[i])
	}
	return fmt.Sprintf("%s:%04X", &s, a.Port())
}

// checkNets finds both namespaces in the list of all.
func checkNets(t *testing.T, z *netZoo) {
	found := map[kernel.Addr]uint32{}
	for n, err := range z.k.Nets() {
		require.NoError(t, err)
		found[n.Addr] = n.Inum
	}
	for i := range z.holders {
		n := z.net(t, i)
		require.Equal(t, n.Inum, found[n.Addr])
	}
	require.Len(t, slices.Compact(slices.Sorted(maps.Values(found))), len(found))
}
