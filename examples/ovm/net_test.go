package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestNet compares the TCP listeners that net shows, with their owners, with what ss
// says in a busy guest, and looks into another network namespace.
func TestNet(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			vm := busyGuest(t, suite)
			guest := "qmp:" + vm.QMPSocket()
			v := ovmJSON[netView](t, "-g", guest, "net", "1")
			require.Equal(t, "lo", v.Devices[0].Name)
			require.Equal(t, "127.0.0.1", v.Devices[0].Addrs[0].Address)

			out, err := vm.Exec(t.Context(), "ss", "-Htlnp")
			require.NoError(t, err)
			var got, want []string
			for line := range strings.Lines(string(out)) {
				f := strings.Fields(line)
				for _, o := range strings.Split(f[5], "),(") {
					want = append(want, f[3]+" "+strings.Trim(strings.TrimPrefix(o, "users:"), "()"))
				}
			}
			for _, s := range v.Sockets {
				if s.Protocol != "tcp" || s.State != "LISTEN" {
					continue
				}
				for _, o := range s.Owners {
					got = append(got, fmt.Sprintf("%s %q,pid=%d,fd=%d", s.Local, o.Comm, o.PID, o.FD))
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			require.Equal(t, want, got)
			require.NotEmpty(t, got)

			all := ovmJSON[[]netView](t, "-g", guest, "net", "--all")
			require.GreaterOrEqual(t, len(all), 2)
			i := slices.IndexFunc(all, func(o netView) bool { return o.NetNS == v.NetNS })
			require.Zero(t, i, "the first namespace comes first")
			text := string(ovm(t, "-g", guest, "net", "1"))
			require.Contains(t, text, "0.0.0.0:6379")
			require.Contains(t, text, "redis-server(")

			for _, p := range ovmJSON[[]process](t, "-g", guest, "ps") {
				if p.Comm != "redis-server" {
					continue
				}
				fds := ovmJSON[[]descriptor](t, "-g", guest, "fds", fmt.Sprint(p.PID))
				require.True(t, slices.ContainsFunc(fds, func(d descriptor) bool {
					return d.Socket != nil && d.Socket.Local == "0.0.0.0:6379" && d.Socket.State == "LISTEN"
				}))
			}
			var stdout, stderr bytes.Buffer
			require.Equal(t, 2, run([]string{"-g", guest, "net", "--all", "1"}, &stdout, &stderr))
			require.Equal(t, "ovm: --all takes no PID (see ovm net --help)\n", stderr.String())
		})
	}
}
