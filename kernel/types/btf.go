package types

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"
)

// BTF kinds, from the kernel's include/uapi/linux/btf.h.
const (
	btfVoid = iota
	btfInt
	btfPtr
	btfArray
	btfStruct
	btfUnion
	btfEnum
	btfFwd
	btfTypedef
	btfVolatile
	btfConst
	btfRestrict
	btfFunc
	btfFuncProto
	btfVar
	btfDatasec
	btfFloat
	btfDeclTag
	btfTypeTag
	btfEnum64
)

const (
	btfMagic = 0xeb9f

	// maxTypes bounds the index. A whole distribution kernel has about 130,000.
	maxTypes = 4 << 20
)

// BTF is the type information of a kernel in the BTF format, indexed but not
// decoded. It implements Source and is safe for concurrent use.
type BTF struct {
	types   []byte // type section
	strings []byte
	offsets []uint32 // offset in types of type startID+i; that of void is unused

	// Of the BTF of a module: its ids and string offsets go on where those of
	// vmlinux end.
	base     *BTF
	startID  uint32
	startStr uint32

	names nameIndex

	mu      sync.RWMutex
	decoded map[uint32]*Type
	funcs   map[string]bool // answers of HasFunc
}

// ParseBTF indexes a BTF blob, such as the one between __start_BTF and __stop_BTF
// in a guest's memory. The blob is kept, not copied, and must not change. The
// error wraps ErrCorrupt. Source: kernel/bpf/btf.c:btf_parse_hdr.
func ParseBTF(blob []byte) (*BTF, error) { return parseBTF(blob, nil) }

// ParseSplitBTF indexes the BTF of a module, which refers to the types and names of
// base: of vmlinux, or of the module's own .BTF.base section ("distilled base") where
// it was built against another vmlinux. What the result does not have it looks up
// in base. The error wraps ErrCorrupt; that base is another than the one that the
// module was built with can show as an error, or as types that make no sense.
// Source: kernel/bpf/btf.c:btf_parse_module.
func ParseSplitBTF(blob []byte, base *BTF) (*BTF, error) { return parseBTF(blob, base) }

func parseBTF(blob []byte, base *BTF) (*BTF, error) {
	le := binary.LittleEndian
	if len(blob) < 24 || le.Uint16(blob) != btfMagic || blob[2] != 1 {
		return nil, fmt.Errorf("%w: no BTF header", ErrCorrupt)
	}
	hdrLen := uint64(le.Uint32(blob[4:]))
	typeOff, typeLen := uint64(le.Uint32(blob[8:])), uint64(le.Uint32(blob[12:]))
	strOff, strLen := uint64(le.Uint32(blob[16:])), uint64(le.Uint32(blob[20:]))
	n := uint64(len(blob))
	if hdrLen < 24 || hdrLen+typeOff+typeLen > n || hdrLen+strOff+strLen > n || strLen == 0 && base == nil {
		return nil, fmt.Errorf("%w: BTF sections exceed the blob of %d bytes", ErrCorrupt, n)
	}
	b := &BTF{
		types:   blob[hdrLen+typeOff:][:typeLen],
		strings: blob[hdrLen+strOff:][:strLen],
		decoded: make(map[uint32]*Type),
	}
	switch {
	case base == nil && b.strings[0] != 0, strLen > 0 && b.strings[strLen-1] != 0:
		return nil, fmt.Errorf("%w: BTF string section", ErrCorrupt)
	case base != nil && base.base != nil:
		return nil, fmt.Errorf("%w: BTF over BTF over BTF", ErrCorrupt)
	case base != nil:
		b.base, b.startID, b.startStr = base, uint32(len(base.offsets)), uint32(len(base.strings))
	}
	return b, b.index()
}

// count returns the number of types, those of the base and void included.
func (b *BTF) count() uint32 { return b.startID + uint32(len(b.offsets)) }

