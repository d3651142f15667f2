// Package types is the model of C types that guest memory is read through.
//
// A kernel built with CONFIG_DEBUG_INFO_BTF carries the layout of every structure
// in its own memory, as BTF. [ParseBTF] indexes that blob in about a millisecond
// and decodes single types when they are asked for, so that opening a guest costs
// only the structures that are used. Other descriptions (DWARF) implement the same
// [Source].
//
// All offsets are in bits from the start of the outermost structure, because C
// bit-fields have no byte offset.
package types

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrNoType is wrapped by every error about a type or member that a guest's type
// information does not have.
var ErrNoType = errors.New("no such type")

// ErrCorrupt is wrapped by errors about type information that contradicts itself.
var ErrCorrupt = errors.New("corrupt type information")

// AmbiguousError says that several different types share a name.
type AmbiguousError struct {
	Name string
	N    int
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("type %s: %d different definitions", e.Name, e.N)
}

// Kind is what sort of C type a Type is.
type Kind uint8

// The kinds of C types. Const, volatile and restrict are not kinds: they are
// dropped when a type is resolved.
const (
	Void Kind = iota
	Int
	Pointer
	Array
	Struct
	Union
	Enum
	Forward
	Typedef
	Func
	FuncProto
	Float
	Var
	Datasec
)

var kindNames = [...]string{"void", "int", "pointer", "array", "struct", "union", "enum", "forward", "typedef", "func", "func_proto", "float", "var", "datasec"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "kind" + strconv.Itoa(int(k))
}

// Source is a description of a kernel's types. It is safe for concurrent use.
type Source interface {
	// Struct returns the struct or union called name. Errors: ErrNoType,
	// *AmbiguousError.
	Struct(name string) (*Type, error)
	// Enum returns the enum called name.
	Enum(name string) (*Type, error)
	// Typedef returns the typedef called name.
	Typedef(name string) (*Type, error)
	// HasFunc says whether the kernel has a function of that name, which tells
	// features apart where structures do not.
	HasFunc(name string) bool
	// PerCPU returns the offset of a per-CPU variable from the start of the
	// per-CPU area (__per_cpu_start) and its type.
	PerCPU(name string) (offset uint64, t *Type, err error)
}

// Type is one C type. Types are immutable once handed out, compared by pointer
// within one Source, and safe for concurrent use.
type Type struct {
	Kind    Kind
	Name    string
	Size    int // bytes; 0 for void, functions and forward declarations
	Signed  bool
	Len     int      // elements of an array
	Members []Member // of a struct or union, in declaration order
	Values  []EnumValue

	src  resolver
	elem uint32
}

// resolver is a Source as types see it that refer to others: by a number that means
// something to the Source only.
type resolver interface {
	byID(id uint32) (*Type, error)
}

// Member is one member of a struct or union.
type Member struct {
	Name      string // empty for an anonymous struct or union
	BitOffset int    // from the start of the struct
	BitSize   int    // 0 unless a bit-field

	src resolver
	typ uint32
}

// EnumValue is one constant of an enum.
type EnumValue struct {
	Name  string
	Value int64
}

// Type returns the member's type.
func (m *Member) Type() (*Type, error) { return m.src.byID(m.typ) }

// Elem returns what a pointer points to, what an array holds, or what a typedef
// stands for.
func (t *Type) Elem() (*Type, error) {
	switch t.Kind {
	case Pointer, Array, Typedef:
		return t.src.byID(t.elem)
	}
	return nil, fmt.Errorf("%w: %s has no element type", ErrNoType, t)
}

