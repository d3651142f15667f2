package qemu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ovmigrate/ovmigrate/vmi/internal/segment"
)

// process is RAM in the address space of QEMU; offsets are QEMU's virtual
// addresses.
type process struct {
	pid    int
	pidfd  int         // -1 if the host has none
	mem    *os.File    // /proc/PID/mem, which stays with the process when pids are reused
	useMem atomic.Bool // process_vm_readv is forbidden here, /proc/PID/mem is not

	mu      sync.RWMutex // held for reading while pidfd is used
	closed  bool
	private []mapping // private file mappings: unmapped pages are not zeros there
}

func openProcess(pid int, writable bool) (*process, error) {
	flags := os.O_RDONLY
	if writable {
		flags = os.O_RDWR
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), flags, 0)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("%w (be root or the user that runs QEMU)", err)
		}
		return nil, err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) {
			mem.Close()
			return nil, fmt.Errorf("process %d: %w", pid, err)
		}
		pidfd = -1
	}
	return &process{pid: pid, pidfd: pidfd, mem: mem}, nil
}

func (p *process) String() string { return fmt.Sprintf("memory of process %d", p.pid) }

// access runs call, which moves some bytes to or from the process and says how
// many, until all of b is done.
func (p *process) access(b []byte, addr uint64, write bool) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return fs.ErrClosed
	}
	for len(b) > 0 {
		n, err := p.once(b, addr, write)
		if err != nil {
			return err
		}
		b, addr = b[n:], addr+uint64(n)
	}
	return nil
}

func (p *process) once(b []byte, addr uint64, write bool) (int, error) {
	if addr > math.MaxInt64 {
		return 0, unix.EFAULT
	}
	if !p.useMem.Load() {
		n, err := p.vm(b, addr, write)
		switch {
		case err == nil && n > 0:
			return n, nil
		case err == nil || errors.Is(err, unix.EFAULT):
			return 0, unix.EFAULT
		case errors.Is(err, unix.ESRCH):
			return 0, ErrGone
		case !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM):
			return 0, err
		}
		p.useMem.Store(true)
	}
	var n int
	var err error
	if write {
		n, err = p.mem.WriteAt(b, int64(addr))
	} else {
		n, err = p.mem.ReadAt(b, int64(addr))
	}
	switch {
	case n > 0:
		return n, nil
	case p.gone():
		return 0, ErrGone
	case err == nil:
		err = unix.EFAULT
	}
	return 0, err
}

// vm calls process_vm_readv or process_vm_writev. The number of a process that has
// ended may belong to a stranger, so the pidfd is asked first.
func (p *process) vm(b []byte, addr uint64, write bool) (int, error) {
	if p.gone() {
		return 0, ErrGone
	}
	local := [1]unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
	remote := [1]unix.RemoteIovec{{Base: uintptr(addr), Len: len(b)}}
	if write {
		return unix.ProcessVMWritev(p.pid, local[:], remote[:], 0)
	}
	return unix.ProcessVMReadv(p.pid, local[:], remote[:], 0)
}

func (p *process) gone() bool {
	return p.pidfd >= 0 && errors.Is(unix.PidfdSendSignal(p.pidfd, 0, nil, 0), unix.ESRCH)
}

func (p *process) read(b []byte, addr uint64) error  { return p.access(b, addr, false) }
func (p *process) write(b []byte, addr uint64) error { return p.access(b, addr, true) }
func (p *process) view(uint64, int) []byte           { return nil }

// pagemapBits: present or swapped, Documentation/admin-guide/mm/pagemap.rst.
const pagemapBits = 3 << 62

// data returns the pages of wanted that the process has touched, by
// /proc/PID/pagemap.
func (p *process) data(wanted []segment.Extent) []segment.Extent {
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", p.pid))
	if err != nil {
		return wanted
	}
	defer f.Close()
	hostPage := uint64(os.Getpagesize())
	var out []segment.Extent
	add := func(off, n uint64) {
		if k := len(out); k > 0 && out[k-1].Off+out[k-1].Len == off {
			out[k-1].Len += n
			return
		}
		out = append(out, segment.Extent{Off: off, Len: n})
	}
	buf := make([]byte, 1<<16)
	for _, w := range wanted {
		if p.hasPrivateFile(w) || w.Off%hostPage != 0 {
			add(w.Off, w.Len)
			continue
		}
		for at := w.Off; at < w.Off+w.Len; {
			pages := min((w.Off+w.Len-at+hostPage-1)/hostPage, uint64(len(buf)/8))
			n, _ := f.ReadAt(buf[:pages*8], int64(at/hostPage*8))
			if n < 8 {
				add(at, w.Off+w.Len-at)
				break
			}
			for i := 0; i+8 <= n && at < w.Off+w.Len; i += 8 {
				if binary.NativeEndian.Uint64(buf[i:])&pagemapBits != 0 {
					add(at, min(hostPage, w.Off+w.Len-at))
				}
				at += hostPage
			}
		}
	}
	return out
}

func (p *process) hasPrivateFile(e segment.Extent) bool {
	for _, m := range p.private {
		if m.start < e.Off+e.Len && e.Off < m.end {
			return true
		}
	}
	return false
}

func (p *process) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	if p.pidfd >= 0 {
		unix.Close(p.pidfd)
	}
	return p.mem.Close()
}
