package kernel_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// files returns the open files of one of the zoo's processes that keep accepts.
func (z *zoo) files(t *testing.T, name string, keep func(*kernel.File) bool) []*kernel.File {
	t.Helper()
	task, err := z.k.Task(z.pids[name])
	require.NoError(t, err)
	var files []*kernel.File
	for fd, err := range task.Files() {
		require.NoError(t, err)
		if fd.Num > 2 && keep(fd.File) {
			files = append(files, fd.File)
		}
	}
	return files
}

func ofKind(k kernel.FileKind) func(*kernel.File) bool {
	return func(f *kernel.File) bool { return f.Kind == k }
}

func checkPipes(t *testing.T, z *zoo) {
	pipes := z.files(t, "pipes", func(f *kernel.File) bool { return f.Kind == kernel.KindPipe || f.Kind == kernel.KindFIFO })
	require.Len(t, pipes, 5) // the ends of two pipes, and a FIFO
	pipe := func(i int) *kernel.Pipe {
		p, err := pipes[i].Pipe()
		require.NoError(t, err)
		return p
	}
	data, err := pipe(0).Data(1 << 20)
	require.NoError(t, err)
	require.Equal(t, "hello pipe"+strings.Repeat("x", 5000), string(data))
	require.Equal(t, pipe(0).Addr, pipe(1).Addr)
	require.Equal(t, 65536, pipe(0).Capacity())
	_, err = pipe(0).Data(5009)
	require.ErrorIs(t, err, kernel.ErrLimit)
	n, err := pipe(0).Unread()
	require.NoError(t, err)
	require.EqualValues(t, 5010, n)

	bufs, err := pipe(2).Buffers()
	require.NoError(t, err)
	require.Len(t, bufs, 2)
	require.True(t, bufs[0].Packet && bufs[1].Packet)
	require.Equal(t, 7, bufs[1].Len)
	require.Equal(t, 1<<18, pipe(2).Capacity())
	require.EqualValues(t, 1, pipe(2).Readers)

	data, err = pipe(4).Data(100)
	require.NoError(t, err)
	require.Equal(t, "fifo data", string(data))
	_, err = pipes[0].TTY()
	require.ErrorIs(t, err, kernel.ErrWrongKind)
}

func checkTTYs(t *testing.T, z *zoo) {
	files := z.files(t, "ptys", ofKind(kernel.KindTTY))
	require.Len(t, files, 6) // pty, /dev/tty, /dev/ptmx, pty
	tty := func(i int) *kernel.TTY {
		tt, err := files[i].TTY()
		require.NoError(t, err)
		return tt
	}
	m, s, ctty := tty(0), tty(1), tty(2)
	require.True(t, m.IsMaster() && !m.IsSlave())
	require.True(t, s.IsSlave() && !s.IsMaster())
	require.Equal(t, s.Addr, ctty.Addr)
	require.Equal(t, kernel.Winsize{Row: 33, Col: 101, XPixel: 3, YPixel: 4}, s.Win)
	const echo, icanon = 0o10, 0o2
	require.Zero(t, s.Termios.Lflag&echo)
	require.NotZero(t, s.Termios.Lflag&icanon)
	require.EqualValues(t, 3, s.Termios.CC[0]) // ^C
	require.Zero(t, s.TermiosLocked)
	require.Equal(t, z.pids["ptys"], s.Session)
	require.Equal(t, z.pids["ptys"], s.PGrp)
	require.EqualValues(t, 136, s.Dev().Major)
	require.Equal(t, "pty_slave", s.Driver.Name)
	peer, err := m.Peer()
	require.NoError(t, err)
	require.Equal(t, s.Addr, peer.Addr)
	ready, typing, err := s.Unread()
	require.NoError(t, err)
	require.Equal(t, "typed line\n", string(ready))
	require.Equal(t, "partial", string(typing))

	require.NotZero(t, tty(3).Flags&kernel.TTYPTYLock)
	require.Zero(t, m.Flags&kernel.TTYPTYLock)
	require.True(t, tty(4).Packet)
	require.NotZero(t, tty(5).Flags&kernel.TTYExclusive)
	require.Zero(t, s.Flags&kernel.TTYExclusive)
}