// head returns the header of a type and the bytes that follow it. id is neither void
// nor beyond count.
func (b *BTF) head(id uint32) (btfHeader, []byte) {
	if id < b.startID {
		return b.base.head(id)
	}
	off := b.offsets[id-b.startID]
	return b.header(off), b.types[off+12:]
}

// index finds where each type starts and hashes the names that can be asked for.
func (b *BTF) index() error {
	le := binary.LittleEndian
	b.offsets = make([]uint32, 0, len(b.types)/20+1)
	if b.base == nil {
		b.offsets = append(b.offsets, 0)
	}
	b.names.init(len(b.types) / 60)
	for off := 0; off < len(b.types); {
		if len(b.types)-off < 12 || len(b.offsets) >= maxTypes {
			return fmt.Errorf("%w: BTF type %d", ErrCorrupt, b.count())
		}
		id := b.count()
		// Half of what opening a guest takes: no more of the header is decoded than
		// is needed.
		head := le.Uint64(b.types[off:])
		name, kind, vlen := uint32(head), head>>56&0x1f, int(head>>32&0xffff)
		b.offsets = append(b.offsets, uint32(off))
		if btfKinds[kind].named && name != 0 {
			b.names.add(b.hashAt(name), id)
		}
		size := int(btfKinds[kind].fixed) + vlen*int(btfKinds[kind].each)
		if !btfKinds[kind].known || size > len(b.types)-off-12 {
			return fmt.Errorf("%w: BTF type %d of kind %d", ErrCorrupt, id, kind)
		}
		off += 12 + size
	}
	return nil
}

// btfKinds says for each kind how many bytes follow the header, in all and for each
// of its members, and whether its name can be asked for.
var btfKinds = [32]struct {
	known, named bool
	fixed, each  uint8
}{
	btfPtr: {known: true}, btfFwd: {known: true}, btfVolatile: {known: true}, btfConst: {known: true},
	btfRestrict: {known: true}, btfFunc: {known: true}, btfFloat: {known: true}, btfTypeTag: {known: true},
	btfTypedef: {known: true, named: true},
	btfInt:     {known: true, fixed: 4}, btfVar: {known: true, fixed: 4}, btfDeclTag: {known: true, fixed: 4},
	btfArray:     {known: true, fixed: 12},
	btfStruct:    {known: true, named: true, each: 12},
	btfUnion:     {known: true, named: true, each: 12},
	btfDatasec:   {known: true, named: true, each: 12},
	btfEnum64:    {known: true, named: true, each: 12},
	btfEnum:      {known: true, named: true, each: 8},
	btfFuncProto: {known: true, each: 8},
}

type btfHeader struct {
	name     uint32
	kind     uint8
	kindFlag bool
	vlen     int
	sizeType uint32
}

func (b *BTF) header(off uint32) btfHeader {
	le := binary.LittleEndian
	p := b.types[off : off+12]
	info := le.Uint32(p[4:])
	return btfHeader{
		name: le.Uint32(p), kind: uint8(info >> 24 & 0x1f), kindFlag: info>>31 != 0,
		vlen: int(info & 0xffff), sizeType: le.Uint32(p[8:]),
	}
}

// text returns the strings from off on; the first ends at a zero byte. It is nil if
// off is beyond them.
func (b *BTF) text(off uint32) []byte {
	if off < b.startStr {
		return b.base.text(off)
	}
	if off -= b.startStr; uint64(off) >= uint64(len(b.strings)) {
		return nil
	}
	return b.strings[off:]
}

func (b *BTF) str(off uint32) (string, error) {
	s := b.text(off)
	// A guest may change its strings after they were looked at.
	i := bytes.IndexByte(s, 0)
	if i < 0 {
		return "", fmt.Errorf("%w: string offset %#x", ErrCorrupt, off)
	}
	return string(s[:i]), nil
}

func (b *BTF) nameIs(off uint32, name string) bool {
	s := b.text(off)
	return len(name) < len(s) && string(s[:len(name)]) == name && s[len(name)] == 0
}

