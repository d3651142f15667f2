package examples_test

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

// memReport is an element of what conmem -json prints.
type memReport struct {
	Engine, ID, Name, Cgroup string
	Hierarchy                int
	Memory                   *struct {
		Current           uint64
		Max               *uint64
		Anon, File, Shmem uint64
	}
	Processes int
	RSS       uint64
	Top       []struct {
		PID  int
		Comm string
		RSS  uint64
	}
}

const (
	dockerID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	podmanID = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210"
	// eater has 10 MiB of its own, 5 MiB in a file and 2 MiB shared.
	eater = `import mmap, time
own = bytearray(10 << 20)
with open("/root/" + "cached", "wb") as f: f.write(b"x" * (5 << 20))
shared = mmap.mmap(-1, 2 << 20); shared.write(b"x" * (2 << 20))
print("eaten", flush=True)
time.sleep(1e9)`
)

// testConmem makes two groups that are called like those of containers, one with a
// limit and a group in it, and compares what is said of them with their files.
func testConmem(t *testing.T, g *guest) {
	all, _ := runJSON[[]memReport](t, g, "conmem")
	require.Empty(t, all)
	g.sh(t, "echo +memory > /sys/fs/cgroup/cgroup.subtree_control")
	docker, podman := "docker-"+dockerID+".scope", "libpod-"+podmanID+".scope"
	t.Cleanup(func() {
		ctx, cancel := lastingContext(t)
		defer cancel()
		_, err := g.Exec(ctx, "rmdir", "/sys/fs/cgroup/"+docker+"/inner", "/sys/fs/cgroup/"+docker, "/sys/fs/cgroup/"+podman)
		require.NoError(t, err)
	})
	g.sh(t, "mkdir -p /sys/fs/cgroup/"+docker+"/inner")
	inner := g.startEater(t, "/sys/fs/cgroup/"+docker+"/inner")
	g.spawn(t, testvm.Process{Argv: []string{"sleep", "1000000"}, Cgroup: docker + "/inner"})
	g.spawn(t, testvm.Process{Argv: []string{"sleep", "1000000"}, Cgroup: podman})
	g.sh(t, "echo 100M > /sys/fs/cgroup/"+docker+"/memory.max")

	v2 := memoryFiles{"/sys/fs/cgroup", "memory.current", "memory.max", "anon", "file", "shmem"}
	all = g.compareMemory(t, v2, 2)
	require.Equal(t, "docker", all[0].Engine)
	require.Equal(t, dockerID, all[0].ID)
	require.Equal(t, "/"+docker, all[0].Cgroup)
	require.Equal(t, 2, all[0].Processes)
	require.Equal(t, inner, all[0].Top[0].PID)
	require.NotNil(t, all[0].Memory.Max)
	// Kernel 5.10 counts to the next 32 pages or so.
	require.Greater(t, all[0].Memory.Anon, uint64(9<<20))
	require.Greater(t, all[0].Memory.File, uint64(6<<20))
	require.Greater(t, all[0].Memory.Shmem, uint64(1<<20))
	require.Equal(t, "podman", all[1].Engine)
	require.Equal(t, podmanID, all[1].ID)
	require.Nil(t, all[1].Memory.Max)

	out, status := g.run(t, "conmem", "-top", "1")
	require.Zero(t, status)
	require.Contains(t, out, ": 2 containers\n")
	require.Regexp(t, `(?m)^0123456789ab +docker +2 +[\d.]+ MiB +100.0 MiB +[\d.]+ MiB +[\d.]+ MiB +[\d.]+ MiB +"/docker-0123456789`, out)
	require.Regexp(t, fmt.Sprintf(`(?m)^  %d "python3" +[\d.]+ MiB *$`, inner), out)
	require.Equal(t, 1, strings.Count(out, `"sleep"`), out)
}

// startEater starts a program that has memory of all kinds in the group that a
// directory is.
func (g *guest) startEater(t *testing.T, group string) (pid int) {
	t.Helper()
	pid = g.spawn(t, testvm.Process{
		Argv:   []string{"sh", "-ec", `echo $$ > "$1"/cgroup.procs; exec python3 -B -c "$0"`, eater, group},
		Stdout: "/root/eater.log",
	})
	err := testvm.Wait(t.Context(), "memory to be eaten", func() (bool, error) {
		return g.sh(t, "cat /root/eater.log 2>/dev/null || true") == "eaten", nil
	})
	require.NoError(t, err)
	g.sh(t, "rm /root/eater.log; sync")
	return pid
}

