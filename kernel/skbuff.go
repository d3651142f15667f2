package kernel

import (
	"fmt"
	"iter"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// SKB is a buffer of network data: a struct sk_buff. Its bytes may lie in one piece
// of memory, in pages, and in further buffers.
type SKB struct {
	k    *Kernel
	Addr Addr
	skbFields
}

type skbFields struct {
	Next    Addr   `k:"next"`
	SK      Addr   `k:"sk"`
	CB      Addr   `k:"&cb"` // what the protocol keeps with it
	Len     uint32 `k:"len"` // bytes of data
	DataLen uint32 `k:"data_len"`
	Head    Addr   `k:"head"`
	Data    Addr   `k:"data"`
	End     uint32 `k:"end"` // offset from Head
	// Of the headers, from Head; 0xffff if not set.
	NetworkHeader   uint16 `k:"network_header"`
	TransportHeader uint16 `k:"transport_header"`
	Protocol        uint16 `k:"protocol"` // ETH_P_*, network order
	Unreadable      bool   `k:"unreadable,opt"`
}

type skbSharedInfo struct {
	NrFrags  uint8 `k:"nr_frags"`
	FragList Addr  `k:"frag_list"`
	Frags    Addr  `k:"&frags"`
}

type skbFrag struct {
	Page   Addr   `k:"netmem|bv_page"` // since 6.9 with a bit that says what it is
	Len    uint32 `k:"len|bv_len"`
	Offset uint32 `k:"offset|bv_offset"`
}

var (
	skbLayout           = LayoutOf[skbFields]("sk_buff")
	skbSharedInfoLayout = LayoutOf[skbSharedInfo]("skb_shared_info")
	skbFragLayout       = LayoutOf[skbFrag]("skb_frag|bio_vec")
)

const (
	maxSKBLinear = 1 << 26 // kmalloc gives 4 MiB, netlink more by vmalloc
	maxSKBFrags  = 64      // above CONFIG_MAX_SKB_FRAGS
	maxSKBDepth  = 4       // lists in lists: GRO makes one
	maxSKBParts  = 1 << 16 // buffers of one packet
	// maxSKBQueue bounds a queue: SO_RCVBUF counts memory, and no buffer takes
	// less than 256 bytes.
	maxSKBQueue = 1 << 22

	netmemIOV = 1 // NET_IOV: memory of a device
)

// SKBAt reads the struct sk_buff at a.
func (k *Kernel) SKBAt(a Addr) (*SKB, error) {
	b := &SKB{k: k, Addr: a}
	if err := skbLayout.LoadInto(k, a, &b.skbFields); err != nil {
		return nil, err
	}
	if b.DataLen > b.Len || b.Data < b.Head || b.End > maxSKBLinear ||
		uint64(b.Data-b.Head)+uint64(b.Len-b.DataLen) > uint64(b.End) {
		return nil, corrupt(a, "sk_buff", "%d bytes, %d not linear, data at %s of %s, end %d", b.Len, b.DataLen, b.Data, b.Head, b.End)
	}
	return b, nil
}

// SKBQueue yields the buffers of a queue, given the address of its sk_buff_head, in
// order. An error ends the walk. Source: include/linux/skbuff.h:skb_queue_walk.
func (k *Kernel) SKBQueue(head Addr) iter.Seq2[*SKB, error] {
	return func(yield func(*SKB, error) bool) {
		n := 0
		for a, err := range k.chain(head, head) {
			if n++; err == nil && n > maxSKBQueue {
				err = ErrLimit
			}
			if err != nil {
				yield(nil, &PathError{Path: "sk_buff_head", Addr: head, Err: err})
				return
			}
			b, err := k.SKBAt(a)
			if !yield(b, err) || err != nil {
				return
			}
		}
	}
}

// Bytes returns the data of the buffer from the offset off on. It fails with
// ErrLimit if that is more than max bytes. Source: net/core/skbuff.c:skb_copy_bits.
func (b *SKB) Bytes(off, max int) ([]byte, error) {
	if off < 0 || off > int(b.Len) {
		return nil, corrupt(b.Addr, "sk_buff", "offset %d in %d bytes", off, b.Len)
	}
	if int(b.Len)-off > max {
		return nil, &PathError{Path: "sk_buff", Addr: b.Addr, Err: fmt.Errorf("%w: %d bytes, %d wanted", ErrLimit, int(b.Len)-off, max)}
	}
	c := skbCopy{k: b.k, skip: off, want: int(b.Len) - off}
	if err := c.add(b, 0); err != nil {
		return nil, err
	}
	if c.want != 0 {
		return nil, corrupt(b.Addr, "sk_buff", "%d of %d bytes are missing", c.want, b.Len)
	}
	return c.out, nil
}

// skbCopy gathers the bytes of a buffer.
type skbCopy struct {
	k     *Kernel
	out   []byte
	skip  int // bytes still to leave out
	want  int // bytes still to gather
	parts int
}

// part returns where in a piece of n bytes to begin, and room for what is wanted.
func (c *skbCopy) part(n int) (from int, room []byte) {
	from = min(c.skip, n)
	c.skip -= from
	n = min(n-from, c.want)
	c.want -= n
	at := len(c.out)
	c.out = append(c.out, make([]byte, n)...)
	return from, c.out[at:]
}

func (c *skbCopy) add(b *SKB, depth int) error {
	if c.parts++; c.parts > maxSKBParts || depth > maxSKBDepth {
		return &PathError{Path: "sk_buff.frag_list", Addr: b.Addr, Err: ErrLimit}
	}
	from, room := c.part(int(b.Len - b.DataLen))
	if _, err := c.k.ReadAt(room, b.Data.Add(from)); err != nil {
		return &PathError{Path: "sk_buff.data", Addr: b.Addr, Err: err}
	}
	if b.DataLen == 0 || c.want == 0 {
		return nil
	}
	if b.Unreadable {
		return &PathError{Path: "sk_buff", Addr: b.Addr, Err: fmt.Errorf("%w: its data lies in memory of a device", ErrWrongKind)}
	}
	sh, err := skbSharedInfoLayout.Load(c.k, b.Head.Add(int(b.End)))
	if err != nil {
		return err
	}
	if err := c.frags(b, &sh); err != nil {
		return err
	}
	for a := sh.FragList; a != 0 && c.want > 0; {
		next, err := c.k.SKBAt(a)
		if err != nil {
			return err
		}
		if err := c.add(next, depth+1); err != nil {
			return err
		}
		a = next.Next
	}
	return nil
}

func (c *skbCopy) frags(b *SKB, sh *skbSharedInfo) error {
	size, err := skbFragLayout.Size(c.k)
	if err != nil {
		return err
	}
	if sh.NrFrags > maxSKBFrags {
		return corrupt(b.Addr, "skb_shared_info", "%d frags", sh.NrFrags)
	}
	for i := range int(sh.NrFrags) {
		f, err := skbFragLayout.Load(c.k, sh.Frags.Add(i*size))
		if err != nil {
			return err
		}
		if f.Page&netmemIOV != 0 {
			return &PathError{Path: "skb_frag", Addr: b.Addr, Err: fmt.Errorf("%w: its data lies in memory of a device", ErrWrongKind)}
		}
		if f.Len > maxPipeBuf || f.Offset > maxPipeBuf {
			return corrupt(b.Addr, "skb_frag", "%d bytes at %d", f.Len, f.Offset)
		}
		phys, err := c.k.pagePhys(f.Page)
		if err != nil {
			return err
		}
		from, room := c.part(int(f.Len))
		if _, err := c.k.mem.ReadPhys(room, phys+vmi.Phys(f.Offset)+vmi.Phys(from)); err != nil {
			return &PathError{Path: "skb_frag", Addr: b.Addr, Err: err}
		}
	}
	return nil
}
