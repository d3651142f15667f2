package qemu

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/bareqemu"
	"github.com/ovmigrate/ovmigrate/vmi/qmp"
)

const mib, gib = 1 << 20, 1 << 30

var machines = []struct {
	name    string
	args    []string
	ranges  []vmi.Range
	backing string
	view    bool
	pid     string // "" works by pid, too; else what the refusal says
}{
	{
		name: "shared file", view: true, backing: "shared file",
		args:   []string{"-M", "q35,memory-backend=ram", "-m", "1G", "-object", "memory-backend-file,id=ram,size=1G,share=on,mem-path=DIR/ram"},
		ranges: []vmi.Range{{Start: 0, End: gib}},
	},
	{
		name: "shared file with PCI hole", view: true, backing: "shared file",
		args:   []string{"-M", "pc,memory-backend=ram", "-m", "5G", "-object", "memory-backend-file,id=ram,size=5G,share=on,mem-path=DIR/ram"},
		ranges: []vmi.Range{{Start: 0, End: 3 * gib}, {Start: 4 * gib, End: 6 * gib}},
	},
	{
		name: "memfd", view: true, backing: "memfd",
		args:   []string{"-M", "q35,memory-backend=ram", "-m", "4G", "-object", `{"qom-type":"memory-backend-memfd","id":"ram","size":4294967296,"share":true}`},
		ranges: []vmi.Range{{Start: 0, End: 2 * gib}, {Start: 4 * gib, End: 6 * gib}},
	},
	{
		name: "anonymous", backing: "memory of process",
		args:   []string{"-M", "q35", "-m", "4G"},
		ranges: []vmi.Range{{Start: 0, End: 2 * gib}, {Start: 4 * gib, End: 6 * gib}},
	},
	{
		name: "small with VGA", backing: "memory of process",
		args:   []string{"-M", "pc", "-m", "256", "-device", "VGA"},
		ranges: []vmi.Range{{Start: 0, End: 256 * mib}},
	},
	{
		name: "odd hole", backing: "memory of process",
		args:   []string{"-M", "q35,max-ram-below-4g=1G", "-m", "size=2560M"},
		ranges: []vmi.Range{{Start: 0, End: gib}, {Start: 4 * gib, End: 4*gib + 1536*mib}},
	},
	{
		name: "private file", backing: "memory of process",
		args:   []string{"-M", "q35,memory-backend=ram", "-m", "512M", "-object", "memory-backend-file,id=ram,size=512M,share=off,mem-path=DIR/ram"},
		ranges: []vmi.Range{{Start: 0, End: 512 * mib}},
	},
	{
		name: "arm64", view: true, backing: "shared file",
		args:   []string{"-M", "virt,memory-backend=ram", "-cpu", "max", "-m", "5G", "-object", "memory-backend-file,id=ram,size=5G,share=on,mem-path=DIR/ram"},
		ranges: []vmi.Range{{Start: gib, End: 6 * gib}},
	},
	{
		name: "arm64 anonymous", backing: "memory of process",
		args:   []string{"-M", "virt", "-cpu", "max", "-m", "256"},
		ranges: []vmi.Range{{Start: gib, End: gib + 256*mib}},
	},
	{
		name: "NUMA", view: true, backing: "shared file",
		args: []string{
			"-M", "q35", "-m", "3G", "-smp", "2",
			"-object", "memory-backend-file,id=n0,size=1G,share=on,mem-path=DIR/n0", "-object", "memory-backend-memfd,id=n1,size=2G,share=on",
			"-numa", "node,nodeid=0,cpus=0,memdev=n0", "-numa", "node,nodeid=1,cpus=1,memdev=n1",
		},
		ranges: []vmi.Range{{Start: 0, End: 2 * gib}, {Start: 4 * gib, End: 5 * gib}},
		pid:    "NUMA",
	},
	{
		name: "DIMM", backing: "memory of process",
		args: []string{
			"-M", "q35", "-m", "512M,slots=2,maxmem=4G",
			"-object", "memory-backend-ram,id=d0,size=256M", "-device", "pc-dimm,memdev=d0",
		},
		ranges: []vmi.Range{{Start: 0, End: 512 * mib}, {Start: 4 * gib, End: 4*gib + 256*mib}},
		pid:    "memory devices",
	},
}

