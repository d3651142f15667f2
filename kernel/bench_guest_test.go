package kernel_test

import (
	"context"
	"flag"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/vmi"
)

var ramFile = flag.String("ram", "", "RAM file of a guest for benchmarks, in place of a guest of their own")

// benchRAM returns the file that is the RAM of a busy guest with 1 GiB.
func benchRAM(b testing.TB) string {
	if *ramFile != "" {
		return *ramFile
	}
	vm := testvm.StartShared(b, testvm.Config{Suite: "trixie", Memory: 1 << 30, KernelArgs: "ovm.role=bench"})
	out, err := vm.Exec(context.Background(), "sh", "-c", "test -e /run/busy || { /opt/ovm/busy.sh && touch /run/busy; }")
	require.NoError(b, err, "%s", out)
	return vm.RAMPath()
}

func benchKernel(b *testing.B) *kernel.Kernel {
	mem, err := vmi.Open(b.Context(), benchRAM(b), nil)
	require.NoError(b, err)
	b.Cleanup(func() { _ = mem.Close() })
	k, err := kernel.Open(b.Context(), mem, nil)
	require.NoError(b, err)
	return k
}

// noLow is memory without its first MiB, as some dumps lack it: the kernel has to be
// found without the boot trampoline.
type noLow struct {
	vmi.Memory
	vmi.Viewer
}

func (m noLow) Ranges() []vmi.Range {
	var kept []vmi.Range
	for _, r := range m.Memory.Ranges() {
		if r.Start = max(r.Start, 1<<20); r.Start < r.End {
			kept = append(kept, r)
		}
	}
	return kept
}

func (m noLow) ReadPhys(p []byte, a vmi.Phys) (int, error) {
	if a < 1<<20 {
		return 0, &vmi.FaultError{Addr: a, Len: len(p)}
	}
	return m.Memory.ReadPhys(p, a)
}

// BenchmarkOpen opens the guest from the page cache, with nothing known about it.
func BenchmarkOpen(b *testing.B) {
	path := benchRAM(b)
	open := func(b *testing.B, cut func(vmi.Memory) vmi.Memory) {
		for b.Loop() {
			mem, err := vmi.Open(b.Context(), path, nil)
			require.NoError(b, err)
			_, err = kernel.Open(b.Context(), cut(mem), nil)
			require.NoError(b, err)
			require.NoError(b, mem.Close())
		}
		b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/open")
	}
	b.Run("whole", func(b *testing.B) { open(b, func(m vmi.Memory) vmi.Memory { return m }) })
	b.Run("lowless", func(b *testing.B) {
		open(b, func(m vmi.Memory) vmi.Memory { return noLow{m, m.(vmi.Viewer)} })
	})
}

// BenchmarkTasks lists all processes.
func BenchmarkTasks(b *testing.B) {
	k := benchKernel(b)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		for _, err := range k.Tasks() {
			if err != nil { // not by require, which takes as long as a task does
				b.Fatal(err)
			}
			n++
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/task")
}

// BenchmarkList walks the list of all processes without reading them.
func BenchmarkList(b *testing.B) {
	k := benchKernel(b)
	init, err := k.Global("init_task", "task_struct")
	require.NoError(b, err)
	head, err := init.Field("tasks")
	require.NoError(b, err)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		for _, err := range k.List(head.Addr()) {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/entry")
}

// BenchmarkTranslate translates random addresses of a process, which walk its page
// tables.
func BenchmarkTranslate(b *testing.B) {
	k := benchKernel(b)
	var tables paging.Tables
	var pages []uint64
	for t, err := range k.Tasks() {
		require.NoError(b, err)
		mm, err := t.MM()
		if err != nil {
			continue
		}
		var mine []uint64
		_ = mm.Tables().Walk(0, 1<<47, func(e paging.Entry) bool {
			if e.Present() {
				mine = append(mine, e.VA)
			}
			return len(mine) < 1<<20
		})
		if len(mine) > len(pages) {
			tables, pages = mm.Tables(), mine
		}
	}
	require.NotEmpty(b, pages)
	rand.Shuffle(len(pages), func(i, j int) { pages[i], pages[j] = pages[j], pages[i] })
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, _, err := tables.Translate(pages[i%len(pages)]); err != nil {
			b.Fatal(err)
		}
		i++
	}
}
