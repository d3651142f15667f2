package kernel

import (
	"encoding/binary"
	"iter"
)

// MapleEntry is one occupied range of a maple tree, both ends inclusive.
type MapleEntry struct {
	First, Last uint64
	Entry       uint64
}

type mapleTree struct {
	Root uint64 `k:"ma_root"`
}

type mapleMeta struct {
	RangePivot  Addr `k:"&mr64.pivot"`
	RangeSlot   Addr `k:"&mr64.slot"`
	RangeEnd    Addr `k:"&mr64.meta.end"`
	ArangePivot Addr `k:"&ma64.pivot"`
	ArangeSlot  Addr `k:"&ma64.slot"`
	ArangeEnd   Addr `k:"&ma64.meta.end"`
}

var (
	mapleTreeLayout = LayoutOf[mapleTree]("maple_tree")
	mapleNodeLayout = LayoutOf[mapleMeta]("maple_node")
)

// Node types and sizes, include/linux/maple_tree.h.
const (
	mapleNodeSize  = 256
	mapleNodeMask  = mapleNodeSize - 1
	mapleDense     = 0
	mapleLeaf64    = 1
	mapleRange64   = 2
	mapleArange64  = 3
	mapleRangeLen  = 16
	mapleArangeLen = 10
	mapleMaxDepth  = 32
)

// Maple walks a maple tree in order, given the address of its maple_tree, and
// yields the ranges that hold an entry. Source: lib/maple_tree.c:mas_find.
func (k *Kernel) Maple(tree Addr) iter.Seq2[MapleEntry, error] {
	return func(yield func(MapleEntry, error) bool) {
		t, err := mapleTreeLayout.Load(k, tree)
		if err != nil {
			yield(MapleEntry{}, err)
			return
		}
		w := mapleWalk{k: k, yield: yield}
		if t.Root&3 == 2 && t.Root > 4096 {
			w.node(t.Root, 0, ^uint64(0), 0)
		} else if t.Root != 0 {
			yield(MapleEntry{Entry: t.Root}, nil)
		}
	}
}

type mapleWalk struct {
	k     *Kernel
	yield func(MapleEntry, error) bool
	nodes int
}

func (w *mapleWalk) fail(enode uint64, err error) bool {
	w.yield(MapleEntry{}, &PathError{Path: "maple_node", Addr: Addr(enode &^ mapleNodeMask), Err: err})
	return false
}

func (w *mapleWalk) node(enode, first, last uint64, depth int) bool {
	if w.nodes++; depth > mapleMaxDepth || w.nodes > maxWalk {
		return w.fail(enode, ErrLimit)
	}
	var buf [mapleNodeSize]byte
	a := Addr(enode &^ mapleNodeMask)
	b, err := w.k.bytesAt(a, mapleNodeSize, buf[:])
	if err != nil {
		return w.fail(enode, err)
	}
	copy(buf[:], b) // one snapshot: the node may change while its children are walked
	m, err := mapleNodeLayout.Load(w.k, a)
	if err != nil {
		return w.fail(enode, err)
	}
	at := func(base Addr, i int) uint64 { return binary.LittleEndian.Uint64(buf[int(base-a)+8*i:]) }

	typ := enode >> 3 & 0xf
	var pivots, slots Addr
	var n, end int
	switch typ {
	case mapleLeaf64, mapleRange64:
		pivots, slots, n = m.RangePivot, m.RangeSlot, mapleRangeLen
		end = rangeEnd(at(pivots, n-2), last, buf[m.RangeEnd-a])
	case mapleArange64:
		pivots, slots, n = m.ArangePivot, m.ArangeSlot, mapleArangeLen
		end = int(buf[m.ArangeEnd-a])
	default:
		return w.fail(enode, corrupt(a, "maple_node", "type %d", typ))
	}
	for i := 0; i <= min(end, n-1); i++ {
		top := last
		if i < n-1 {
			if p := at(pivots, i); i < end && (p != 0 || i == 0) {
				top = p
			}
		}
		if top < first || top > last {
			return w.fail(enode, corrupt(a, "maple_node", "pivot %d is %#x in %#x-%#x", i, top, first, last))
		}
		if !w.slot(typ, at(slots, i), first, top, depth) {
			return false
		}
		if top >= last {
			break
		}
		first = top + 1
	}
	return true
}

// rangeEnd is lib/maple_tree.c:ma_data_end for nodes whose metadata shares its
// place with the last slot.
func rangeEnd(lastPivot, last uint64, meta uint8) int {
	switch lastPivot {
	case 0:
		return int(meta)
	case last:
		return mapleRangeLen - 2
	}
	return mapleRangeLen - 1
}

func (w *mapleWalk) slot(typ, e, first, last uint64, depth int) bool {
	switch {
	case e == 0:
		return true
	case typ != mapleLeaf64:
		return w.node(e, first, last, depth+1)
	case e&3 == 2: // XA_ZERO_ENTRY and other internal entries
		return true
	}
	return w.yield(MapleEntry{First: first, Last: last, Entry: e}, nil)
}
