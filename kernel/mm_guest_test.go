package kernel_test

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/kernel/paging"
)

//go:embed testdata/memdump.py
var memDumpProgram []byte

// memDump is what the guest says of its memory: see memdump.py.
type memDump struct {
	Slabinfo, Buddyinfo, Pagetypeinfo, Zoneinfo, Vmstat, Meminfo string

	Sysfs map[string]map[string]*string // by name of slab cache
}

// memView asks the guest for files of /proc, or "sysfs". The process that reads them
// is there, and waits, until after is called, which asks once more.
func (z *zoo) memView(t *testing.T, files ...string) (before *memDump, after func() *memDump) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), guestTime)
	t.Cleanup(cancel)
	require.NoError(t, z.vm.Put(ctx, "/root/memdump.py", bytes.NewReader(memDumpProgram), 0o644))
	_, err := z.vm.Exec(ctx, "rm", "-f", "/dev/shm/mem.out", "/dev/shm/mem.go")
	require.NoError(t, err)
	_, err = z.vm.StartProcess(ctx, testvm.Process{Argv: append([]string{"python3", "/root/memdump.py"}, files...)})
	require.NoError(t, err)
	line := func(n int) *memDump {
		var out bytes.Buffer
		err := testvm.Wait(ctx, "memdump.py", func() (bool, error) {
			out.Reset()
			_ = z.vm.Get(ctx, "/dev/shm/mem.out", &out) // may not be there yet
			return bytes.Count(out.Bytes(), []byte("\n")) > n, nil
		})
		require.NoError(t, err)
		// What came before the end of the line may have been read before it was written.
		out.Reset()
		require.NoError(t, z.vm.Get(ctx, "/dev/shm/mem.out", &out))
		d := new(memDump)
		require.NoError(t, json.Unmarshal(bytes.Split(out.Bytes(), []byte("\n"))[n], d))
		return d
	}
	return line(0), func() *memDump {
		require.NoError(t, z.vm.Put(ctx, "/dev/shm/mem.go", strings.NewReader(""), 0o644))
		return line(1)
	}
}

// memViews is memView of the same files every time.
func (z *zoo) memViews(t *testing.T, files ...string) func() (*memDump, func() *memDump) {
	return func() (*memDump, func() *memDump) { return z.memView(t, files...) }
}

// facts are values by name, in both of a guest's views and ours.
type facts map[string]string

// bracketed compares what is said between two views of the guest with these, round by
// round, until everything has been compared once, or often enough. A value that both
// views have is to be equal. Numbers that differ between them are to lie between them,
// if grows says that they only grow; else they are left out. It returns the names of those
// that were never compared.
func bracketed(t *testing.T, d differences, view func() (*memDump, func() *memDump), theirs func(*memDump) facts, ours func() (facts, error), grows func(name string) bool) (left []string) {
	t.Helper()
	open := map[string]bool{}
	wrong := map[string]string{} // as of the last round that compared it
	for round := range 8 {
		first, second := view()
		mine, err := ours()
		require.NoError(t, err)
		before, after := theirs(first), theirs(second())
		if round == 0 {
			for name := range before {
				open[name] = true
			}
			for name := range mine {
				if _, ok := before[name]; !ok {
					d.add("%s: %s, and the guest does not have it", name, mine[name])
				}
			}
		}
		for name := range open {
			a, c := before[name], after[name]
			b, ok := mine[name]
			switch {
			case a == c && (b == a || slabPages.MatchString(name) && near(a, b)), ok && grows(name) && between(a, b, c):
				delete(open, name)
				delete(wrong, name)
			case a == c || !ok || grows(name):
				wrong[name] = fmt.Sprintf("%s: got %q, the guest says %q, then %q", name, b, a, c)
			}
		}
		if len(open) == 0 || len(wrong) == 0 && round >= 2 {
			break
		}
	}
	for name := range open {
		if w := wrong[name]; w != "" {
			d.add("%s", w)
		} else {
			left = append(left, name)
		}
	}
	slices.Sort(left)
	return left
}