func TestMachines(t *testing.T) {
	for _, tt := range machines {
		t.Run(tt.name, func(t *testing.T) {
			// QEMU itself puts content at the ends of every stretch of RAM.
			args := tt.args
			type spot struct {
				addr vmi.Phys
				data []byte
			}
			var spots []spot
			for i, r := range tt.ranges {
				for j, addr := range []vmi.Phys{r.Start + 2*mib + 5, r.End - 8192} {
					path, data := bareqemu.Content(t, 8192, uint64(10*i+j))
					spots = append(spots, spot{addr, data})
					args = append(args[:len(args):len(args)], bareqemu.Load(path, uint64(addr))...)
				}
			}
			b := bareqemu.Start(t, args...)
			check := func(m vmi.Image) {
				require.Equal(t, tt.ranges, m.Ranges())
				for _, s := range spots {
					got := make([]byte, len(s.data))
					_, err := m.ReadPhys(got, s.addr)
					require.NoError(t, err)
					require.True(t, bytes.Equal(s.data, got), "content at %#x", s.addr)
					view := m.(vmi.Viewer).View(s.addr, len(s.data))
					require.Equal(t, tt.view, view != nil)
					require.True(t, view == nil || bytes.Equal(view, s.data))
					n, err := m.ReadPhys(make([]byte, 8), tt.ranges[len(tt.ranges)-1].End-4)
					require.Equal(t, 4, n)
					require.Error(t, err)
				}
				require.True(t, covers(m.(vmi.Sparse).Data(), spots[len(spots)-1].addr))
				if tt.name != "private file" { // what QEMU has not touched there is the file's, not zeros
					require.Less(t, total(m.(vmi.Sparse).Data()), total(tt.ranges))
				}
				require.Contains(t, strings.Join(m.(interface{ Backing() []string }).Backing(), " "), tt.backing)
			}
			m, err := vmi.Open(t.Context(), "qmp:"+b.QMP, &vmi.Options{Writable: true})
			require.NoError(t, err)
			defer m.Close()
			check(m)
			require.Equal(t, b.PID, m.(*WritableGuest).PID())
			compareWrites(t, b, m)

			p, err := vmi.Open(t.Context(), fmt.Sprintf("pid:%d", b.PID), &vmi.Options{Writable: true})
			if tt.pid != "" {
				require.ErrorIs(t, err, ErrLayout)
				require.ErrorContains(t, err, tt.pid)
				return
			}
			require.NoError(t, err)
			defer p.Close()
			check(p)
			writeBoth(t, p, m)
		})
	}
}

func covers(rs []vmi.Range, a vmi.Phys) bool {
	for _, r := range rs {
		if r.Contains(a, 1) {
			return true
		}
	}
	return false
}

func total(rs []vmi.Range) (n uint64) {
	for _, r := range rs {
		n += r.Len()
	}
	return n
}

// compareWrites writes through m and reads back through QEMU's monitor.
func compareWrites(t *testing.T, b *bareqemu.QEMU, m vmi.Image) {
	g := m.(*WritableGuest)
	for i, r := range m.Ranges() {
		for _, addr := range []vmi.Phys{r.Start + 64*mib + 1, r.End - 20001, r.Start + 80*mib} {
			data := bytes.Repeat([]byte{byte(addr>>20) + 1, byte(i), 0xa5}, 1500)
			_, err := g.WritePhys(data, addr)
			require.NoError(t, err)
			require.True(t, bytes.Equal(data, pmemsave(t, b, g.QMP(), addr, len(data))), "written at %#x", addr)
			_, err = g.WritePhys([]byte{1, 2, 3, 4, 5, 6, 7, 8}, addr&^7)
			require.NoError(t, err)
			require.Equal(t, []byte{1, 2, 3, 4, 5, 6, 7, 8}, pmemsave(t, b, g.QMP(), addr&^7, 8))
		}
	}
}

func pmemsave(t *testing.T, b *bareqemu.QEMU, c *qmp.Client, addr vmi.Phys, n int) []byte {
	out := filepath.Join(b.Dir, "pmem")
	require.NoError(t, c.Execute(t.Context(), "pmemsave", map[string]any{"val": uint64(addr), "size": n, "filename": out}, nil))
	data, err := os.ReadFile(out)
	require.NoError(t, err)
	return data
}

