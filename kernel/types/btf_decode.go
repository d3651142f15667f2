package types

import (
	"encoding/binary"
	"fmt"
)

// byID decodes a type, once. Modifiers are dropped here so that nobody above has
// to know them.
func (b *BTF) byID(id uint32) (*Type, error) {
	if id < b.startID {
		return b.base.byID(id)
	}
	b.mu.RLock()
	t := b.decoded[id]
	b.mu.RUnlock()
	if t != nil {
		return t, nil
	}
	t, err := b.decode(id)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if first := b.decoded[id]; first != nil {
		return first, nil // types are compared by pointer
	}
	b.decoded[id] = t
	return t, nil
}

func (b *BTF) decode(id uint32) (*Type, error) {
	real, err := b.skipModifiers(id)
	if err != nil {
		return nil, err
	}
	if real != id {
		return b.byID(real)
	}
	if id == 0 {
		return &Type{Kind: Void, src: b}, nil
	}
	h, body := b.head(id)
	name, err := b.str(h.name)
	if err != nil {
		return nil, err
	}
	t := &Type{Name: name, src: b}
	switch h.kind {
	case btfInt:
		t.Kind, t.Size = Int, int(h.sizeType)
		t.Signed = binary.LittleEndian.Uint32(body)>>24&1 != 0
	case btfPtr:
		t.Kind, t.Size, t.elem = Pointer, 8, h.sizeType
	case btfArray:
		t.Kind = Array
		t.elem = binary.LittleEndian.Uint32(body)
		t.Len = int(binary.LittleEndian.Uint32(body[8:]))
	case btfStruct, btfUnion:
		return b.decodeStruct(t, h, body)
	case btfEnum, btfEnum64:
		return b.decodeEnum(t, h, body)
	case btfFwd:
		t.Kind = Forward
	case btfTypedef:
		t.Kind, t.elem = Typedef, h.sizeType
	case btfFunc:
		t.Kind, t.elem = Func, h.sizeType
	case btfFuncProto:
		t.Kind = FuncProto
	case btfFloat:
		t.Kind, t.Size = Float, int(h.sizeType)
	case btfDatasec:
		t.Kind, t.Size = Datasec, int(h.sizeType)
	default:
		return nil, fmt.Errorf("%w: BTF kind %d", ErrCorrupt, h.kind)
	}
	return t, nil
}

// skipModifiers returns the type behind const, volatile and such, and that of a variable.
func (b *BTF) skipModifiers(id uint32) (uint32, error) {
	for range 32 {
		if id >= b.count() {
			return 0, fmt.Errorf("%w: BTF type id %d", ErrCorrupt, id)
		}
		if id == 0 {
			return 0, nil
		}
		h, _ := b.head(id)
		switch h.kind {
		case btfConst, btfVolatile, btfRestrict, btfTypeTag, btfVar:
			id = h.sizeType
		default:
			return id, nil
		}
	}
	return 0, fmt.Errorf("%w: BTF modifier chain too long", ErrCorrupt)
}

func (b *BTF) decodeStruct(t *Type, h btfHeader, body []byte) (*Type, error) {
	le := binary.LittleEndian
	t.Kind, t.Size = Struct, int(h.sizeType)
	if h.kind == btfUnion {
		t.Kind = Union
	}
	t.Members = make([]Member, h.vlen)
	for i := range t.Members {
		p := body[12*i:]
		name, err := b.str(le.Uint32(p))
		if err != nil {
			return nil, err
		}
		m := Member{Name: name, src: b, typ: le.Uint32(p[4:])}
		off := le.Uint32(p[8:])
		if h.kindFlag {
			m.BitSize, off = int(off>>24), off&0xffffff
		}
		m.BitOffset = int(off)
		if m.BitOffset > 8*t.Size {
			return nil, fmt.Errorf("%w: %s.%s lies outside", ErrCorrupt, t.Name, name)
		}
		t.Members[i] = m
	}
	return t, nil
}

func (b *BTF) decodeEnum(t *Type, h btfHeader, body []byte) (*Type, error) {
	le := binary.LittleEndian
	t.Kind, t.Size, t.Signed = Enum, int(h.sizeType), h.kindFlag
	t.Values = make([]EnumValue, h.vlen)
	for i := range t.Values {
		var v int64
		var p []byte
		if h.kind == btfEnum {
			p = body[8*i:]
			v = int64(int32(le.Uint32(p[4:])))
		} else {
			p = body[12*i:]
			v = int64(uint64(le.Uint32(p[4:])) | uint64(le.Uint32(p[8:]))<<32)
		}
		name, err := b.str(le.Uint32(p))
		if err != nil {
			return nil, err
		}
		t.Values[i] = EnumValue{Name: name, Value: v}
	}
	return t, nil
}
