package qemu

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/qmp"
)

// fake plays a QEMU whose process is the test itself: its "guest RAM" is a
// mapping of ours.
type fake struct {
	ram     []byte
	path    string // of the RAM file; "" for anonymous RAM
	running atomic.Bool
	answer  func(command, hmp string) (any, bool) // overrides
}

const fakeRAM = 4 * mib

func newFake(t *testing.T, shared bool) *fake {
	f := &fake{}
	flags, fd := unix.MAP_PRIVATE|unix.MAP_ANON, -1
	if shared {
		f.path = filepath.Join(t.TempDir(), "ram")
		file, err := os.Create(f.path)
		require.NoError(t, err)
		defer file.Close()
		require.NoError(t, file.Truncate(fakeRAM))
		flags, fd = unix.MAP_SHARED, int(file.Fd())
	}
	var err error
	f.ram, err = unix.Mmap(fd, 0, fakeRAM, unix.PROT_READ|unix.PROT_WRITE, flags)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Munmap(f.ram) })
	copy(f.ram[fakeRAM/2:], "Linux version")
	copy(f.ram[fakeRAM-4096:], "the end")
	return f
}

// The guest sees 1 MiB at 0 and the rest at 4 GiB.
const fakeMtree = `FlatView #1
 AS "memory", root: system
 Root memory region: system
  0000000000000000-00000000000fffff (prio 0, ram): ram
  0000000100000000-00000001002fffff (prio 0, ram): ram @0000000000100000
`

func (f *fake) serve(t *testing.T) (socket string) {
	socket = filepath.Join(t.TempDir(), "qmp")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, `{"QMP": {"version": {"qemu": {"major": 9}}, "capabilities": []}}`+"\n")
		in := bufio.NewScanner(c)
		for in.Scan() {
			var r struct {
				Execute   string
				Arguments map[string]any
				ID        int
			}
			json.Unmarshal(in.Bytes(), &r)
			line, _ := r.Arguments["command-line"].(string)
			if p, ok := r.Arguments["property"].(string); ok {
				line = p
			}
			v, ok := f.reply(r.Execute, line)
			msg := map[string]any{"id": r.ID, "return": v}
			if !ok {
				msg = map[string]any{"id": r.ID, "error": map[string]any{"class": "GenericError", "desc": "no"}}
			}
			b, _ := json.Marshal(msg)
			c.Write(append(b, '\n'))
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait(); goleak.VerifyNone(t) })
	return socket
}

func (f *fake) reply(command, line string) (any, bool) {
	if f.answer != nil {
		if v, ok := f.answer(command, line); ok {
			return v, v != nil
		}
	}
	host := func(phys uint64) uint64 {
		if phys >= 4*gib {
			phys -= 4*gib - mib
		}
		return phys
	}
	var addr uint64
	var n int
	switch {
	case command == "query-memdev":
		return []any{map[string]any{"id": "ram", "size": fakeRAM}}, true
	case command == "qom-get" && line == "memory-backend":
		return "/objects/ram", true
	case command == "qom-get" && line == "share":
		return f.path != "", true
	case command == "qom-get" && line == "mem-path" && f.path != "":
		return f.path, true
	case command == "query-memory-devices":
		return []any{}, true
	case command == "query-status":
		return map[string]any{"running": f.running.Load(), "status": "x"}, true
	case command == "stop" || command == "cont":
		f.running.Store(command == "cont")
		return map[string]any{}, true
	case command == "qmp_capabilities":
		return map[string]any{}, true
	case line == "info mtree -f":
		return fakeMtree, true
	case scan(line, "gpa2hva %v", &addr):
		return fmt.Sprintf("Host virtual address for %#x (ram) is %p\r\n", addr, &f.ram[host(addr)]), true
	case scan(line, "xp /%dxg %v", &n, &addr):
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "%016x: %#016x\n", addr, binary.LittleEndian.Uint64(f.ram[int(host(addr))+8*i:]))
		}
		return b.String(), true
	}
	return nil, false
}

func scan(s, format string, to ...any) bool {
	n, err := fmt.Sscanf(s, format, to...)
	return err == nil && n == len(to)
}