// writeBoth writes through one guest and reads through the other.
func writeBoth(t *testing.T, w, r vmi.Image) {
	for _, x := range w.Ranges() {
		want := []byte(x.String())
		_, err := w.(vmi.Writer).WritePhys(want, x.End-100)
		require.NoError(t, err)
		got := make([]byte, len(want))
		_, err = r.ReadPhys(got, x.End-100)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

func TestReadOnly(t *testing.T) {
	b := bareqemu.Start(t, "-M", "q35", "-m", "128M")
	for _, s := range []string{"qmp:" + b.QMP, fmt.Sprintf("pid:%d", b.PID)} {
		m, err := vmi.Open(t.Context(), s, nil)
		require.NoError(t, err)
		_, isWriter := m.(vmi.Writer)
		require.False(t, isWriter)
		require.NoError(t, m.Close())
		_, err = m.ReadPhys(make([]byte, 8), 0)
		require.Error(t, err, "closed")
	}
	_, err := vmi.Open(t.Context(), b.QMP, nil)
	require.ErrorContains(t, err, "write qmp:")
}

func TestControl(t *testing.T) {
	b := bareqemu.Start(t, "-M", "q35", "-m", "128M", "-smp", "3")
	ctx := t.Context()
	m, err := vmi.Open(ctx, "qmp:"+b.QMP, nil)
	require.NoError(t, err)
	defer m.Close()
	g := m.(*Guest)
	running := func() bool {
		s, err := g.Status(ctx)
		require.NoError(t, err)
		return s.Running
	}
	cpus, err := g.CPUs(ctx)
	require.NoError(t, err)
	require.Len(t, cpus, 3)
	for i, c := range cpus {
		require.Equal(t, i, c.ID)
		require.EqualValues(t, 0xfff0, c.RIP, "reset vector")
		require.EqualValues(t, 0x60000010, c.CR0)
		require.EqualValues(t, 0xf000, c.CS)
		require.Equal(t, i != 0, c.Halted)
		require.Equal(t, vmi.KnownControl|vmi.KnownEFER|vmi.KnownHalted, c.Known)
		pc, err := g.PC(ctx, i)
		require.NoError(t, err)
		require.EqualValues(t, 0xfff0+0xffff0000, pc, "the segment's base is in it")
	}

	// Paused by somebody else (-S): stays paused.
	resume, err := g.Pause(ctx)
	require.NoError(t, err)
	require.NoError(t, resume())
	require.False(t, running())

	require.NoError(t, g.QMP().Execute(ctx, "cont", nil, nil))
	require.True(t, running())
	cpus, err = g.CPUs(ctx)
	require.NoError(t, err)
	require.Len(t, cpus, 3)
	require.True(t, running())
	outer, err := g.Pause(ctx)
	require.NoError(t, err)
	require.False(t, running())
	inner, err := g.Pause(ctx)
	require.NoError(t, err)
	require.NoError(t, outer())
	require.NoError(t, outer(), "counts once")
	require.False(t, running())
	require.NoError(t, inner())
	require.True(t, running())
	require.NoError(t, g.InjectNMI(ctx))

	// Somebody else resumes.
	resume, err = g.Pause(ctx)
	require.NoError(t, err)
	require.NoError(t, g.QMP().Execute(ctx, "cont", nil, nil))
	require.ErrorIs(t, resume(), ErrResumed)
	require.True(t, running())

	// The context of the pause ends before the pause.
	short, cancel := context.WithCancel(ctx)
	resume, err = g.Pause(short)
	require.NoError(t, err)
	cancel()
	require.NoError(t, resume())
	require.True(t, running())
	_, err = g.Pause(short)
	require.ErrorIs(t, err, context.Canceled)
	require.True(t, running())

	// Close lets go of everything.
	resume, err = g.Pause(ctx)
	require.NoError(t, err)
	require.NoError(t, g.Close())
	require.NoError(t, resume())
	c, err := qmp.Dial(ctx, b.QMP)
	require.NoError(t, err)
	var s struct{ Running bool }
	require.NoError(t, c.Execute(ctx, "query-status", nil, &s))
	require.True(t, s.Running)
	require.NoError(t, c.Close())
}

// A user who may not trace QEMU gets shared RAM by its path, and anonymous RAM not
// at all.
func TestPermission(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to be less than the user that runs QEMU")
	}
	for _, tt := range []struct {
		args []string
		want error
	}{
		{[]string{"-M", "q35", "-m", "128M"}, fs.ErrPermission},
		{[]string{"-M", "q35,memory-backend=ram", "-m", "128M", "-object", "memory-backend-file,id=ram,size=128M,share=on,mem-path=DIR/ram"}, nil},
	} {
		b := bareqemu.Start(t, tt.args...)
		require.NoError(t, os.Chmod(b.Dir, 0o755))
		require.NoError(t, os.Chmod(b.QMP, 0o666))
		errs := make(chan [2]error)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			unix.SetfsuidRetUid(65534)
			m, err := Open(t.Context(), b.QMP, nil)
			if err == nil {
				m.Close()
			}
			_, err2 := OpenPID(t.Context(), strconv.Itoa(b.PID), nil)
			errs <- [2]error{err, err2}
		}()
		got := <-errs
		require.ErrorIs(t, got[0], tt.want)
		require.ErrorIs(t, got[1], fs.ErrPermission)
	}
}

