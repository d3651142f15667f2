package kernel

import (
	"fmt"
	"iter"
	"strings"

	"github.com/ovmigrate/ovmigrate/kernel/types"
)

// Object is a value of a C type at a place in kernel memory: an lvalue. It is for
// exploring; code that knows its members uses a Layout. Objects are cheap to copy
// and read memory only when asked for a value.
type Object struct {
	k     *Kernel
	typ   *types.Type
	addr  Addr
	field types.Field // of a bit-field, with BitOffset below 8
	path  string
}

// Object returns the object of type cname (a struct or union) at a. The error
// wraps ErrNoType.
func (k *Kernel) Object(cname string, a Addr) (Object, error) {
	t, err := k.types.Struct(cname)
	if err != nil {
		return Object{}, err
	}
	return Object{k: k, typ: t, addr: a, path: fmt.Sprintf("%s(%s)", cname, a)}, nil
}

// Global returns the object behind a kernel symbol. BTF does not describe global
// variables, so the caller names the type of struct that it is.
func (k *Kernel) Global(symbol, cname string) (Object, error) {
	a, err := k.Symbol(symbol)
	if err != nil {
		return Object{}, err
	}
	o, err := k.Object(cname, a)
	o.path = symbol
	return o, err
}

// Addr returns where the object lies.
func (o Object) Addr() Addr { return o.addr }

// Type returns the object's C type.
func (o Object) Type() *types.Type { return o.typ }

// Path returns the C expression that led to the object.
func (o Object) Path() string { return o.path }

func (o Object) fault(err error) error { return &PathError{Path: o.path, Err: err} }

// Field returns a member by a C path, such as "mm.start_code" or
// "children.next": pointers on the way are followed, as -> would. Errors: ErrNoType
// for a member that does not exist, ErrNil for a null pointer, *PathError.
func (o Object) Field(path string) (Object, error) {
	for _, part := range splitPath(path) {
		var err error
		if o, err = o.rvalueStruct(); err != nil {
			return Object{}, err
		}
		f, err := o.typ.Lookup(part)
		if err != nil {
			return Object{}, o.fault(err)
		}
		sep := "."
		if strings.HasPrefix(part, "[") {
			sep = ""
		} else if strings.HasSuffix(o.path, "->") {
			sep = ""
		}
		o.path += sep + part
		o.typ = f.Type
		o.field = types.Field{}
		if f.BitSize > 0 {
			o.field = types.Field{Type: f.Type, BitOffset: f.BitOffset % 8, BitSize: f.BitSize}
		}
		o.addr += Addr(f.BitOffset / 8)
	}
	return o, nil
}

// rvalueStruct follows pointers until o is something that has members.
func (o Object) rvalueStruct() (Object, error) {
	for range 4 {
		u, err := o.typ.Underlying()
		if err != nil {
			return o, o.fault(err)
		}
		if u.Kind != types.Pointer {
			return o, nil
		}
		if o, err = o.Deref(); err != nil {
			return o, err
		}
		o.path = strings.TrimSuffix(strings.TrimPrefix(o.path, "(*"), ")") + "->"
	}
	return o, o.fault(fmt.Errorf("%w: pointer to pointer to pointer", ErrNoType))
}