// slabPages are the counters in which a slab shows that the guest's agent needs to send
// what it has read, and that is gone when it reads again.
var slabPages = regexp.MustCompile(`^(node nr_slab_|meminfo (Slab|SReclaimable|SUnreclaim|MemAvailable)|vmstat nr_slab_)`)

// near says whether two numbers differ by some slabs of pages, or KiB of them, at most.
func near(a, b string) bool {
	const some = 128
	x, err1 := strconv.ParseInt(a, 10, 64)
	y, err2 := strconv.ParseInt(b, 10, 64)
	return err1 == nil && err2 == nil && x-y <= some && y-x <= some
}

func between(a, b, c string) bool {
	x, err1 := strconv.ParseUint(a, 10, 64)
	y, err2 := strconv.ParseUint(b, 10, 64)
	z, err3 := strconv.ParseUint(c, 10, 64)
	return err1 == nil && err2 == nil && err3 == nil && x <= y && y <= z
}

func never(string) bool { return false }

// checkSlabs compares all slab caches with /proc/slabinfo and /sys/kernel/slab. Names,
// sizes, alignment, order and flags are all compared; the numbers of objects and slabs
// of those caches that the guest does not use while it is looked at.
func checkSlabs(t *testing.T, z *zoo) {
	d := differences{}
	caches := map[string]*kernel.SlabCache{}
	ours := func() (facts, error) { return slabsOf(z.k, caches) }
	left := bracketed(t, d, z.memViews(t, "slabinfo"), slabFacts, ours, never)
	t.Logf("%d slab caches; not compared, as they never stood still: %v", len(caches), left)
	if len(caches) < 80 || len(left) > 30 {
		d.add("%d slab caches, %d values not compared", len(caches), len(left))
	}
	for _, name := range left {
		if strings.HasSuffix(name, "shape") || name == "names" {
			d.add("%s was not compared", name)
		}
	}
	attrs, done := z.memView(t, "sysfs")
	done()
	sysfs := attrs.Sysfs
	compared := 0
	for name, c := range caches {
		attrs := sysfs[name]
		if attrs == nil {
			continue
		}
		compared++
		compareSlabAttrs(d, c, attrs)
	}
	require.GreaterOrEqual(t, compared, 80, "slab caches in sysfs")
	d.report(t)
	checkSlabOf(t, z, caches)
}

// slabFacts are what slabinfo says.
func slabFacts(m *memDump) facts {
	f := facts{}
	var names []string
	for line := range strings.Lines(m.Slabinfo) {
		w := strings.Fields(line)
		if strings.HasPrefix(line, "slabinfo") || strings.HasPrefix(line, "#") {
			continue
		}
		names = append(names, w[0])
		f[w[0]+" shape"] = strings.Join(w[3:6], " ")
		f[w[0]+" active"], f[w[0]+" objects"], f[w[0]+" slabs"] = w[1], w[2], w[14]
	}
	f["names"] = strings.Join(names, " ")
	return f
}

// slabsOf says the same from outside, and adds the caches to a map.
func slabsOf(k *kernel.Kernel, caches map[string]*kernel.SlabCache) (facts, error) {
	f := facts{}
	var names []string
	for c, err := range k.SlabCaches() {
		if err != nil {
			return nil, err
		}
		i, err := c.Info()
		if err != nil {
			return nil, err
		}
		caches[c.Name] = c
		names = append(names, c.Name)
		f[c.Name+" shape"] = fmt.Sprint(c.Size, c.ObjectsPerSlab(), 1<<c.Order())
		f[c.Name+" active"], f[c.Name+" objects"], f[c.Name+" slabs"] = fmt.Sprint(i.Active), fmt.Sprint(i.Objects), fmt.Sprint(i.Slabs)
	}
	f["names"] = strings.Join(names, " ")
	return f, nil
}