// Underlying returns t with all typedefs resolved.
func (t *Type) Underlying() (*Type, error) {
	for range 32 {
		if t.Kind != Typedef {
			return t, nil
		}
		var err error
		if t, err = t.Elem(); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: typedef chain too long", ErrCorrupt)
}

// String returns the type as C writes it, roughly: "struct mm_struct *".
func (t *Type) String() string {
	if t == nil {
		return "?"
	}
	return t.str(0)
}

func (t *Type) str(depth int) string {
	name := t.Name
	if name == "" {
		name = "{…}"
	}
	switch t.Kind {
	case Void:
		return "void"
	case Struct, Union, Enum:
		return t.Kind.String() + " " + name
	case Pointer, Array:
		e, err := t.Elem()
		if err != nil || depth > 8 {
			return "?"
		}
		if t.Kind == Pointer {
			return strings.TrimSuffix(e.str(depth+1), " ") + " *"
		}
		return fmt.Sprintf("%s[%d]", e.str(depth+1), t.Len)
	case FuncProto:
		return "fn()"
	}
	return name
}

// EnumValue returns the value of the enum constant name.
func (t *Type) EnumValue(name string) (int64, error) {
	for _, v := range t.Values {
		if v.Name == name {
			return v.Value, nil
		}
	}
	return 0, fmt.Errorf("%w: %s has no constant %s", ErrNoType, t, name)
}

// Field is a place inside a structure, as [Type.Lookup] finds it.
type Field struct {
	Type      *Type
	BitOffset int
	BitSize   int // 0 unless a bit-field
}

// Offset returns the field's offset in bytes. It is meaningless for bit-fields.
func (f Field) Offset() int { return f.BitOffset / 8 }

// Lookup finds a member by its C path within a struct or union, for example
// "signal.shared_pending" or "numbers[1].nr". Members of anonymous structs and
// unions are found as C does. It does not follow pointers. The error wraps
// ErrNoType and names the first part of the path that is missing.
func (t *Type) Lookup(path string) (Field, error) {
	f := Field{Type: t}
	rest := path
	for rest != "" {
		var part string
		if i := strings.IndexAny(rest[1:], ".["); i >= 0 {
			part, rest = rest[:i+1], rest[i+1:]
		} else {
			part, rest = rest, ""
		}
		part = strings.TrimPrefix(part, ".")
		var err error
		if strings.HasPrefix(part, "[") {
			f, err = f.index(part)
		} else {
			f, err = f.member(part)
		}
		if err != nil {
			return Field{}, fmt.Errorf("%s: %w", path, err)
		}
	}
	return f, nil
}

func (f Field) index(part string) (Field, error) {
	u, err := f.Type.Underlying()
	if err != nil {
		return f, err
	}
	i, err := strconv.Atoi(strings.Trim(part, "[]"))
	if err != nil || !strings.HasSuffix(part, "]") {
		return f, fmt.Errorf("%w: bad index %s", ErrNoType, part)
	}
	if u.Kind != Array || i < 0 || (u.Len > 0 && i >= u.Len) {
		return f, fmt.Errorf("%w: %s has no element %d", ErrNoType, u, i)
	}
	e, err := u.Elem()
	if err != nil {
		return f, err
	}
	size, err := e.SizeOf()
	if err != nil {
		return f, err
	}
	return Field{Type: e, BitOffset: f.BitOffset + 8*i*size}, nil
}

func (f Field) member(name string) (Field, error) {
	u, err := f.Type.Underlying()
	if err != nil {
		return f, err
	}
	g, ok := u.find(name, 0)
	if !ok {
		return f, fmt.Errorf("%w: %s has no member %s", ErrNoType, u, name)
	}
	g.BitOffset += f.BitOffset
	return g, nil
}

func (t *Type) find(name string, depth int) (Field, bool) {
	if depth > 16 || (t.Kind != Struct && t.Kind != Union) {
		return Field{}, false
	}
	for i := range t.Members {
		m := &t.Members[i]
		if m.Name != name && m.Name != "" {
			continue
		}
		mt, err := m.Type()
		if err != nil {
			continue
		}
		if m.Name == name {
			return Field{Type: mt, BitOffset: m.BitOffset, BitSize: m.BitSize}, true
		}
		if u, err := mt.Underlying(); err == nil {
			if f, ok := u.find(name, depth+1); ok {
				f.BitOffset += m.BitOffset
				return f, true
			}
		}
	}
	return Field{}, false
}

// SizeOf returns the size of a value of the type in bytes, through typedefs.
func (t *Type) SizeOf() (int, error) {
	u, err := t.Underlying()
	if err != nil {
		return 0, err
	}
	if u.Kind != Array {
		return u.Size, nil
	}
	e, err := u.Elem()
	if err != nil {
		return 0, err
	}
	// Arrays of arrays are as deep as C code makes them; a cycle is not C.
	n := u.Len
	for depth := 0; ; depth++ {
		eu, err := e.Underlying()
		if err != nil {
			return 0, err
		}
		if eu.Kind != Array {
			if eu.Size > 0 && n > (1<<40)/eu.Size {
				return 0, fmt.Errorf("%w: %s is too large", ErrCorrupt, t)
			}
			return n * eu.Size, nil
		}
		if depth > 8 || (eu.Len > 0 && n > (1<<40)/eu.Len) {
			return 0, fmt.Errorf("%w: %s is too large", ErrCorrupt, t)
		}
		n *= eu.Len
		if e, err = eu.Elem(); err != nil {
			return 0, err
		}
	}
}