func TestOpenFake(t *testing.T) {
	for _, shared := range []bool{false, true} {
		f := newFake(t, shared)
		m, err := vmi.Open(t.Context(), "qmp:"+f.serve(t), &vmi.Options{Writable: true})
		require.NoError(t, err)
		defer m.Close()
		require.Equal(t, []vmi.Range{{Start: 0, End: mib}, {Start: 4 * gib, End: 4*gib + 3*mib}}, m.Ranges())
		p := make([]byte, 13)
		_, err = m.ReadPhys(p, 4*gib+mib)
		require.NoError(t, err)
		require.Equal(t, "Linux version", string(p))
		_, err = m.(vmi.Writer).WritePhys([]byte("hello"), 4096)
		require.NoError(t, err)
		require.Equal(t, "hello", string(f.ram[4096:4101]))
		require.Equal(t, shared, m.(vmi.Viewer).View(0, 8) != nil)
		require.True(t, covers(m.(vmi.Sparse).Data(), 4096))
		_, err = m.ReadPhys(p, mib-5)
		require.Error(t, err)
		require.NoError(t, m.Close())
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer func(command, hmp string) (any, bool)
		want   error
		say    string
	}{
		{"monitor reads other bytes", func(_, hmp string) (any, bool) {
			return "0: 0x1 0x2 0x3 0x4 0x5 0x6 0x7 0x8", strings.HasPrefix(hmp, "xp")
		}, ErrLayout, "monitor"},
		{"monitor reads nothing", func(_, hmp string) (any, bool) {
			return "Cannot access memory", strings.HasPrefix(hmp, "xp")
		}, ErrLayout, ""},
		{"process of a manager", func(_, hmp string) (any, bool) {
			return "Host virtual address for 0x0 (ram) is 0x1000", strings.HasPrefix(hmp, "gpa2hva")
		}, ErrLayout, "?pid=PID"},
		{"hva nonsense", func(_, hmp string) (any, bool) {
			return "no such command", strings.HasPrefix(hmp, "gpa2hva")
		}, ErrLayout, "no such command"},
		{"mtree nonsense", func(_, hmp string) (any, bool) {
			return "unknown command", strings.HasPrefix(hmp, "info mtree")
		}, ErrLayout, ""},
		{"no RAM", func(_, hmp string) (any, bool) {
			return "FlatView #0\n AS \"memory\", root: x\n", strings.HasPrefix(hmp, "info mtree")
		}, ErrLayout, "no guest RAM"},
		{"a block twice", func(_, hmp string) (any, bool) {
			return fakeMtree + "  0000000000080000-00000000000fffff (prio 0, ram): ram\n", strings.HasPrefix(hmp, "info mtree")
		}, nil, ""},
		{"no memory backends", func(command, _ string) (any, bool) { return nil, command == "query-memdev" }, nil, "query-memdev"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t, false)
			f.answer = tt.answer
			_, err := vmi.Open(t.Context(), "qmp:"+f.serve(t), nil)
			require.Error(t, err)
			require.ErrorContains(t, err, tt.say)
			require.NotContains(t, err.Error(), "\n")
			if tt.want != nil {
				require.ErrorIs(t, err, tt.want)
			}
		})
	}
	_, err := vmi.Open(t.Context(), "qmp:/x?pid=a", nil)
	require.ErrorContains(t, err, "no such pid")
	_, err = vmi.Open(t.Context(), "qmp:/x?a=1", nil)
	require.ErrorContains(t, err, "unknown parameter")
	for _, pid := range []string{"", "x", "-1", "0"} {
		_, err = vmi.Open(t.Context(), "pid:"+pid, nil)
		require.ErrorContains(t, err, "not the number of a process")
	}
	_, err = vmi.Open(t.Context(), fmt.Sprintf("pid:%d", os.Getpid()), nil)
	require.ErrorContains(t, err, "is no QEMU")
	_, err = vmi.Open(t.Context(), "pid:4194305", nil)
	require.ErrorIs(t, err, os.ErrNotExist)
}

// Without a look at QEMU's process, a shared RAM file is opened by its path.
func TestPlaceByPath(t *testing.T) {
	for _, shared := range []bool{true, false} {
		f := newFake(t, shared)
		c, err := qmp.Dial(t.Context(), f.serve(t))
		require.NoError(t, err)
		defer c.Close()
		g := &Guest{qmp: c}
		blocks := []block{{id: "ram", phys: 0, off: 0, len: mib}, {id: "ram", phys: 4 * gib, off: mib, len: 3 * mib, probe: 4 * gib}}
		err = g.placeByPath(t.Context(), blocks, nil, os.ErrPermission)
		if !shared {
			require.ErrorIs(t, err, os.ErrPermission)
			continue
		}
		require.NoError(t, err)
		require.NoError(t, g.verify(t.Context()))
		f.ram[fakeRAM-1]++
		p := make([]byte, 1)
		_, err = g.readPhys(p, 4*gib+3*mib-1)
		require.NoError(t, err)
		require.Equal(t, f.ram[fakeRAM-1], p[0])
		require.NoError(t, g.close())
	}
}

// A stop whose answer is lost to a cancelled context is taken back.
func TestPauseCancelled(t *testing.T) {
	f := newFake(t, true)
	f.running.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	f.answer = func(command, _ string) (any, bool) {
		if command == "stop" {
			f.running.Store(false)
			cancel()
			<-ctx.Done()
		}
		return nil, false
	}
	m, err := vmi.Open(t.Context(), "qmp:"+f.serve(t), nil)
	require.NoError(t, err)
	defer m.Close()
	resume, err := m.(vmi.Pauser).Pause(ctx)
	if err == nil { // the answer was quicker
		require.NoError(t, resume())
	} else {
		require.ErrorIs(t, err, context.Canceled)
	}
	require.True(t, f.running.Load())
}