func compareSlabAttrs(d differences, c *kernel.SlabCache, attrs map[string]*string) {
	flags := c.FlagNames()
	flag := func(name string) any {
		if slices.Contains(flags, name) {
			return 1
		}
		return 0
	}
	for attr, got := range map[string]any{
		"object_size": c.ObjectSize, "align": c.Align, "aliases": max(c.RefCount-1, 0),
		"reclaim_account": flag("SLAB_RECLAIM_ACCOUNT"), "hwcache_align": flag("SLAB_HWCACHE_ALIGN"),
		"destroy_by_rcu": flag("SLAB_TYPESAFE_BY_RCU"),
	} {
		if want := attrs[attr]; want != nil {
			d.equal(c.Name+" "+attr, got, strings.TrimSpace(*want))
		}
	}
}

// checkSlabOf looks for the slabs of objects of which it is known what they are.
func checkSlabOf(t *testing.T, z *zoo, caches map[string]*kernel.SlabCache) {
	tasks := 0
	for task, err := range z.k.Tasks() {
		require.NoError(t, err)
		o, err := z.k.SlabOf(task.Addr + 100)
		require.NoError(t, err)
		require.Equal(t, "task_struct", o.Cache.Name)
		require.Equal(t, task.Addr, o.Addr)
		require.Equal(t, 100, o.Offset)
		require.Equal(t, o.Slab.Add(int(o.Cache.RedLeftPad)+o.Index*int(o.Cache.Size)), o.Addr)
		require.LessOrEqual(t, o.Inuse, caches["task_struct"].ObjectsPerSlab())
		tasks++
	}
	require.Greater(t, tasks, 20)
	for name := range map[string]bool{"kmem_cache": true, "kmem_cache_node": true} {
		o, err := z.k.SlabOf(caches[name].Addr)
		require.NoError(t, err)
		require.Equal(t, "kmem_cache", o.Cache.Name)
		require.Equal(t, caches[name].Addr, o.Addr)
	}
	init, err := z.k.Symbol("init_task") // in the kernel image
	require.NoError(t, err)
	_, err = z.k.SlabOf(init)
	require.ErrorIs(t, err, kernel.ErrNotSlab)
}

// checkZones compares zones, free pages and all counters of memory management with
// /proc/zoneinfo, buddyinfo, pagetypeinfo, vmstat and meminfo. Sizes and watermarks are
// all compared; counters that only grow are to be between two views of the guest, others
// equal where these are.
func checkZones(t *testing.T, z *zoo) {
	d := differences{}
	ours := func() (facts, error) { return memoryOf(z.k) }
	theirs := func(m *memDump) facts { return memoryFacts(z.k, m) }
	views := z.memViews(t, "zoneinfo", "buddyinfo", "pagetypeinfo", "vmstat", "meminfo")
	left := bracketed(t, d, views, theirs, ours, func(name string) bool {
		return grown.MatchString(name[strings.LastIndex(name, " ")+1:])
	})
	all, err := ours()
	require.NoError(t, err)
	t.Logf("%d values; not compared, as they never stood still: %v", len(all), left)
	require.Greater(t, len(all), 220)
	require.Less(t, len(left), 65)
	d.report(t)
}

// memoryFacts is all that the guest says of its memory.
func memoryFacts(k *kernel.Kernel, m *memDump) facts {
	f := withoutNuma(k, zoneFacts(m))
	addFacts(f, "vmstat ", vmstatFacts(m))
	addFacts(f, "meminfo ", withoutSwap(k, meminfoFacts(m)))
	return f
}

// memoryOf is the same from outside.
func memoryOf(k *kernel.Kernel) (facts, error) {
	f, err := zonesOf(k)
	if err != nil {
		return nil, err
	}
	f = withoutNuma(k, f)
	stats, err := vmstatOf(k)
	if err != nil {
		return nil, err
	}
	addFacts(f, "vmstat ", stats)
	info, err := meminfoOf(k)
	addFacts(f, "meminfo ", withoutSwap(k, info))
	return f, err
}

