package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestKernelObjects compares slab, zones and ipc with the guest's /proc.
func TestKernelObjects(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			vm := sharedGuest(t, suite)
			e := explorer{vm, "qmp:" + vm.QMPSocket()}
			t.Run("slab", e.slabs)
			t.Run("zones", e.zones)
			t.Run("ipc", e.ipc)
		})
	}
}

func (e explorer) slabs(t *testing.T) {
	all := ovmJSON[[]slabCache](t, "-g", e.guest, "slab")
	lines := strings.Split(e.ask(t, "cat", "/proc/slabinfo"), "\n")[2:]
	require.Len(t, all, len(lines))
	for i, c := range all {
		f := strings.Fields(lines[i])
		require.Equal(t, strings.Join(append(f[:1:1], f[3:6]...), " "), fmt.Sprint(c.Name, " ", c.Size, " ", c.ObjectsPerSlab, " ", 1<<c.Order))
	}
	require.Contains(t, e.text(t, "slab"), "task_struct")

	init := ovmJSON[addressed](t, "-g", e.guest, "obj", "task(1)")
	o := ovmJSON[slabObject](t, "-g", e.guest, "slab", "--of", (init.Address + 8).String())
	require.Equal(t, "task_struct", o.Cache)
	require.Equal(t, init.Address, o.Address)
	require.Equal(t, 8, o.Offset)
	require.Contains(t, e.text(t, "slab", "--of", init.Address.String()), "task_struct")
	requireFails(t, "is not part of a slab", "-g", e.guest, "slab", "--of", ovmJSON[[]symbol](t, "-g", e.guest, "sym", "init_task")[0].Address.String())
	requireUsage(t, "is no address", "-g", e.guest, "slab", "--of", "x")
}

// addressed is what the test needs of obj --json.
type addressed struct {
	Address hex `json:"address"`
}

func (e explorer) zones(t *testing.T) {
	m := ovmJSON[memory](t, "-g", e.guest, "zones")
	require.Contains(t, e.ask(t, "cat", "/proc/meminfo"), fmt.Sprintf("MemTotal: %14d kB\n", m.MemInfo.MemTotal>>10))
	require.NotZero(t, m.MemInfo.MemAvailable)
	require.NotZero(t, m.VMStat["pgfault"])
	info := strings.Join(strings.Fields(e.ask(t, "cat", "/proc/zoneinfo")), " ")
	var names []string
	for _, z := range m.Zones {
		names = append(names, z.Name)
		require.Contains(t, info, fmt.Sprintf("min %d low %d high %d", z.Min, z.Low, z.High))
		require.Contains(t, info, fmt.Sprintf("spanned %d present %d managed %d", z.Spanned, z.Present, z.Managed))
		require.Len(t, z.FreeBlocks, 11)
		require.Len(t, z.FreeByType["Movable"], 11)
	}
	require.Equal(t, []string{"DMA", "DMA32"}, names)
	require.Contains(t, e.text(t, "zones", "--stats"), "nr_free_pages")
}

func (e explorer) ipc(t *testing.T) {
	e.ask(t, "ipcmk", "-M", "123456", "-p", "0640")
	e.ask(t, "ipcmk", "-S", "3")
	e.ask(t, "ipcmk", "-Q")
	v := ovmJSON[ipcView](t, "-g", e.guest, "ipc", "1")
	rows := func(kind string, columns int) (all []string) {
		for line := range strings.Lines(e.ask(t, "cat", "/proc/sysvipc/"+kind)) {
			all = append(all, strings.Join(strings.Fields(line)[:columns], " "))
		}
		return all[1:]
	}
	var got [3][]string
	for _, s := range v.Shm {
		got[0] = append(got[0], fmt.Sprint(int32(s.Key), " ", s.ID, " ", strings.TrimLeft(s.Mode, "0"), " ", s.Size))
	}
	for _, s := range v.Semaphores {
		got[1] = append(got[1], fmt.Sprint(int32(s.Key), " ", s.ID, " ", strings.TrimLeft(s.Mode, "0"), " ", len(s.Values)))
	}
	for _, q := range v.Messages {
		got[2] = append(got[2], fmt.Sprint(int32(q.Key), " ", q.ID, " ", strings.TrimLeft(q.Mode, "0"), " ", q.CBytes, " ", q.QNum))
	}
	require.Equal(t, rows("shm", 4), got[0])
	require.Equal(t, rows("sem", 4), got[1])
	require.Equal(t, rows("msg", 5), got[2])
	require.Contains(t, fmt.Sprint(got[0]), " 640 123456")

	all := ovmJSON[[]ipcView](t, "-g", e.guest, "ipc", "--all")
	require.True(t, slices.ContainsFunc(all, func(o ipcView) bool { return o.IPCNS == v.IPCNS && len(o.Shm) == len(v.Shm) }))
	require.Contains(t, e.text(t, "ipc", "--all"), "123456 bytes")
	requireUsage(t, "--all takes no PID", "-g", e.guest, "ipc", "--all", "1")
}
