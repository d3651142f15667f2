package kernel

import (
	"encoding/binary"
	"iter"
)

// XEntry is one occupied index of an xarray. Entry is what the kernel stored: a
// pointer, or a value (see IsValue).
type XEntry struct {
	Index uint64
	Entry uint64
	// Order is the binary logarithm of the number of indices that the entry
	// covers from Index on: large folios occupy several.
	Order uint
}

// IsValue says whether the entry is a number and not a pointer. Page caches store
// swap and shadow entries so. Source: include/linux/xarray.h:xa_is_value.
func (e XEntry) IsValue() bool { return e.Entry&1 != 0 }

// Value returns the number that a value entry holds.
func (e XEntry) Value() uint64 { return e.Entry >> 1 }

type xarrayHead struct {
	Head uint64 `k:"xa_head"`
}

type xaNode struct {
	Shift uint8 `k:"shift"`
	Slots Addr  `k:"&slots"`
}

var (
	xarrayLayout = LayoutOf[xarrayHead]("xarray")
	xaNodeLayout = LayoutOf[xaNode]("xa_node")
)

const (
	xaChunkShift = 6
	xaChunk      = 1 << xaChunkShift
	xaMaxShift   = 60
	xaRetry      = 0x402 // XA_RETRY_ENTRY
	xaZero       = 0x406 // XA_ZERO_ENTRY
)

// xaIsNode and xaIsSibling are include/linux/xarray.h's tests of internal entries.
func xaIsNode(e uint64) bool    { return e&3 == 2 && e > 4096 }
func xaIsSibling(e uint64) bool { return e&3 == 2 && e < (xaChunk-1)<<2|2 }

// XArray walks an xarray (or an IDR's idr_rt, or a radix tree, which are the same)
// in order of index, given its address. It yields every occupied entry once.
// Source: lib/xarray.c:xas_find.
func (k *Kernel) XArray(xa Addr) iter.Seq2[XEntry, error] {
	return func(yield func(XEntry, error) bool) {
		h, err := xarrayLayout.Load(k, xa)
		if err != nil {
			yield(XEntry{}, err)
			return
		}
		w := xaWalk{k: k, yield: yield}
		if !xaIsNode(h.Head) {
			w.leaf(XEntry{Entry: h.Head})
			return
		}
		w.node(Addr(h.Head-2), 0, xaMaxShift+xaChunkShift)
	}
}

type xaWalk struct {
	k     *Kernel
	yield func(XEntry, error) bool
	nodes int
}

func (w *xaWalk) fail(a Addr, err error) bool {
	w.yield(XEntry{}, &PathError{Path: "xa_node", Addr: a, Err: err})
	return false
}

func (w *xaWalk) leaf(e XEntry) bool {
	if e.Entry == 0 || e.Entry == xaRetry || e.Entry == xaZero {
		return true
	}
	return w.yield(e, nil)
}

func (w *xaWalk) node(a Addr, index uint64, parentShift uint) bool {
	n, slots, err := w.k.xaNode(a, parentShift)
	if err != nil {
		return w.fail(a, err)
	}
	if w.nodes++; w.nodes > maxWalk {
		return w.fail(a, ErrLimit)
	}
	shift := uint(n.Shift)
	for i := 0; i < xaChunk; i++ {
		e := slots[i]
		sub := index | uint64(i)<<shift
		if xaIsNode(e) && shift > 0 {
			if !w.node(Addr(e-2), sub, shift) {
				return false
			}
			continue
		}
		if xaIsSibling(e) {
			continue // reported with the entry it belongs to
		}
		order := shift
		for n := 1; i+n < xaChunk && slots[i+n] == uint64(i)<<2|2; n++ {
			if (n+1)&n == 0 {
				order++
			}
		}
		if !w.leaf(XEntry{Index: sub, Entry: e, Order: order}) {
			return false
		}
	}
	return true
}

// xaNode reads one node; its shift must be below its parent's, so that walks end.
func (k *Kernel) xaNode(a Addr, parentShift uint) (xaNode, *[xaChunk]uint64, error) {
	n, err := xaNodeLayout.Load(k, a)
	if err != nil {
		return n, nil, err
	}
	if uint(n.Shift) >= parentShift || n.Shift%xaChunkShift != 0 {
		return n, nil, corrupt(a, "xa_node", "shift %d below %d", n.Shift, parentShift)
	}
	var buf [8 * xaChunk]byte
	b, err := k.bytesAt(n.Slots, len(buf), buf[:])
	if err != nil {
		return n, nil, err
	}
	slots := new([xaChunk]uint64)
	for i := range slots {
		slots[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return n, slots, nil
}

// XALoad returns the entry at one index of an xarray, 0 if there is none. For an
// entry that covers several indices it is the entry of all of them. Source:
// lib/xarray.c:xa_load.
func (k *Kernel) XALoad(xa Addr, index uint64) (uint64, error) {
	h, err := xarrayLayout.Load(k, xa)
	if err != nil {
		return 0, err
	}
	e := h.Head
	if !xaIsNode(e) {
		if index != 0 {
			return 0, nil
		}
		return e, nil
	}
	parent := uint(xaMaxShift + xaChunkShift)
	for first := true; xaIsNode(e); first = false {
		a := Addr(e - 2)
		n, err := xaNodeLayout.Load(k, a)
		if err != nil {
			return 0, err
		}
		shift := uint(n.Shift)
		if shift >= parent || shift%xaChunkShift != 0 {
			return 0, corrupt(a, "xa_node", "shift %d below %d", shift, parent)
		}
		if first && shift < 58 && index>>(shift+xaChunkShift) != 0 {
			return 0, nil
		}
		slot := Addr(index >> shift & (xaChunk - 1))
		if e, err = k.ReadU64(n.Slots + 8*slot); err != nil {
			return 0, err
		}
		if xaIsSibling(e) {
			if e, err = k.ReadU64(n.Slots + Addr(8*(e>>2))); err != nil {
				return 0, err
			}
		}
		if shift == 0 {
			break
		}
		parent = shift
	}
	if e == xaRetry || e == xaZero || xaIsSibling(e) {
		return 0, nil
	}
	return e, nil
}

type idr struct {
	XA   Addr   `k:"&idr_rt"`
	Base uint32 `k:"idr_base"`
}

var idrLayout = LayoutOf[idr]("idr")

// IDRFind returns the pointer that an IDR holds for id, 0 if there is none.
// Source: lib/idr.c:idr_find.
func (k *Kernel) IDRFind(a Addr, id uint32) (Addr, error) {
	i, err := idrLayout.Load(k, a)
	if err != nil {
		return 0, err
	}
	e, err := k.XALoad(i.XA, uint64(id-i.Base))
	return Addr(e), err
}

// IDR walks an IDR in order of id. Source: lib/idr.c:idr_get_next.
func (k *Kernel) IDR(a Addr) iter.Seq2[XEntry, error] {
	return func(yield func(XEntry, error) bool) {
		i, err := idrLayout.Load(k, a)
		if err != nil {
			yield(XEntry{}, err)
			return
		}
		for e, err := range k.XArray(i.XA) {
			e.Index += uint64(i.Base)
			if !yield(e, err) {
				return
			}
		}
	}
}