func addFacts(f facts, prefix string, more facts) {
	for name, v := range more {
		f[prefix+name] = v
	}
}

// withoutNuma drops the zones' counters of NUMA before 5.14: zoneinfo added to them what
// CPUs had counted meanwhile, which vmstat did not.
func withoutNuma(k *kernel.Kernel, f facts) facts {
	_, err := k.Types().Struct("per_cpu_zonestat")
	maps.DeleteFunc(f, func(name, _ string) bool { return err != nil && strings.Contains(name, " numa_") })
	return f
}

// withoutSwap drops what arm64 kernels without symbols of variables do not tell of swap.
// Before 5.12 they do not tell what of Cached is swap cache either: the guest's numbers
// are added up then, as ours are.
func withoutSwap(k *kernel.Kernel, f facts) facts {
	if k.Arch() != paging.ARM64 || f == nil {
		return f
	}
	if _, err := k.Symbol("total_swap_pages"); err != nil {
		delete(f, "SwapTotal")
	}
	states, err := k.Types().Enum("node_stat_item")
	if err != nil {
		return f
	}
	_, uncounted := states.EnumValue("NR_SWAPCACHE")
	if _, err := k.Symbol("swapper_spaces"); err != nil && uncounted != nil {
		cached, _ := strconv.Atoi(f["Cached"])
		swap, _ := strconv.Atoi(f["SwapCached"])
		f["Cached"] = strconv.Itoa(cached + swap)
		delete(f, "SwapCached")
	}
	return f
}

// grown are counters of events.
var grown = regexp.MustCompile(`^(pg|ps|numa_|thp_|compact|kcompact|allocstall|slabs_|kswapd|pageoutrun|drop_|oom_|htlb|unevictable_|balloon|swap_ra|swp|cow|ksm|direct_map|workingset_(refault|activate|restore|nodereclaim)|nr_(dirtied|written|vmscan|throttled|foll_pin)|zsw|cma_)`)

func vmstatFacts(m *memDump) facts {
	f := facts{}
	for line := range strings.Lines(m.Vmstat) {
		w := strings.Fields(line)
		switch w[0] {
		case "nr_dirty_threshold", "nr_dirty_background_threshold": // computed when asked
		case "nr_unstable": // a number of the past, always 0
		default:
			f[w[0]] = w[1]
		}
	}
	return f
}

func vmstatOf(k *kernel.Kernel) (facts, error) {
	f := facts{}
	s, err := k.VMStat()
	for _, x := range s {
		f[x.Name] = fmt.Sprint(x.Value)
	}
	return f, err
}

// zoneFacts are what zoneinfo, buddyinfo and pagetypeinfo say.
func zoneFacts(m *memDump) facts {
	f := facts{}
	zone, of := "", "" // of: whom a counter is of
	for line := range strings.Lines(m.Zoneinfo) {
		w := strings.Fields(strings.NewReplacer(":", " ", "(", "", ")", "", ",", "").Replace(line))
		switch {
		case w[0] == "Node":
			zone = fmt.Sprintf("%s %s", w[1], w[3])
			of = zone
		case line == "  per-node stats\n":
			of = "node"
		case w[0] == "protection":
			f[zone+" "+w[0]] = strings.Join(w[1:], " ")
		case w[0] == "pages" && w[1] == "free": // nr_free_pages, below
			of = zone
		case w[0] == "pagesets":
			of = ""
		case w[0] == "boost" || w[0] == "promo" || w[0] == "cma": // not shown by all kernels
		case w[0] == "start_pfn":
			f[zone+" "+w[0]] = w[1]
		case len(w) == 2 && of != "":
			f[of+" "+w[0]] = w[1]
		}
	}
	for line := range strings.Lines(m.Buddyinfo) {
		w := strings.Fields(strings.ReplaceAll(line, ",", " "))
		f[fmt.Sprintf("%s %s buddy", w[1], w[3])] = strings.Join(w[4:], " ")
	}
	for line := range strings.Lines(m.Pagetypeinfo) {
		w := strings.Fields(strings.ReplaceAll(line, ",", " "))
		if len(w) > 6 && w[0] == "Node" && w[4] == "type" {
			f[fmt.Sprintf("%s %s type %s", w[1], w[3], w[5])] = strings.Join(w[6:], " ")
		}
	}
	return f
}