func checkPageCache(t *testing.T, z *zoo) {
	memfd := z.files(t, "anon", ofKind(kernel.KindMemFD))
	require.Len(t, memfd, 2) // Python's mmap keeps a duplicate
	require.Equal(t, memfd[0].Addr, memfd[1].Addr)
	name, seals, err := memfd[0].MemFD()
	require.NoError(t, err)
	require.Equal(t, "my memfd", name)
	require.EqualValues(t, 2, seals)
	require.Equal(t, strings.Repeat("memfd content", 1000), string(content(t, memfd[0])))

	deleted := func(want bool) func(f *kernel.File) bool {
		return func(f *kernel.File) bool {
			n, err := f.Name(kernel.Path{})
			return err == nil && n.Deleted && (f.Inode.Size > 0) == want
		}
	}
	gone := z.files(t, "files", deleted(true))
	require.Len(t, gone, 1)
	require.Equal(t, strings.Repeat("ghost ", 5000), string(content(t, gone[0])))
	require.Zero(t, gone[0].Inode.NLink)

	// A program on disk: what is cached must be what the guest reads.
	task, err := z.k.Task(z.pids["files"])
	require.NoError(t, err)
	m, err := task.MM()
	require.NoError(t, err)
	exe, err := m.Exe()
	require.NoError(t, err)
	n, err := exe.Name(kernel.Path{})
	require.NoError(t, err)
	want, err := z.vm.Exec(t.Context(), "cat", n.Name)
	require.NoError(t, err)
	c, err := exe.Inode.PageCache()
	require.NoError(t, err)
	var pages, folios uint64
	for p, err := range c.Pages() {
		require.NoError(t, err)
		pages, folios = pages+p.Count, folios+1
		got := make([]byte, min(int(p.Count)*4096, len(want)-int(p.Index)*4096))
		_, err := z.k.Memory().ReadPhys(got, p.Phys)
		require.NoError(t, err)
		require.True(t, bytes.Equal(got, want[p.Index*4096:][:len(got)]), "page %d of %s", p.Index, n.Name)
	}
	require.Equal(t, c.NrPages, pages)
	require.EqualValues(t, (len(want)+4095)/4096, pages) // cat has read it all
	t.Logf("%s: %d pages in %d folios", n.Name, pages, folios)
	require.True(t, bytes.Equal(want, content(t, exe)))

	// Without it in memory, reading says so.
	_, err = z.vm.Exec(t.Context(), "sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches")
	require.NoError(t, err)
	b := make([]byte, len(want))
	_, err = io.NewSectionReader(c, 0, c.Size).Read(b)
	require.ErrorIs(t, err, kernel.ErrNotCached)
	var missing *kernel.CacheError
	require.True(t, errors.As(err, &missing))
}

// checkShmem reads files on tmpfs: in large folios, with holes, and swapped out.
func checkShmem(t *testing.T, z *zoo) {
	files := z.files(t, "hugeshm", ofKind(kernel.KindRegular))
	require.Len(t, files, 2)
	big := content(t, files[0])
	require.Len(t, big, 1280*4096)
	for i := range 1280 {
		require.Equal(t, bytes.Repeat([]byte{byte(i), byte(i >> 8), 0, 0}, 1024), big[i*4096:][:4096], "page %d", i)
	}
	c, err := files[0].Inode.PageCache()
	require.NoError(t, err)
	var large int
	for p, err := range c.Pages() {
		require.NoError(t, err)
		if p.Count > 1 {
			large++
		}
	}
	// Realtime kernels have no huge pages, and old ones an entry for each page of one.
	if _, err := z.k.Types().Struct("folio"); err == nil && !strings.Contains(z.k.Release(), "-rt-") {
		require.NotZero(t, large, "no large folio")
	}

	c, err = files[1].Inode.PageCache()
	require.NoError(t, err)
	require.EqualValues(t, 60<<20+8192, c.Size)
	b := bytes.Repeat([]byte{1}, 3*4096)
	_, err = c.ReadAt(b, 50<<20-2*4096)
	require.NoError(t, err)
	require.Equal(t, append(make([]byte, 2*4096), "end"...), b[:2*4096+3])
	_, err = c.ReadAt(b[:8192], 60<<20)
	require.NoError(t, err)
	require.Equal(t, make([]byte, 8192), b[:8192])

	memfd := z.files(t, "swapped", ofKind(kernel.KindMemFD))
	require.Len(t, memfd, 1)
	c, err = memfd[0].Inode.PageCache()
	require.NoError(t, err)
	var out int
	for p, err := range c.Pages() {
		require.NoError(t, err)
		if p.Swapped {
			out++
			require.Less(t, p.Swap.Offset, uint64(4096)) // 16 MiB
		}
	}
	require.NotZero(t, out, "nothing was swapped out")
	_, err = io.ReadAll(io.NewSectionReader(c, 0, c.Size))
	require.ErrorIs(t, err, kernel.ErrSwapped)
}

func content(t *testing.T, f *kernel.File) []byte {
	t.Helper()
	c, err := f.Inode.PageCache()
	require.NoError(t, err)
	b, err := io.ReadAll(io.NewSectionReader(c, 0, c.Size))
	require.NoError(t, err)
	return b
}

