package types

import (
	"debug/dwarf"
	"fmt"
	"math"
)

// byID decodes the type at an offset, once. 0 is void. Modifiers are dropped.
func (d *DWARF) byID(id uint32) (*Type, error) {
	d.mu.RLock()
	t := d.decoded[id]
	d.mu.RUnlock()
	if t != nil {
		return t, nil
	}
	t, err := d.decode(id)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if first := d.decoded[id]; first != nil {
		return first, nil // types are compared by pointer
	}
	d.decoded[id] = t
	return t, nil
}

func (d *DWARF) decode(id uint32) (*Type, error) {
	if id == 0 {
		return &Type{Kind: Void, src: d}, nil
	}
	e, err := d.skipModifiers(id)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return d.byID(0)
	}
	if real := d.definition(e); real != id {
		return d.byID(real)
	}
	t := &Type{Name: str(e, dwarf.AttrName), src: d, elem: refID(e), Size: byteSize(e)}
	switch e.Tag {
	case dwarf.TagBaseType:
		t.Kind, t.elem = Int, 0
		const float, signed, signedChar = 0x04, 0x05, 0x06
		switch enc, _ := e.Val(dwarf.AttrEncoding).(int64); enc {
		case float:
			t.Kind = Float
		case signed, signedChar:
			t.Signed = true
		}
	case dwarf.TagPointerType, dwarf.TagReferenceType:
		t.Kind = Pointer
		if t.Size == 0 {
			t.Size = 8
		}
	case dwarf.TagArrayType:
		return d.decodeArray(t, e)
	case dwarf.TagStructType, dwarf.TagClassType, dwarf.TagUnionType:
		return d.decodeStruct(t, e)
	case dwarf.TagEnumerationType:
		return d.decodeEnum(t, e)
	case dwarf.TagTypedef:
		t.Kind, t.Size = Typedef, 0
	case dwarf.TagSubroutineType:
		t.Kind, t.Size = FuncProto, 0
	case dwarf.TagSubprogram:
		t.Kind, t.Size = Func, 0
	case dwarf.TagUnspecifiedType:
		t.Kind, t.Name = Void, ""
	default:
		return nil, fmt.Errorf("%w: DWARF tag %v is no type", ErrCorrupt, e.Tag)
	}
	return t, nil
}

// skipModifiers returns the entry behind const, volatile and such; nil for void.
func (d *DWARF) skipModifiers(id uint32) (*dwarf.Entry, error) {
	for range 32 {
		e, err := d.entry(id)
		if err != nil {
			return nil, err
		}
		switch e.Tag {
		case dwarf.TagConstType, dwarf.TagVolatileType, dwarf.TagRestrictType, dwarf.TagAtomicType:
			if id = refID(e); id == 0 {
				return nil, nil
			}
		default:
			return e, nil
		}
	}
	return nil, fmt.Errorf("%w: DWARF modifier chain too long", ErrCorrupt)
}

// definition returns the offset of what stands for the type that e describes: the
// first of equal definitions, or for a mere declaration the only definition of that
// name anywhere.
func (d *DWARF) definition(e *dwarf.Entry) uint32 {
	if declared, _ := e.Val(dwarf.AttrDeclaration).(bool); declared {
		name := str(e, dwarf.AttrName)
		var found uint32
		hash := hashName(name)
		for l := d.names.first(hash); l != 0; l = d.names.links[l].next {
			if d.names.links[l].hash != hash {
				continue
			}
			o, err := d.entry(d.names.links[l].id)
			if err != nil || o.Tag != e.Tag || str(o, dwarf.AttrName) != name {
				continue
			}
			if found != 0 {
				return uint32(e.Offset)
			}
			found = uint32(o.Offset)
		}
		if found != 0 {
			return found
		}
	} else if key, ok := keyOf(e); ok {
		if off, ok := d.canonical[key]; ok {
			return off
		}
	}
	return uint32(e.Offset)
}

func byteSize(e *dwarf.Entry) int {
	n, _ := e.Val(dwarf.AttrByteSize).(int64)
	if n < 0 || n > math.MaxInt32 {
		return 0
	}
	return int(n)
}

// maxMembers bounds the members of one struct and the values of one enum; BTF
// cannot have more.
const maxMembers = 1<<16 - 1

// children calls fn with the children of e.
func (d *DWARF) children(e *dwarf.Entry, fn func(*dwarf.Entry) error) error {
	if !e.Children {
		return nil
	}
	r := d.data.Reader()
	r.Seek(e.Offset)
	if _, err := r.Next(); err != nil {
		return wrapDWARF(err)
	}
	for range maxMembers {
		c, err := r.Next()
		if err != nil {
			return wrapDWARF(err)
		}
		if c == nil || c.Tag == 0 {
			return nil
		}
		if err := fn(c); err != nil {
			return err
		}
		r.SkipChildren()
	}
	return fmt.Errorf("%w: DWARF entry at %#x has too many children", ErrCorrupt, e.Offset)
}

