package types

import (
	"debug/dwarf"
	"encoding/binary"
	"fmt"
	"sync"
)

// DWARF is the type information of a program with debug information: for kernels
// without BTF, a vmlinux with DWARF 4 or 5. It implements Source and is safe for
// concurrent use. Types are decoded when they are asked for.
//
// Every compilation unit describes every type it uses, so that one structure is there
// some thousand times. One of those that are equal by name, kind, size and line stands
// for all.
type DWARF struct {
	data        *dwarf.Data
	perCPUStart uint64
	names       nameIndex // of dieKeys
	canonical   map[dieKey]uint32

	mu      sync.RWMutex
	decoded map[uint32]*Type
}

// dieKey tells definitions of one name apart.
type dieKey struct {
	name string
	tag  dwarf.Tag
	size int64
	line int64
}

// ReadDWARF indexes the names in debug information, on all processors, and keeps data.
// perCPUStart is the address of the symbol __per_cpu_start in the same file. The
// error wraps ErrCorrupt.
func ReadDWARF(data *dwarf.Data, perCPUStart uint64) (*DWARF, error) {
	d := &DWARF{data: data, perCPUStart: perCPUStart, decoded: make(map[uint32]*Type)}
	var err error
	if d.canonical, err = indexDWARF(data); err != nil {
		return nil, err
	}
	d.names.init(len(d.canonical))
	for key, off := range d.canonical {
		d.names.add(hashName(key.name), off)
	}
	return d, nil
}

// one returns the type called name whose tag is among tags. Several definitions must
// agree.
func (d *DWARF) one(name, what string, tags ...dwarf.Tag) (*Type, error) {
	var found []*Type
	var firstErr error
	hash := hashName(name)
	for l := d.names.first(hash); l != 0; l = d.names.links[l].next {
		if d.names.links[l].hash != hash {
			continue
		}
		e, err := d.entry(d.names.links[l].id)
		if err != nil {
			return nil, err
		}
		if !hasTag(tags, e.Tag) || str(e, dwarf.AttrName) != name {
			continue
		}
		t, err := d.byID(uint32(e.Offset))
		if err != nil {
			firstErr = err
			continue
		}
		if !containsLike(found, t) {
			if found = append(found, t); len(found) == 8 {
				break
			}
		}
	}
	switch {
	case len(found) > 1:
		return nil, &AmbiguousError{Name: name, N: len(found)}
	case len(found) == 1:
		return found[0], nil
	case firstErr != nil:
		return nil, firstErr
	}
	return nil, fmt.Errorf("%w: %s %s", ErrNoType, what, name)
}

func hasTag(tags []dwarf.Tag, tag dwarf.Tag) bool {
	for _, t := range tags {
		if t == tag {
			return true
		}
	}
	return false
}

// containsLike says whether one of all has the same layout as t, as far as C code that
// uses it can tell.
func containsLike(all []*Type, t *Type) bool {
	for _, o := range all {
		if o == t || o.like(t, 0) {
			return true
		}
	}
	return false
}

// like compares definitions, through anonymous types and not through named ones.
func (t *Type) like(o *Type, depth int) bool {
	if t.Kind != o.Kind || t.Name != o.Name || t.Size != o.Size || t.Len != o.Len ||
		len(t.Members) != len(o.Members) || len(t.Values) != len(o.Values) {
		return false
	}
	for i := range t.Values {
		if t.Values[i] != o.Values[i] {
			return false
		}
	}
	for i := range t.Members {
		a, b := &t.Members[i], &o.Members[i]
		if a.Name != b.Name || a.BitOffset != b.BitOffset || a.BitSize != b.BitSize {
			return false
		}
		at, err1 := a.Type()
		bt, err2 := b.Type()
		if err1 != nil || err2 != nil || !at.sameRef(bt, depth+1) {
			return false
		}
	}
	if t.Kind == Typedef {
		a, err1 := t.Elem()
		b, err2 := o.Elem()
		return err1 == nil && err2 == nil && a.sameRef(b, depth+1)
	}
	return true
}

