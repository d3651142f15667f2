package vmi_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/sources"
	"github.com/ovmigrate/ovmigrate/vmi/vmitest"
)

func TestRange(t *testing.T) {
	r := vmi.Range{Start: 0x1000, End: 0x2000}
	require.EqualValues(t, 0x1000, r.Len())
	require.Zero(t, vmi.Range{Start: 2, End: 1}.Len())
	require.True(t, r.Contains(0x1fff, 1))
	require.True(t, r.Contains(0x2000, 0))
	require.False(t, r.Contains(0x1fff, 2))
	require.False(t, r.Contains(0xfff, 1))
	require.False(t, r.Contains(0x1000, -1))
	require.Equal(t, "[0x1000-0x2000)", r.String())
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	require.NoError(t, os.WriteFile(text, []byte("hello\n"), 0o600))
	elf := filepath.Join(dir, "program")
	self, err := os.Executable()
	require.NoError(t, err)
	require.NoError(t, os.Symlink(self, elf))
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer l.Close()
	for _, tt := range []struct {
		guest string
		want  error
		say   string
	}{
		{text, vmi.ErrFormat, "6 bytes"},
		{elf, vmi.ErrFormat, "not a core dump"},
		{filepath.Join(dir, "none"), fs.ErrNotExist, "none"},
		{filepath.Join(dir, "none?below4g=2G"), fs.ErrNotExist, "none"},
		{"", fs.ErrNotExist, ""},
		{dir, nil, "is a directory"},
		{socket, nil, "write qmp:" + socket},
		{"/dev/null", nil, "not a regular file"},
		{"qmp:" + filepath.Join(dir, "none"), fs.ErrNotExist, "none"},
		{"qmp:" + text, nil, text},
		{"nosuch:thing", fs.ErrNotExist, "nosuch:thing"},
		{text + "?a=%zz", nil, "parameters"},
	} {
		m, err := vmi.Open(t.Context(), tt.guest, nil)
		require.Nil(t, m, tt.guest)
		require.Error(t, err, tt.guest)
		if tt.want != nil {
			require.ErrorIs(t, err, tt.want, tt.guest)
		}
		require.ErrorContains(t, err, tt.say)
		require.NotContains(t, err.Error(), "\n", tt.guest)
	}
}

// asNobody runs f on a thread whose file accesses are those of user nobody.
func asNobody(t *testing.T, f func()) {
	if os.Getuid() != 0 {
		f() // nobody special
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		if _, err := unix.SetfsuidRetUid(65534); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

func TestOpenPermission(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755))
	path := filepath.Join(dir, "ram")
	require.NoError(t, os.WriteFile(path, make([]byte, 1<<20), 0o444))
	secret := filepath.Join(dir, "secret")
	require.NoError(t, os.WriteFile(secret, make([]byte, 1<<20), 0o000))
	asNobody(t, func() {
		_, err := vmi.Open(t.Context(), secret, nil)
		assert.ErrorIs(t, err, fs.ErrPermission)
		_, err = vmi.Open(t.Context(), path, &vmi.Options{Writable: true})
		assert.ErrorIs(t, err, fs.ErrPermission)
		m, err := vmi.Open(t.Context(), path, nil)
		if assert.NoError(t, err) {
			m.Close()
		}
	})
}

func TestLog(t *testing.T) {
	var o *vmi.Options
	o.Log().Info("nowhere")
	require.Same(t, slog.Default(), (&vmi.Options{Logger: slog.Default()}).Log())
}

func TestFaultError(t *testing.T) {
	err := error(&vmi.FaultError{Addr: 0x1000, Len: 8, Err: fs.ErrClosed})
	require.ErrorIs(t, err, fs.ErrClosed)
	require.EqualError(t, err, "guest-physical 0x1000+8: file already closed")
}