// decodeArray makes one array of what C declares with several dimensions, as BTF has
// it, so that the same code works with both.
func (d *DWARF) decodeArray(t *Type, e *dwarf.Entry) (*Type, error) {
	t.Kind, t.Size, t.Name = Array, 0, ""
	total, dims := int64(1), 0
	err := d.children(e, func(c *dwarf.Entry) error {
		if c.Tag != dwarf.TagSubrangeType {
			return nil
		}
		n := int64(0) // without bounds: a flexible array member
		if v, ok := c.Val(dwarf.AttrCount).(int64); ok {
			n = v
		} else if v, ok := c.Val(dwarf.AttrUpperBound).(int64); ok && v != math.MaxUint32 {
			n = v + 1 // [0] has the bound -1, in 32 or 64 bits
		}
		if n < 0 || n > math.MaxInt32 || total*n > math.MaxInt32 {
			return fmt.Errorf("%w: array of %d elements", ErrCorrupt, n)
		}
		total *= n
		dims++
		return nil
	})
	if dims > 0 {
		t.Len = int(total)
	}
	return t, err
}

func (d *DWARF) decodeStruct(t *Type, e *dwarf.Entry) (*Type, error) {
	t.Kind, t.elem = Struct, 0
	if e.Tag == dwarf.TagUnionType {
		t.Kind = Union
	}
	if declared, _ := e.Val(dwarf.AttrDeclaration).(bool); declared {
		t.Kind, t.Size = Forward, 0
		return t, nil
	}
	t.Members = []Member{}
	err := d.children(e, func(c *dwarf.Entry) error {
		if c.Tag != dwarf.TagMember {
			return nil
		}
		m := Member{Name: str(c, dwarf.AttrName), src: d, typ: refID(c)}
		if err := d.place(&m, c); err != nil {
			return fmt.Errorf("%s.%s: %w", t.Name, m.Name, err)
		}
		if m.BitOffset < 0 || m.BitOffset+m.BitSize > 8*t.Size {
			return fmt.Errorf("%w: %s.%s lies outside", ErrCorrupt, t.Name, m.Name)
		}
		t.Members = append(t.Members, m)
		return nil
	})
	return t, err
}

// place sets where a member is. A bit-field has DW_AT_data_bit_offset, from the start
// of the struct (DWARF 5, and 4 by some compilers), or DW_AT_bit_offset, from the most
// significant bit of a storage unit of its type's size (up to DWARF 4).
func (d *DWARF) place(m *Member, c *dwarf.Entry) error {
	const opPlusUconst = 0x23
	var at int64
	switch loc := c.Val(dwarf.AttrDataMemberLoc).(type) {
	case int64:
		at = loc
	case []byte:
		if len(loc) < 2 || loc[0] != opPlusUconst {
			return fmt.Errorf("%w: its place is computed", ErrCorrupt)
		}
		var shift uint
		for _, b := range loc[1:] {
			if shift > 28 {
				break
			}
			at |= int64(b&0x7f) << shift
			shift += 7
		}
	}
	if at < 0 || at > math.MaxInt32/8 {
		return fmt.Errorf("%w: at byte %d", ErrCorrupt, at)
	}
	m.BitOffset = int(8 * at)
	bits, ok := c.Val(dwarf.AttrBitSize).(int64)
	if !ok {
		return nil
	}
	if bits < 0 || bits > 128 {
		return fmt.Errorf("%w: %d bits", ErrCorrupt, bits)
	}
	m.BitSize = int(bits)
	if off, ok := c.Val(dwarf.AttrDataBitOffset).(int64); ok {
		if off < 0 || off > math.MaxInt32 {
			return fmt.Errorf("%w: at bit %d", ErrCorrupt, off)
		}
		m.BitOffset += int(off)
		return nil
	}
	off, ok := c.Val(dwarf.AttrBitOffset).(int64)
	if !ok {
		return nil
	}
	unit := byteSize(c)
	if unit == 0 {
		var err error
		if unit, err = d.unitSize(m.typ); err != nil {
			return err
		}
	}
	if off < -128 || off > 128 || unit > 16 {
		return fmt.Errorf("%w: at bit %d of %d bytes", ErrCorrupt, off, unit)
	}
	m.BitOffset += 8*unit - int(off) - m.BitSize
	return nil
}

// unitSize returns the size of the integer or enum at id, without decoding it: the
// type of a bit-field may claim to be the struct that is being decoded.
func (d *DWARF) unitSize(id uint32) (int, error) {
	for range 32 {
		e, err := d.skipModifiers(id)
		if err != nil {
			return 0, err
		}
		if e == nil || e.Tag != dwarf.TagTypedef {
			if e == nil || byteSize(e) == 0 {
				break
			}
			return byteSize(e), nil
		}
		if id = refID(e); id == 0 {
			break
		}
	}
	return 0, fmt.Errorf("%w: a bit-field of what has no size", ErrCorrupt)
}

func (d *DWARF) decodeEnum(t *Type, e *dwarf.Entry) (*Type, error) {
	t.Kind, t.elem = Enum, 0
	if declared, _ := e.Val(dwarf.AttrDeclaration).(bool); declared {
		t.Kind, t.Size = Forward, 0
		return t, nil
	}
	t.Values = []EnumValue{}
	err := d.children(e, func(c *dwarf.Entry) error {
		if c.Tag == dwarf.TagEnumerator {
			v, _ := c.Val(dwarf.AttrConstValue).(int64)
			t.Values = append(t.Values, EnumValue{Name: str(c, dwarf.AttrName), Value: v})
			t.Signed = t.Signed || v < 0
		}
		return nil
	})
	return t, err
}