func (b *BTF) hashAt(off uint32) uint32 {
	h := uint32(2166136261)
	for _, c := range b.text(off) {
		if c == 0 {
			break
		}
		h = (h ^ uint32(c)) * 16777619
	}
	return h
}

func hashName(name string) uint32 {
	h := uint32(2166136261)
	for i := range len(name) {
		h = (h ^ uint32(name[i])) * 16777619
	}
	return h
}

// ids calls fn with every type of that name until it returns false.
func (b *BTF) ids(name string, fn func(id uint32, h btfHeader) bool) {
	hash := hashName(name)
	for l := b.names.first(hash); l != 0; l = b.names.links[l].next {
		if b.names.links[l].hash != hash {
			continue
		}
		id := b.names.links[l].id
		if h, _ := b.head(id); b.nameIs(h.name, name) && !fn(id, h) {
			return
		}
	}
}

// one returns the only type of that name whose kind is among kinds.
func (b *BTF) one(name, what string, kinds ...uint8) (*Type, error) {
	var found []uint32
	b.ids(name, func(id uint32, h btfHeader) bool {
		for _, k := range kinds {
			if h.kind == k {
				found = append(found, id)
			}
		}
		return len(found) < 8
	})
	switch len(found) {
	case 0:
		if b.base != nil {
			return b.base.one(name, what, kinds...)
		}
		return nil, fmt.Errorf("%w: %s %s", ErrNoType, what, name)
	case 1:
		return b.byID(found[0])
	}
	return nil, &AmbiguousError{Name: name, N: len(found)}
}

// Struct implements Source.
func (b *BTF) Struct(name string) (*Type, error) {
	return b.one(name, "struct", btfStruct, btfUnion)
}

// Enum implements Source.
func (b *BTF) Enum(name string) (*Type, error) { return b.one(name, "enum", btfEnum, btfEnum64) }

// Typedef implements Source.
func (b *BTF) Typedef(name string) (*Type, error) { return b.one(name, "typedef", btfTypedef) }

// HasFunc implements Source. It walks all types, once for a name: functions are a
// third of all names, and too few are asked for to be worth indexing.
func (b *BTF) HasFunc(name string) bool {
	b.mu.RLock()
	has, known := b.funcs[name]
	b.mu.RUnlock()
	if known {
		return has
	}
	has = b.findFunc(name)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.funcs == nil {
		b.funcs = make(map[string]bool)
	}
	b.funcs[name] = has
	return has
}

func (b *BTF) findFunc(name string) bool {
	for id := max(b.startID, 1); id < b.count(); id++ {
		if h, _ := b.head(id); h.kind == btfFunc && b.nameIs(h.name, name) {
			return true
		}
	}
	return b.base != nil && b.base.HasFunc(name)
}

// PerCPU implements Source from the DATASEC ".data..percpu" of vmlinux.
func (b *BTF) PerCPU(name string) (uint64, *Type, error) {
	if b.base != nil {
		return b.base.PerCPU(name)
	}
	le := binary.LittleEndian
	var off uint32
	var typ, sec uint32
	b.ids(".data..percpu", func(id uint32, h btfHeader) bool {
		if h.kind != btfDatasec {
			return true
		}
		_, p := b.head(id)
		for i := range h.vlen {
			v := le.Uint32(p[12*i:])
			if v == 0 || v >= b.count() {
				continue
			}
			vh, _ := b.head(v)
			if vh.kind == btfVar && b.nameIs(vh.name, name) {
				typ, off, sec = vh.sizeType, le.Uint32(p[12*i+4:]), id
				return false
			}
		}
		return true
	})
	if sec == 0 {
		return 0, nil, fmt.Errorf("%w: per-CPU variable %s", ErrNoType, name)
	}
	t, err := b.byID(typ)
	return uint64(off), t, err
}