// zonesOf says the same from outside.
func zonesOf(k *kernel.Kernel) (facts, error) {
	f := facts{}
	types, err := k.MigrateTypes()
	if err != nil {
		return nil, err
	}
	for n, err := range k.MemNodes() {
		if err != nil {
			return nil, err
		}
		stats, err := n.Stats()
		if err != nil {
			return nil, err
		}
		for _, s := range stats {
			f["node "+s.Name] = fmt.Sprint(s.Value)
		}
		for z, err := range n.Zones() {
			if err != nil {
				return nil, err
			}
			name := fmt.Sprintf("%d %s ", n.ID, z.Name)
			for what, v := range map[string]uint64{
				"spanned": z.SpannedPages, "present": z.PresentPages, "managed": z.ManagedPages,
				"min": z.Watermark[kernel.WmarkMin] + z.Boost, "low": z.Watermark[kernel.WmarkLow] + z.Boost,
				"high": z.Watermark[kernel.WmarkHigh] + z.Boost,
			} {
				f[name+what] = fmt.Sprint(v)
			}
			f[name+"protection"] = strings.Trim(fmt.Sprint(z.LowmemReserve), "[]")
			if z.PresentPages == 0 {
				continue
			}
			f[name+"start_pfn"] = fmt.Sprint(z.StartPFN)
			if err := addZoneCounts(f, name, z, types); err != nil {
				return nil, err
			}
		}
	}
	return f, nil
}

func addZoneCounts(f facts, name string, z *kernel.Zone, types []string) error {
	stats, err := z.Stats()
	if err != nil {
		return err
	}
	for _, s := range stats {
		f[name+s.Name] = fmt.Sprint(s.Value)
	}
	free, err := z.Free()
	if err != nil {
		return err
	}
	f[name+"buddy"] = strings.Trim(fmt.Sprint(free), "[]")
	byType, err := z.FreeByType()
	if err != nil {
		return err
	}
	for i, n := range byType {
		f[name+"type "+types[i]] = strings.Trim(fmt.Sprint(n), "[]")
	}
	return nil
}

func meminfoFacts(m *memDump) facts {
	f := facts{}
	for line := range strings.Lines(m.Meminfo) {
		w := strings.Fields(strings.NewReplacer(":", " ", "(anon)", "Anon", "(file)", "File").Replace(line))
		if slices.Contains(meminfoNames, w[0]) {
			f[w[0]] = w[1]
		}
	}
	return f
}

var meminfoNames = []string{
	"MemTotal", "MemFree", "MemAvailable", "Buffers", "Cached", "SwapCached", "ActiveAnon", "InactiveAnon", "ActiveFile",
	"InactiveFile", "Unevictable", "Mlocked", "SwapTotal", "SwapFree", "Dirty", "Writeback", "AnonPages", "Mapped", "Shmem",
	"KReclaimable", "SReclaimable", "SUnreclaim", "Slab", "KernelStack", "PageTables",
}

func meminfoOf(k *kernel.Kernel) (facts, error) {
	m, err := k.MemInfo()
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		return nil, err
	}
	f := facts{}
	for name, v := range fields {
		if n, ok := v.(float64); ok {
			f[name] = fmt.Sprint(uint64(n) >> 10)
		}
	}
	for _, name := range m.Unknown {
		if k.Arch() == paging.X86_64 || name != "SwapTotal" && name != "SwapCached" {
			return nil, fmt.Errorf("%s is not known", name)
		}
	}
	return f, nil
}
