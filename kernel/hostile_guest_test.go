package kernel_test

import (
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// liar is guest memory that sometimes says something else: another pointer, a huge
// number, zeros. It is what a guest that fights back, or one that runs on while it
// is read, looks like.
type liar struct {
	vmi.Memory
	on       bool
	one      int // one word in so many is a lie
	r        *rand.Rand
	pointers []uint64
}

func (l *liar) ReadPhys(p []byte, a vmi.Phys) (int, error) {
	n, err := l.Memory.ReadPhys(p, a)
	if !l.on {
		return n, err
	}
	for i := 0; i+8 <= n; i += 8 {
		w := binary.LittleEndian.Uint64(p[i:])
		if w >= 0xffff800000000000 && l.r.IntN(64) == 0 {
			l.pointers = append(l.pointers, w)
			if len(l.pointers) > 4096 {
				l.pointers = l.pointers[2048:]
			}
		}
		if l.r.IntN(l.one) != 0 {
			continue
		}
		switch l.r.IntN(6) {
		case 0:
			w = 0
		case 1:
			w = ^uint64(0) >> l.r.IntN(64)
		case 2:
			w ^= 1 << l.r.IntN(64)
		case 3:
			w = l.r.Uint64()
		default:
			if len(l.pointers) > 0 {
				w = l.pointers[l.r.IntN(len(l.pointers))]
			}
		}
		binary.LittleEndian.PutUint64(p[i:], w)
	}
	return n, err
}

// TestHostileMemory calls everything that reads a process's environment on memory
// that lies. Nothing may panic or run away; errors are fine.
func TestHostileMemory(t *testing.T) {
	eachZoo(t, func(t *testing.T, z *zoo) {
		mem, err := vmi.Open(t.Context(), z.vm.RAMPath(), nil)
		require.NoError(t, err)
		defer mem.Close()
		const seed = 1
		l := &liar{Memory: struct{ vmi.Memory }{mem}, r: rand.New(rand.NewPCG(seed, seed))}
		k, err := kernel.Open(t.Context(), l, nil)
		require.NoError(t, err)

		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		calls, failed, slowest := 0, 0, time.Duration(0)
		for _, one := range []int{20000, 2000, 200, 20} {
			for round := 0; round < 20 && ctx.Err() == nil; round++ {
				for _, pid := range z.pids {
					l.on = false
					task, err := k.Task(pid)
					require.NoError(t, err)
					l.on, l.one = true, one
					start := time.Now()
					c, f := tourTask(task)
					calls, failed = calls+c, failed+f
					slowest = max(slowest, time.Since(start))
				}
			}
		}
		require.NotZero(t, failed)
		require.Less(t, slowest, 30*time.Second)
		t.Logf("%d calls, %d failed; slowest process took %v", calls, failed, slowest)
	})
}

// tourTask calls everything there is about a task's environment.
func tourTask(t *kernel.Task) (calls, failed int) {
	k := t.Kernel()
	try := func(err error) bool {
		calls++
		if err != nil {
			failed++
		}
		return err == nil
	}
	for fd, err := range t.Files() {
		if try(err) {
			tourFile(fd.File, try)
		}
	}
	if fs, err := t.FS(); try(err) {
		_, err := fs.RootName()
		try(err)
		_, err = k.PathName(fs.PWD, fs.Root)
		try(err)
	}
	if c, err := t.Cred(); try(err) {
		_, err := c.UserNS()
		try(err)
	}
	if ns, err := t.Namespaces(); try(err) {
		_, err := ns.UTS()
		try(err)
		for m, err := range k.Mounts(ns.Get("mnt").Addr) {
			if !try(err) {
				break
			}
			_, err := m.Point(kernel.Path{})
			try(err)
			_, err = m.RootPath()
			try(err)
		}
	}
	if all, err := t.CgroupMemberships(); try(err) {
		for _, m := range all {
			_, err := m.Cgroup.Memory()
			try(err)
			_, err = m.Cgroup.CPU()
			try(err)
			_, err = m.Cgroup.PIDs()
			try(err)
			_, err = m.Cgroup.Controllers()
			try(err)
		}
	}
	if tr, err := t.KernelStack(); try(err) {
		try(tr.Err)
	}
	_, err := t.UserStack()
	try(err)
	_, err = t.Sched()
	try(err)
	_, _, err = t.Container()
	try(err)
	_, err = k.NamespaceList()
	try(err)
	if rq, err := k.RunQueue(0); try(err) {
		for _, err := range rq.Tasks() {
			try(err)
		}
	}
	for h, err := range k.CgroupHierarchies() {
		if !try(err) {
			break
		}
		for g, err := range h.Root.Subtree() {
			if try(err) {
				_, err := groupFiles(g, true)
				try(err)
			}
		}
	}
	_, err = t.Seccomp()
	try(err)
	_, err = t.ControllingTTY()
	try(err)
	_, err = t.Cmdline()
	try(err)
	_, err = t.Environ()
	try(err)
	if m, err := t.MM(); try(err) {
		for v, err := range m.VMAs() {
			if try(err) {
				_, err := m.Name(&v)
				try(err)
			}
		}
	}
	return calls, failed
}

func tourFile(f *kernel.File, try func(error) bool) {
	_, err := f.LinkText()
	try(err)
	_, err = f.MountID()
	try(err)
	_, err = f.Owner()
	try(err)
	switch f.Kind {
	case kernel.KindPipe, kernel.KindFIFO:
		if p, err := f.Pipe(); try(err) {
			_, err := p.Data(1 << 20)
			try(err)
		}
	case kernel.KindTTY:
		if tty, err := f.TTY(); try(err) {
			_, _, err := tty.Unread()
			try(err)
			_, err = tty.Peer()
			try(err)
		}
	case kernel.KindEpoll:
		_, err := f.Epoll()
		try(err)
	case kernel.KindTimerFD:
		now, err := f.Kernel().Clocks()
		try(err)
		_, err = f.TimerFD(now)
		try(err)
	case kernel.KindSocket:
		if s, err := f.Socket(); try(err) {
			_, err := s.UnixName()
			try(err)
			_, err = s.UnixPeer()
			try(err)
		}
	case kernel.KindMemFD, kernel.KindRegular:
		if c, err := f.Inode.PageCache(); try(err) {
			for _, err := range c.Pages() {
				try(err)
			}
			_, err := io.CopyN(io.Discard, io.NewSectionReader(c, 0, c.Size), 4<<20)
			try(err)
		}
	}
}