func checkSockets(t *testing.T, z *zoo) {
	var socks []*kernel.Socket
	for _, f := range z.files(t, "sockets", ofKind(kernel.KindSocket)) {
		s, err := f.Socket()
		require.NoError(t, err)
		socks = append(socks, s)
	}
	require.Len(t, socks, 10) // socketpair, unix listener, abstract, tcp listener, client, accepted, udp, udp6, netlink
	a, b := socks[0], socks[1]
	peer, err := a.UnixPeer()
	require.NoError(t, err)
	require.Equal(t, b.Addr, peer.Addr)
	require.Equal(t, b.Ino, peer.Ino)
	require.EqualValues(t, 1, b.RecvQLen)
	name, err := socks[2].UnixName()
	require.NoError(t, err)
	require.True(t, strings.HasSuffix(name, "/sock"), name)
	require.EqualValues(t, 10, socks[2].State) // TCP_LISTEN
	require.EqualValues(t, 5, socks[2].Backlog)
	name, err = socks[3].UnixName()
	require.NoError(t, err)
	require.Equal(t, "\x00abstract", name)
	families := func() (f []uint16) {
		for _, s := range socks[4:] {
			f = append(f, s.Family)
		}
		return f
	}()
	require.Equal(t, []uint16{kernel.AFInet, kernel.AFInet, kernel.AFInet, kernel.AFInet, kernel.AFInet6, kernel.AFNetlink}, families)
	local, _ := socks[4].Inet()
	require.Equal(t, "127.0.0.1:7001", local.String())
	local, remote := socks[5].Inet()
	require.Equal(t, "127.0.0.1:7001", remote.String())
	back, from := socks[6].Inet()
	require.Equal(t, local, from)
	require.Equal(t, remote, back)
	local, _ = socks[7].Inet()
	require.Equal(t, "127.0.0.1:7002", local.String())
}

func checkMoreOfTheZoo(t *testing.T, z *zoo) {
	task := func(name string) *kernel.Task {
		tk, err := z.k.Task(z.pids[name])
		require.NoError(t, err)
		return tk
	}
	other, err := task("namespaces").Namespaces()
	require.NoError(t, err)
	uts, err := other.UTS()
	require.NoError(t, err)
	require.Equal(t, "other", uts.NodeName)
	require.Equal(t, z.k.Release(), uts.Release)
	for _, kind := range []string{"uts", "mnt", "net", "ipc", "cgroup"} {
		init, err := other.IsInit(kind)
		require.NoError(t, err)
		require.False(t, init, kind)
	}
	mine, err := task("files").Namespaces()
	require.NoError(t, err)
	for _, ns := range mine.All {
		init, err := mine.IsInit(ns.Kind)
		require.NoError(t, err)
		require.True(t, init, ns.Kind)
	}
	mono, boot, err := mine.TimeOffsets()
	require.NoError(t, err)
	require.Zero(t, mono+boot)

	// What its own root makes of a chrooted process.
	fs, err := task("chrooted").FS()
	require.NoError(t, err)
	n, err := z.k.PathName(fs.PWD, fs.Root)
	require.NoError(t, err)
	require.Equal(t, kernel.PathName{Name: "/in"}, n)
	outside, err := task("files").FS()
	require.NoError(t, err)
	n, err = z.k.PathName(outside.PWD, fs.Root)
	require.NoError(t, err)
	require.True(t, n.Outside)
	require.True(t, strings.HasPrefix(n.Getcwd(), "(unreachable)/"))

	// A folder on a file system that was unmounted under it.
	detached := 0
	for fd, err := range task("namespaces").Files() {
		require.NoError(t, err)
		if n, err := fd.File.Name(kernel.Path{}); err == nil && n.Detached && !n.Pseudo && fd.Num > 2 {
			detached++
		}
	}
	require.Equal(t, 2, detached)

	owner := z.files(t, "files", func(f *kernel.File) bool { o, err := f.Owner(); return err == nil && o.PID != 0 })
	require.Len(t, owner, 1)
	o, err := owner[0].Owner()
	require.NoError(t, err)
	require.Equal(t, kernel.FOwner{PID: z.pids["files"], PIDType: 1, Signum: 10}, o)

	sec, err := task("sec").Seccomp()
	require.NoError(t, err)
	require.Len(t, sec.Filters, 2)
	require.Equal(t, []byte{6, 0, 0, 0, 0, 0, 0xff, 0x7f}, sec.Filters[0].BPF)

	users, err := task("files").FilesUsers()
	require.NoError(t, err)
	require.Equal(t, 1, users)
	_, err = task("files").File(9999)
	require.ErrorIs(t, err, kernel.ErrNoFD)
	fd, err := task("files").File(700)
	require.NoError(t, err)
	require.EqualValues(t, 4, fd.File.Pos)
	require.WithinDuration(t, time.Now(), fd.File.Inode.Mtime(), 24*time.Hour)
}