func TestSecondClient(t *testing.T) {
	b := bareqemu.Start(t, "-M", "q35", "-m", "128M")
	m, err := vmi.Open(t.Context(), "qmp:"+b.QMP, nil)
	require.NoError(t, err)
	defer m.Close()
	start := time.Now()
	_, err = vmi.Open(t.Context(), "qmp:"+b.QMP, nil)
	require.ErrorIs(t, err, qmp.ErrNoGreeting)
	require.Less(t, time.Since(start), 5*time.Second)
}

func TestQEMUVanishes(t *testing.T) {
	for _, args := range [][]string{
		{"-M", "q35", "-m", "128M"},
		{"-M", "q35,memory-backend=ram", "-m", "128M", "-object", "memory-backend-file,id=ram,size=128M,share=on,mem-path=DIR/ram"},
	} {
		b := bareqemu.Start(t, args...)
		m, err := vmi.Open(t.Context(), "qmp:"+b.QMP, &vmi.Options{Writable: true})
		require.NoError(t, err)
		p, err := vmi.Open(t.Context(), fmt.Sprintf("pid:%d", b.PID), nil)
		require.NoError(t, err)
		g := m.(*WritableGuest)
		require.NoError(t, g.QMP().Execute(t.Context(), "cont", nil, nil))
		resume, err := g.Pause(t.Context())
		require.NoError(t, err)
		require.NoError(t, syscall.Kill(b.PID, syscall.SIGKILL))
		<-g.QMP().Done()
		require.ErrorIs(t, resume(), ErrGone)
		_, err = m.ReadPhys(make([]byte, 8), 0)
		require.ErrorIs(t, err, ErrGone)
		_, err = g.WritePhys(make([]byte, 8), 0)
		require.ErrorIs(t, err, ErrGone)
		_, err = g.Pause(t.Context())
		require.ErrorIs(t, err, qmp.ErrClosed)
		if m.(vmi.Viewer).View(0, 8) == nil {
			require.Eventually(t, func() bool {
				_, err = p.ReadPhys(make([]byte, 8), 0)
				return err != nil
			}, 5*time.Second, 10*time.Millisecond)
			require.ErrorIs(t, err, ErrGone)
		}
		require.NoError(t, m.Close())
		require.NoError(t, p.Close())
	}
}

func BenchmarkRead(b *testing.B) {
	for _, ram := range []struct {
		name string
		args []string
	}{
		{"shared", machines[0].args},
		{"anonymous", []string{"-M", "q35", "-m", "1G"}},
	} {
		q := bareqemu.Start(b, append([]string(nil), ram.args...)...)
		m, err := vmi.Open(b.Context(), "qmp:"+q.QMP, &vmi.Options{Writable: true})
		require.NoError(b, err)
		defer m.Close()
		_, err = m.(vmi.Writer).WritePhys(make([]byte, 8*mib), 0)
		require.NoError(b, err)
		for _, size := range []struct {
			name string
			n    int
		}{{"8B", 8}, {"4KiB", 4096}, {"1MiB", mib}} {
			b.Run(ram.name+"/"+size.name, func(b *testing.B) {
				p := make([]byte, size.n)
				b.SetBytes(int64(size.n))
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					if _, err := m.ReadPhys(p, vmi.Phys(i*7919*8)%(6*mib)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
