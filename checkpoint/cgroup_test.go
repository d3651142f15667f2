package checkpoint_test

import (
	"context"
	"path"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
)

const (
	cgroupFS = "/sys/fs/cgroup"
	jobGroup = "/ovm/job"
)

// settings of the job's group. What is not named stays at its default.
var settings = map[string]string{
	"memory.max": "67108864", "memory.high": "50331648", "memory.low": "1048576", "memory.swap.max": "0",
	"cpu.max": "40000 80000", "cpu.weight": "250", "pids.max": "33",
}

// makeGroup makes the job's group with the given settings.
func (m *machine) makeGroup(t *testing.T, set map[string]string) {
	t.Helper()
	m.must(t, "sh", "-c", "mkdir -p "+cgroupFS+jobGroup+" && cd "+cgroupFS+"/ovm && echo '+memory +cpu +pids' > cgroup.subtree_control")
	for name, value := range set {
		m.must(t, "sh", "-c", "echo "+value+" > "+path.Join(cgroupFS, jobGroup, name))
	}
	t.Cleanup(m.removeGroup)
}

// removeGroup removes the job's group, if it is there and empty.
func (m *machine) removeGroup() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, _ = m.Exec(ctx, "sh", "-c", "cd "+cgroupFS+" && for i in 1 2 3 4 5; do rmdir ."+jobGroup+" ovm && break; sleep 0.2; done")
}

func (m *machine) requireGroup(t *testing.T, pid kernel.PID, want map[string]string) {
	t.Helper()
	require.Equal(t, "0::"+jobGroup+"\n", m.must(t, "cat", "/proc/"+strconv.Itoa(int(pid))+"/cgroup"))
	for name, value := range want {
		require.Equal(t, value, strings.TrimSpace(m.must(t, "cat", path.Join(cgroupFS, jobGroup, name))), name)
	}
}

// A process comes back in its control group. CRIU makes a group that is missing,
// with its settings; one that is there keeps its own settings (--manage-cgroups=soft,
// CRIU's default), unless restore is told otherwise.
func TestCgroup(t *testing.T) {
	others := map[string]string{"memory.max": "134217728", "cpu.weight": "50"}
	for _, suite := range suites {
		for _, c := range []struct {
			name    string
			there   map[string]string // in the destination beforehand; nil: no such group
			options []string
			want    map[string]string
		}{
			{"missing", nil, nil, settings},
			{"there", others, nil, others},
			{"there, full", others, []string{"--manage-cgroups=full"}, settings},
		} {
			t.Run(suite+"/"+c.name, func(t *testing.T) {
				p := bootPair(t, suite)
				const log, images = "/root/cgroup.log", "/root/images-cgroup"
				p.src.must(t, "rm", "-f", log)
				p.src.makeGroup(t, settings)
				n, err := p.src.StartProcess(t.Context(), testvm.Process{
					Argv: []string{"/opt/ovm/counter", "20"}, Stdout: log, Dir: "/root", Cgroup: jobGroup,
				})
				require.NoError(t, err)
				pid := kernel.PID(n)
				t.Cleanup(func() { p.src.kill(pid) })
				p.src.requireGroup(t, pid, settings)
				p.src.waitLines(t, log, 3)
				if c.there != nil {
					p.dst.makeGroup(t, c.there)
				} else {
					p.dst.removeGroup()
					t.Cleanup(p.dst.removeGroup)
				}
				r, dir := p.src.save(t, pid, kill)
				require.Empty(t, r.Issues)
				require.Empty(t, r.RestoreOptions)
				p.hand(t, dir, images, log)
				saved := len(p.dst.lines(t, log))
				p.dst.restore(t, images, c.options...)
				t.Cleanup(func() { p.dst.kill(pid) })
				requireCounts(t, p.dst.waitLines(t, log, saved+5))
				p.dst.requireGroup(t, pid, c.want)
			})
		}
	}
}