func TestGuard(t *testing.T) {
	require.NoError(t, vmi.Guard(func() {}))
	b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON)
	require.NoError(t, err)
	require.Zero(t, b[0])
	require.NoError(t, unix.Mprotect(b, unix.PROT_NONE))
	err = vmi.Guard(func() { _ = b[0] + 1; sink = b[0] })
	require.ErrorContains(t, err, "mapped memory is gone")
	require.NoError(t, unix.Munmap(b))
	require.PanicsWithValue(t, "mine", func() { vmi.Guard(func() { panic("mine") }) })
	var p *int
	require.Panics(t, func() { vmi.Guard(func() { *p = 1 }) }, "a bug stays a bug")
}

var sink byte

func TestCache(t *testing.T) {
	m := vmitest.New(vmi.Range{Start: 0, End: 0x10000}, vmi.Range{Start: 0x20000, End: 0x20800})
	for a := vmi.Phys(0); a < 0x10000; a += 8 {
		m.SetUint64(a, uint64(a))
	}
	m.SetUint64(0x20000, 1)
	base, _ := m.Counts()
	c := vmi.Cached(m, 3)
	read := func(addr vmi.Phys, n int) ([]byte, error) {
		p, want := make([]byte, n), make([]byte, n)
		k, err := c.ReadPhys(p, addr)
		k2, err2 := m.ReadPhys(want, addr)
		base++
		require.Equal(t, k2, k)
		require.Equal(t, err2 == nil, err == nil)
		require.Equal(t, want[:k], p[:k])
		return p, err
	}
	reads := func() int { n, _ := m.Counts(); return n - base }
	for range 10 {
		read(0x1008, 8)
		read(0x1ffc, 16)
	}
	require.Equal(t, 2, reads(), "two pages, once each")
	read(0x3000, 8)
	read(0x4000, 8) // pushes the oldest out
	read(0x1008, 8)
	require.Equal(t, 5, reads())
	read(0, 0x8000) // too long to keep
	require.Equal(t, 6, reads())

	m.SetUint64(0x1008, 99)
	var p [8]byte
	c.ReadPhys(p[:], 0x1008)
	require.NotEqual(t, byte(99), p[0], "a cache")
	c.Flush()
	c.ReadPhys(p[:], 0x1008)
	require.Equal(t, byte(99), p[0])

	_, err := read(0x20000, 8) // RAM ends inside the page
	require.NoError(t, err)
	_, err = read(0x207fc, 8)
	var fault *vmi.FaultError
	require.ErrorAs(t, err, &fault)
	boom := errors.New("boom")
	m.Fault(vmi.Range{Start: 0x5800, End: 0x5900}, boom)
	_, err = read(0x57f8, 16)
	require.ErrorIs(t, err, boom)
	require.Equal(t, m.Ranges(), c.Ranges())
	require.NotNil(t, vmi.Cached(m, 0))
}

func TestCacheConcurrent(t *testing.T) {
	m := vmitest.New(vmi.Range{Start: 0, End: 0x100000})
	for a := vmi.Phys(0); a < 0x100000; a += 0x1000 {
		m.SetUint64(a, uint64(a))
	}
	c := vmi.Cached(m, 16)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			var p [8]byte
			for j := range 2000 {
				a := vmi.Phys((i*37+j*11)%256) << 12
				if _, err := c.ReadPhys(p[:], a); err != nil || p[1] != byte(a>>8) || p[2] != byte(a>>16) {
					t.Errorf("%#x: % x, %v", a, p, err)
					return
				}
				if j%500 == 0 {
					c.Flush()
				}
			}
		})
	}
	wg.Wait()
}

func Example() {
	m, err := vmi.Open(context.Background(), "qmp:/run/no-such-vm.sock", &vmi.Options{Writable: true})
	if errors.Is(err, fs.ErrNotExist) {
		fmt.Println("no such guest")
		return
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	defer m.Close()
	if p, ok := m.(vmi.Pauser); ok { // a live guest, not a dump
		resume, err := p.Pause(context.Background())
		if err != nil {
			fmt.Println(err)
			return
		}
		defer resume()
	}
	word := make([]byte, 8)
	if _, err := m.ReadPhys(word, 0x1000); err != nil {
		fmt.Println(err)
	}
	// Output: no such guest
}
