package kernel

import (
	"fmt"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// Pipe is the ring of buffers behind a pipe or FIFO.
type Pipe struct {
	k    *Kernel
	Addr Addr // of the pipe_inode_info: its identity
	pipeFields
}

type pipeFields struct {
	Head     uint32 `k:"head"` // count of buffers ever put in, modulo 2^32
	Tail     uint32 `k:"tail"` // count of buffers ever taken out
	MaxUsage uint32 `k:"max_usage"`
	RingSize uint32 `k:"ring_size"`
	Readers  uint32 `k:"readers"`
	Writers  uint32 `k:"writers"`
	Files    uint32 `k:"files"`
	Bufs     Addr   `k:"bufs"`
	Watch    Addr   `k:"watch_queue,opt"` // of a notification pipe
}

type pipeBuffer struct {
	Page   Addr   `k:"page"`
	Offset uint32 `k:"offset"`
	Len    uint32 `k:"len"`
	Ops    Addr   `k:"ops"`
	Flags  uint32 `k:"flags"`
}

var (
	pipeLayout       = LayoutOf[pipeFields]("pipe_inode_info")
	pipeBufferLayout = LayoutOf[pipeBuffer]("pipe_buffer")
)

const (
	// maxPipeRing is the largest ring that fcntl(F_SETPIPE_SZ) can ask for: 2 GiB.
	maxPipeRing = 1 << 19
	// maxPipeBuf bounds one buffer: the largest compound page.
	maxPipeBuf = 1 << 30

	pipeBufPacket = 0x08 // PIPE_BUF_FLAG_PACKET
)

// Pipe returns the ring behind a file of KindPipe or KindFIFO, and an error that
// wraps ErrWrongKind for others. Source: fs/pipe.c:get_pipe_info.
func (f *File) Pipe() (*Pipe, error) {
	if f.Kind != KindPipe && f.Kind != KindFIFO || f.Inode.Pipe == 0 {
		return nil, f.wrongKind("pipe")
	}
	return f.k.PipeAt(f.Inode.Pipe)
}

// PipeAt reads the pipe_inode_info at a.
func (k *Kernel) PipeAt(a Addr) (*Pipe, error) {
	p := &Pipe{k: k, Addr: a}
	if err := pipeLayout.LoadInto(k, a, &p.pipeFields); err != nil {
		return nil, err
	}
	n := p.RingSize
	if n == 0 || n&(n-1) != 0 || n > maxPipeRing || p.Head-p.Tail > n {
		return nil, corrupt(a, "pipe_inode_info", "ring of %d, head %d, tail %d", n, p.Head, p.Tail)
	}
	return p, nil
}

// Capacity returns what fcntl(F_GETPIPE_SZ) returns, in bytes.
func (p *Pipe) Capacity() int { return int(p.MaxUsage) * vmi.PageSize }

// Notification says whether the pipe carries kernel events (O_NOTIFICATION_PIPE)
// and not what processes wrote.
func (p *Pipe) Notification() bool { return p.Watch != 0 }

// PipeBuffer is one buffer of data in a pipe.
type PipeBuffer struct {
	Phys   vmi.Phys // of the first byte
	Len    int
	Packet bool // read(2) does not go past its end (O_DIRECT)
}

// Buffers returns the buffers that hold unread data, in order.
func (p *Pipe) Buffers() ([]PipeBuffer, error) {
	size, err := pipeBufferLayout.Size(p.k)
	if err != nil {
		return nil, err
	}
	var bufs []PipeBuffer
	for i := p.Tail; i != p.Head; i++ {
		a := p.Bufs.Add(int(i&(p.RingSize-1)) * size)
		b, err := pipeBufferLayout.Load(p.k, a)
		if err != nil {
			return nil, err
		}
		if b.Len == 0 {
			continue
		}
		if b.Len > maxPipeBuf || b.Offset > maxPipeBuf {
			return nil, corrupt(a, "pipe_buffer", "%d bytes at %d", b.Len, b.Offset)
		}
		phys, err := p.k.pagePhys(b.Page)
		if err != nil {
			return nil, err
		}
		bufs = append(bufs, PipeBuffer{phys + vmi.Phys(b.Offset), int(b.Len), b.Flags&pipeBufPacket != 0})
	}
	return bufs, nil
}

// Unread returns the number of bytes that a reader would find, as FIONREAD does.
func (p *Pipe) Unread() (int64, error) {
	bufs, err := p.Buffers()
	var n int64
	for _, b := range bufs {
		n += int64(b.Len)
	}
	return n, err
}

// Data returns the unread bytes. It fails with ErrLimit if they are more than max.
func (p *Pipe) Data(max int) ([]byte, error) {
	bufs, err := p.Buffers()
	if err != nil {
		return nil, err
	}
	var data []byte
	for _, b := range bufs {
		if b.Len > max-len(data) {
			return nil, &PathError{Path: "pipe_inode_info", Addr: p.Addr, Err: ErrLimit}
		}
		at := len(data)
		data = append(data, make([]byte, b.Len)...)
		if _, err := p.k.mem.ReadPhys(data[at:], b.Phys); err != nil {
			return nil, fmt.Errorf("pipe buffer: %w", err)
		}
	}
	return data, nil
}

// pagePhys returns where the page of a struct page lies. Source:
// include/asm-generic/memory_model.h:page_to_pfn.
func (k *Kernel) pagePhys(page Addr) (vmi.Phys, error) {
	off := uint64(page - k.vmemmap)
	size := uint64(k.pageStruct)
	if page < k.vmemmap || size == 0 || off%size != 0 || off/size >= uint64(k.maxPhys)/vmi.PageSize {
		return 0, corrupt(page, "page", "not in the memory map at %s", k.vmemmap)
	}
	return vmi.Phys(off / size * vmi.PageSize), nil
}