// sameRef compares types that a definition refers to.
func (t *Type) sameRef(o *Type, depth int) bool {
	if t == o {
		return true
	}
	if depth > 8 || t.Kind != o.Kind || t.Name != o.Name {
		return false
	}
	switch t.Kind {
	case Pointer, Array:
		a, err1 := t.Elem()
		b, err2 := o.Elem()
		return t.Len == o.Len && err1 == nil && err2 == nil && a.sameRef(b, depth+1)
	case Struct, Union, Enum:
		return t.Name != "" || t.like(o, depth)
	}
	return t.Size == o.Size
}

// Struct implements Source.
func (d *DWARF) Struct(name string) (*Type, error) {
	return d.one(name, "struct", dwarf.TagStructType, dwarf.TagUnionType)
}

// Enum implements Source.
func (d *DWARF) Enum(name string) (*Type, error) {
	return d.one(name, "enum", dwarf.TagEnumerationType)
}

// Typedef implements Source.
func (d *DWARF) Typedef(name string) (*Type, error) {
	return d.one(name, "typedef", dwarf.TagTypedef)
}

// HasFunc implements Source. Functions that were inlined everywhere count.
func (d *DWARF) HasFunc(name string) bool { return d.find(name, dwarf.TagSubprogram) != nil }

// find returns a definition of name, nil if there is none.
func (d *DWARF) find(name string, tag dwarf.Tag) *dwarf.Entry {
	hash := hashName(name)
	for l := d.names.first(hash); l != 0; l = d.names.links[l].next {
		if d.names.links[l].hash != hash {
			continue
		}
		e, err := d.entry(d.names.links[l].id)
		if err == nil && e.Tag == tag && str(e, dwarf.AttrName) == name {
			return e
		}
	}
	return nil
}

// Variable returns the address that a global or static variable was linked at and
// its type, which BTF does not have. Of several static ones it is any. The error wraps
// ErrNoType.
func (d *DWARF) Variable(name string) (addr uint64, t *Type, err error) {
	e := d.find(name, dwarf.TagVariable)
	if e == nil {
		return 0, nil, fmt.Errorf("%w: variable %s", ErrNoType, name)
	}
	loc, _ := e.Val(dwarf.AttrLocation).([]byte)
	const opAddr = 0x03
	if len(loc) != 9 || loc[0] != opAddr {
		return 0, nil, fmt.Errorf("%w: variable %s has no fixed address", ErrNoType, name)
	}
	if t, err = d.ref(e); err != nil {
		return 0, nil, err
	}
	return binary.LittleEndian.Uint64(loc[1:]), t, nil
}

// PerCPU implements Source.
func (d *DWARF) PerCPU(name string) (uint64, *Type, error) {
	addr, t, err := d.Variable(name)
	if err != nil {
		return 0, nil, fmt.Errorf("per-CPU variable: %w", err)
	}
	return addr - d.perCPUStart, t, nil
}

// entry reads the debugging entry at off.
func (d *DWARF) entry(off uint32) (*dwarf.Entry, error) {
	r := d.data.Reader()
	r.Seek(dwarf.Offset(off))
	e, err := r.Next()
	if err != nil || e == nil || e.Tag == 0 {
		return nil, fmt.Errorf("%w: DWARF entry at %#x: %v", ErrCorrupt, off, err)
	}
	return e, nil
}

// ref returns the type that e refers to, void if it says none.
func (d *DWARF) ref(e *dwarf.Entry) (*Type, error) { return d.byID(refID(e)) }

func refID(e *dwarf.Entry) uint32 {
	off, _ := e.Val(dwarf.AttrType).(dwarf.Offset)
	return uint32(off) // 0 is the header of a unit: void
}

func str(e *dwarf.Entry, a dwarf.Attr) string {
	s, _ := e.Val(a).(string)
	return s
}