// memoryFiles says where the guest has what conmem says: the hierarchy, its files, and
// the lines of memory.stat.
type memoryFiles struct{ root, current, limit, anon, file, shmem string }

// compareMemory compares what conmem says with the files of the groups, until the guest
// has said the same before and after.
func (g *guest) compareMemory(t *testing.T, f memoryFiles, containers int) (all []memReport) {
	t.Helper()
	err := testvm.Wait(t.Context(), "memory to be at rest", func() (bool, error) {
		groups, _ := runJSON[[]memReport](t, g, "conmem")
		require.Len(t, groups, containers)
		before := g.memoryFacts(t, f, groups)
		all, _ = runJSON[[]memReport](t, g, "conmem")
		after := g.memoryFacts(t, f, groups)
		if !maps.Equal(before, after) {
			return false, nil
		}
		require.Equal(t, before, reportFacts(all))
		return true, nil
	})
	require.NoError(t, err)
	return all
}

// memoryFacts is what the guest says of the groups and processes that conmem has found.
func (g *guest) memoryFacts(t *testing.T, f memoryFiles, all []memReport) map[string]string {
	t.Helper()
	facts := map[string]string{}
	for _, c := range all {
		dir := f.root + c.Cgroup
		out := strings.Split(g.sh(t, fmt.Sprintf(`cd %s; cat %s %s; cat memory.stat | tr '\n' ' '; echo
for p in $(find . -name cgroup.procs -exec cat {} +); do cat /proc/$p/stat; done`, dir, f.current, f.limit)), "\n")
		facts[c.Cgroup+" current"] = out[0]
		facts[c.Cgroup+" max"] = out[1]
		if n, err := strconv.ParseUint(out[1], 10, 64); err == nil && n > 1<<62 { // cgroup v1
			facts[c.Cgroup+" max"] = "max"
		}
		stat := strings.Fields(out[2])
		for name, line := range map[string]string{"anon": f.anon, "file": f.file, "shmem": f.shmem} {
			i := slices.Index(stat, line)
			require.GreaterOrEqual(t, i, 0, line)
			facts[c.Cgroup+" "+name] = stat[i+1]
		}
		facts[c.Cgroup+" processes"] = strconv.Itoa(len(out) - 3)
		sum := uint64(0)
		for _, stat := range out[3:] {
			pid, _, _ := strings.Cut(stat, " ")
			pages, err := strconv.ParseUint(strings.Fields(stat[strings.LastIndexByte(stat, ')'):])[24-2], 10, 64)
			require.NoError(t, err)
			sum += pages * 4096
			facts[pid] = strconv.FormatUint(pages*4096, 10)
		}
		facts[c.Cgroup+" rss"] = strconv.FormatUint(sum, 10)
	}
	return facts
}

// reportFacts is what conmem says.
func reportFacts(all []memReport) map[string]string {
	facts := map[string]string{}
	for _, c := range all {
		n := func(name string, v uint64) { facts[c.Cgroup+" "+name] = strconv.FormatUint(v, 10) }
		facts[c.Cgroup+" max"] = "max"
		if m := c.Memory; m != nil {
			n("current", m.Current)
			n("anon", m.Anon)
			n("file", m.File)
			n("shmem", m.Shmem)
			if m.Max != nil {
				n("max", *m.Max)
			}
		}
		n("processes", uint64(c.Processes))
		n("rss", c.RSS)
		for _, p := range c.Top {
			facts[strconv.Itoa(p.PID)] = strconv.FormatUint(p.RSS, 10)
		}
	}
	return facts
}

// testConmemV1 is testConmem with the memory controller of cgroup v1.
func testConmemV1(t *testing.T, g *guest) {
	// A controller is free for v1 once v2 has let go of it.
	g.sh(t, `echo -memory > /sys/fs/cgroup/cgroup.subtree_control
mkdir -p /run/v1; for i in 1 2 3 4 5; do mount -t cgroup -o memory none /run/v1 && break; sleep 1; done`)
	group := "docker/" + dockerID
	g.sh(t, "mkdir -p /run/v1/"+group+"; echo 50M > /run/v1/"+group+"/memory.limit_in_bytes")
	g.startEater(t, "/run/v1/"+group)
	v1 := memoryFiles{"/run/v1", "memory.usage_in_bytes", "memory.limit_in_bytes", "total_rss", "total_cache", "total_shmem"}
	all := g.compareMemory(t, v1, 1)
	require.Equal(t, "/"+group, all[0].Cgroup)
	require.NotZero(t, all[0].Hierarchy)
	require.EqualValues(t, 50<<20, *all[0].Memory.Max)
}