// splitPath cuts "a.b[2].c" and "a->b" into a, b, [2], c.
func splitPath(path string) []string {
	path = strings.ReplaceAll(path, "->", ".")
	path = strings.ReplaceAll(path, "[", ".[")
	var parts []string
	for p := range strings.SplitSeq(path, ".") {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return parts
}

// Deref returns what the pointer o points to. Errors: ErrNil, *PathError.
func (o Object) Deref() (Object, error) {
	u, err := o.typ.Underlying()
	if err != nil {
		return Object{}, o.fault(err)
	}
	if u.Kind != types.Pointer {
		return Object{}, o.fault(fmt.Errorf("%w: %s is no pointer", ErrNoType, o.typ))
	}
	a, err := o.k.ReadAddr(o.addr)
	if err != nil {
		return Object{}, o.fault(err)
	}
	if a == 0 {
		return Object{}, o.fault(ErrNil)
	}
	e, err := u.Elem()
	if err != nil {
		return Object{}, o.fault(err)
	}
	return Object{k: o.k, typ: e, addr: a, path: "(*" + o.path + ")"}, nil
}

// Uint returns the value of an integer, enum, pointer or bit-field, zero-extended.
func (o Object) Uint() (uint64, error) {
	v, _, err := o.scalar()
	return v, err
}

// Int returns the value of an integer, enum or bit-field, sign-extended if its
// type is signed.
func (o Object) Int() (int64, error) {
	v, bits, err := o.scalar()
	if err != nil {
		return 0, err
	}
	if u, err := o.typ.Underlying(); err == nil && u.Signed {
		shift := 64 - bits
		return int64(v<<shift) >> shift, nil
	}
	return int64(v), nil
}

func (o Object) scalar() (v uint64, bits int, err error) {
	u, err := o.typ.Underlying()
	if err != nil {
		return 0, 0, o.fault(err)
	}
	size := u.Size
	if n := o.field.BitSize; n > 0 {
		size = (o.field.BitOffset + n + 7) / 8
	}
	switch u.Kind {
	case types.Int, types.Enum, types.Pointer:
	default:
		return 0, 0, o.fault(fmt.Errorf("%w: %s is no number", ErrNoType, o.typ))
	}
	if size < 1 || size > 8 {
		return 0, 0, o.fault(fmt.Errorf("%w: %d bytes are no number", ErrNoType, size))
	}
	var buf [8]byte
	b, err := o.k.bytesAt(o.addr, size, buf[:size])
	if err != nil {
		return 0, 0, o.fault(err)
	}
	v = loadLE(b)
	if n := o.field.BitSize; n > 0 {
		return v >> o.field.BitOffset & (1<<n - 1), n, nil
	}
	return v, 8 * size, nil
}

// CString returns a char array, or what a char pointer points to, up to its NUL
// and at most max bytes.
func (o Object) CString(max int) (string, error) {
	u, err := o.typ.Underlying()
	if err != nil {
		return "", o.fault(err)
	}
	a := o.addr
	switch u.Kind {
	case types.Pointer:
		p, err := o.Deref()
		if err != nil {
			return "", err
		}
		a = p.addr
	case types.Array:
		max = min(max, u.Len)
	default:
		return "", o.fault(fmt.Errorf("%w: %s is no string", ErrNoType, o.typ))
	}
	s, err := o.k.CString(a, max)
	if err != nil {
		return "", o.fault(err)
	}
	return s, nil
}

// List treats o as a list_head and yields the objects of type cname that are
// linked through member. An error ends the walk. Source:
// include/linux/list.h:list_for_each_entry.
func (o Object) List(cname, member string) iter.Seq2[Object, error] {
	return o.entries(o.k.List(o.addr), cname, member)
}

// HList is List for an hlist_head.
func (o Object) HList(cname, member string) iter.Seq2[Object, error] {
	return o.entries(o.k.HList(o.addr), cname, member)
}

// RBTree is List for an rb_root or rb_root_cached, in order.
func (o Object) RBTree(cname, member string) iter.Seq2[Object, error] {
	return o.entries(o.k.RBTree(o.addr), cname, member)
}

func (o Object) entries(nodes iter.Seq2[Addr, error], cname, member string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		off, err := o.k.offsetOf(cname, member)
		if err != nil {
			yield(Object{}, o.fault(err))
			return
		}
		for node, err := range nodes {
			if err != nil {
				yield(Object{}, o.fault(err))
				return
			}
			if !yield(o.k.Object(cname, node-Addr(off))) {
				return
			}
		}
	}
}
