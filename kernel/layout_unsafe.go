package kernel

import (
	"encoding/binary"
	"unsafe"
)

// LoadInto is Load into *t, whose fields are all overwritten unless it fails.
func (l *Layout[T]) LoadInto(k *Kernel, a Addr, t *T) error {
	return l.core.loadInto(k, a, unsafe.Pointer(t))
}

// loadInto is LoadInto of the type that the layout is of.
func (l *layoutCore) loadInto(k *Kernel, a Addr, t unsafe.Pointer) error {
	p := l.plan(k)
	if p.err != nil {
		return p.err
	}
	if a == 0 {
		return &PathError{Path: p.cname, Err: ErrNil}
	}
	n := p.hi - p.lo
	b := k.view(a.Add(p.lo), n)
	if b == nil {
		buf := p.pool.Get().(*[]byte)
		defer p.pool.Put(buf)
		b = *buf
		if _, err := k.ReadAt(b, a.Add(p.lo)); err != nil {
			return &PathError{Path: p.cname, Addr: a, Err: err}
		}
	}
	// It holds no pointers: LayoutOf takes none.
	clear(unsafe.Slice((*byte)(t), l.typ.Size()))
	decodeInto(t, p, a, b)
	return nil
}

// decodeInto stores the members of a structure at a, whose bytes [lo,hi) are b, into
// what base points to. Reflection would cost five times as much and an allocation. The
// plan was made from that type itself, so every store stays inside it.
func decodeInto(base unsafe.Pointer, p *plan, a Addr, b []byte) {
	for i := range p.fields {
		f := &p.fields[i]
		dst := unsafe.Add(base, f.dst)
		switch f.op { // most are words
		case opWord8:
			*(*uint64)(dst) = binary.LittleEndian.Uint64(b[f.src-p.lo:])
			continue
		case opWord4:
			*(*uint32)(dst) = binary.LittleEndian.Uint32(b[f.src-p.lo:])
			continue
		case opAddr:
			*(*Addr)(dst) = a.Add(f.src)
			continue
		}
		src := b[f.src-p.lo:][:f.srcSize]
		if f.op == opCopy {
			copy(unsafe.Slice((*byte)(dst), f.srcSize), src)
			continue
		}
		v := loadLE(src)
		switch f.op {
		case opBits:
			v = v >> f.bit & (1<<f.len - 1)
		case opInt:
			shift := 64 - 8*uint(f.srcSize)
			v = uint64(int64(v<<shift) >> shift)
		case opBool:
			if v != 0 {
				v = 1
			}
		}
		switch f.dstSize {
		case 1:
			*(*uint8)(dst) = uint8(v)
		case 2:
			*(*uint16)(dst) = uint16(v)
		case 4:
			*(*uint32)(dst) = uint32(v)
		default:
			*(*uint64)(dst) = v
		}
	}
}

func loadLE(b []byte) uint64 {
	switch len(b) {
	case 8:
		return binary.LittleEndian.Uint64(b)
	case 4:
		return uint64(binary.LittleEndian.Uint32(b))
	case 2:
		return uint64(binary.LittleEndian.Uint16(b))
	case 1:
		return uint64(b[0])
	}
	var v uint64
	for i, c := range b {
		v |= uint64(c) << (8 * i)
	}
	return v
}
