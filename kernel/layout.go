package kernel

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/ovmigrate/ovmigrate/kernel/cfi"
	"github.com/ovmigrate/ovmigrate/kernel/debugfile"
	"github.com/ovmigrate/ovmigrate/kernel/types"
)

// Layout reads some members of a C structure into a Go struct of type T, with one
// memory access and no allocation. Fields are tied to members by tags:
//
//	type task struct {
//		State uint64   `k:"__state|state"`        // the first of these that exists
//		Comm  [16]byte `k:"comm"`                 // arrays of integers
//		MM    Addr     `k:"mm"`                   // pointers
//		Tasks Addr     `k:"&tasks"`               // the member's address, not its value
//		RCU   uint32   `k:"rcu_users,opt"`        // zero where the kernel has no such member
//		Bit   bool     `k:"frozen"`               // bit-fields
//		Head  Addr     `k:"signal.thread_head"`   // members of members; pointers are not followed
//	}
//	var taskLayout = kernel.LayoutOf[task]("task_struct")
//
// Integers may be wider in Go than in C, never narrower. A Layout is made once,
// usually in a package variable, and used with any number of kernels; it is safe
// for concurrent use.
type Layout[T any] struct{ core layoutCore }

// layoutCore is all of a Layout that does not depend on T. There are hundreds of
// layouts, and the compiler makes each method of Layout once for each of them.
type layoutCore struct {
	_    [0]func() // cannot be compared, which would take a function for each T
	name string
	typ  reflect.Type
	last atomic.Pointer[plan]
}

// LayoutOf returns the layout of T over the C struct or union called cname; names
// that differ between kernels are separated by "|". It panics if T is not a struct
// whose every field has a k tag and is an integer, a bool or an array of these: that is a
// mistake in the program.
func LayoutOf[T any](cname string) *Layout[T] {
	return &Layout[T]{core: layoutCore{name: cname, typ: checked(reflect.TypeFor[T]())}}
}

// checked panics if a type cannot be that of a layout.
func checked(t reflect.Type) reflect.Type {
	if t.Kind() != reflect.Struct {
		panic("kernel.LayoutOf: " + t.String() + " is not a struct")
	}
	for f := range t.Fields() {
		if f.Tag.Get("k") == "" {
			panic("kernel.LayoutOf: " + t.String() + "." + f.Name + " has no k tag")
		}
		if !isPlain(f.Type) {
			panic("kernel.LayoutOf: " + t.String() + "." + f.Name + " is no integer, bool or array of them")
		}
	}
	return t
}

// plan is a layout resolved for one kernel.
type plan struct {
	k      *Kernel
	cname  string
	size   int // of the C structure
	lo, hi int // the bytes that are read
	fields []planField
	has    map[string]bool
	err    error
	pool   *sync.Pool
}

type planOp uint8

const (
	opWord8 planOp = iota // 8 bytes as they are
	opWord4
	opUint // zero-extended integer
	opInt  // sign-extended integer
	opBool
	opBits // bit-field into an unsigned integer or bool
	opCopy // bytes as they are
	opAddr // address of the member
)

type planField struct {
	op       planOp
	dst      uintptr // offset in T
	dstSize  uint8
	src      int // offset in C
	srcSize  int // bytes
	bit, len uint8
}

// Size returns the size of the C structure in bytes.
func (l *Layout[T]) Size(k *Kernel) (int, error) { return l.core.size(k) }

//go:noinline
func (l *layoutCore) size(k *Kernel) (int, error) {
	p := l.plan(k)
	return p.size, p.err
}

// Has says whether the kernel has the member that the Go field is tied to.
func (l *Layout[T]) Has(k *Kernel, field string) bool { return l.core.has(k, field) }

//go:noinline
func (l *layoutCore) has(k *Kernel, field string) bool {
	p := l.plan(k)
	return p.err == nil && p.has[field]
}

// Check resolves the layout against a kernel's types without a guest, as tests do
// for every supported kernel. The error says which member of which structure is
// missing or does not fit.
func (l *Layout[T]) Check(src types.Source) error { return l.core.check(src) }

//go:noinline
func (l *layoutCore) check(src types.Source) error { return compile(src, l.name, l.typ).err }

// Load reads the structure at a. Errors: *PathError for memory that cannot be
// read, ErrNoType if the kernel has no such structure or member.
func (l *Layout[T]) Load(k *Kernel, a Addr) (t T, err error) {
	err = l.LoadInto(k, a, &t)
	return t, err
}

func (l *layoutCore) plan(k *Kernel) *plan {
	if p := l.last.Load(); p != nil && p.k == k {
		return p
	}
	v, ok := k.layouts.Load(l)
	if !ok {
		p := compile(k.types, l.name, l.typ)
		p.k = k
		v, _ = k.layouts.LoadOrStore(l, p)
	}
	p := v.(*plan)
	l.last.Store(p)
	return p
}

func compile(src types.Source, cnames string, t reflect.Type) *plan {
	p := &plan{has: make(map[string]bool), lo: 1 << 30}
	var c *types.Type
	for name := range strings.SplitSeq(cnames, "|") {
		p.cname = name
		if c, p.err = src.Struct(name); p.err == nil {
			break
		}
	}
	if p.err != nil {
		return p
	}
	p.size = c.Size
	for f := range t.Fields() {
		if p.err = p.add(c, f); p.err != nil {
			p.err = fmt.Errorf("%s for %s.%s: %w", p.cname, t.Name(), f.Name, p.err)
			return p
		}
	}
	if p.lo > p.hi {
		p.lo = p.hi
	}
	n := p.hi - p.lo
	p.pool = &sync.Pool{New: func() any { b := make([]byte, n); return &b }}
	return p
}

func (p *plan) add(c *types.Type, f reflect.StructField) error {
	paths, opt := strings.CutSuffix(f.Tag.Get("k"), ",opt")
	var field types.Field
	var err error
	address := false
	for path := range strings.SplitSeq(paths, "|") {
		path, address = strings.CutPrefix(path, "&")
		if field, err = c.Lookup(path); err == nil {
			break
		}
	}
	if err != nil {
		if opt {
			return nil
		}
		return err
	}
	p.has[f.Name] = true
	pf := planField{dst: f.Offset, dstSize: uint8(min(f.Type.Size(), 255)), src: field.Offset()}
	if address {
		if f.Type != reflect.TypeFor[Addr]() {
			return fmt.Errorf("an address needs a field of type Addr")
		}
		pf.op = opAddr
		p.fields = append(p.fields, pf)
		return nil
	}
	if pf.srcSize, err = field.Type.SizeOf(); err != nil {
		return err
	}
	if err := pf.fit(field, f.Type); err != nil {
		return err
	}
	if pf.src < 0 || pf.src+pf.srcSize > p.size {
		return fmt.Errorf("%w: member lies outside", types.ErrCorrupt)
	}
	if (pf.op == opUint || pf.op == opInt) && int(pf.dstSize) == pf.srcSize {
		switch pf.srcSize {
		case 8:
			pf.op = opWord8
		case 4:
			pf.op = opWord4
		}
	}
	p.lo, p.hi = min(p.lo, pf.src), max(p.hi, pf.src+pf.srcSize)
	p.fields = append(p.fields, pf)
	return nil
}

// fit chooses how the C value becomes the Go value.
func (pf *planField) fit(field types.Field, t reflect.Type) error {
	u, err := field.Type.Underlying()
	if err != nil {
		return err
	}
	if field.BitSize > 0 {
		pf.op, pf.bit, pf.len = opBits, uint8(field.BitOffset%8), uint8(field.BitSize)
		pf.srcSize = (field.BitOffset%8 + field.BitSize + 7) / 8
		if pf.srcSize > 8 || !isUint(t) && (t.Kind() != reflect.Bool || field.BitSize != 1) {
			return fmt.Errorf("bit-field does not fit a %s", t)
		}
		return nil
	}
	scalar := pf.srcSize == 1 || pf.srcSize == 2 || pf.srcSize == 4 || pf.srcSize == 8
	switch {
	case t.Kind() == reflect.Bool && scalar:
		pf.op = opBool
	case isUint(t) && scalar && int(t.Size()) >= pf.srcSize:
		pf.op = opUint
	case isInt(t) && scalar && int(t.Size()) >= pf.srcSize:
		pf.op = opInt
		if u.Kind == types.Int && !u.Signed && int(t.Size()) > pf.srcSize {
			pf.op = opUint
		}
	case t.Kind() == reflect.Array && int(t.Size()) >= pf.srcSize:
		pf.op = opCopy
	case t.Kind() == reflect.Array && u.Kind == types.Array:
		pf.op, pf.srcSize = opCopy, int(t.Size()) // the first elements
	default:
		return fmt.Errorf("%s of %d bytes in C does not fit Go %s of %d", field.Type, pf.srcSize, t, t.Size())
	}
	return nil
}

// isPlain says whether C bytes may be stored in a t.
func isPlain(t reflect.Type) bool {
	for t.Kind() == reflect.Array {
		t = t.Elem()
	}
	return isUint(t) || isInt(t) || t.Kind() == reflect.Bool
}

func isUint(t reflect.Type) bool { return t.Kind() >= reflect.Uint && t.Kind() <= reflect.Uint64 }
func isInt(t reflect.Type) bool  { return t.Kind() >= reflect.Int && t.Kind() <= reflect.Int64 }

// offsetOf returns the offset in bytes of a member that every supported kernel has
// under one of the names.
func (k *Kernel) offsetOf(cname, paths string) (int, error) {
	key := offsetKey{cname, paths}
	if v, ok := k.lazy.offsets.Load(key); ok {
		return v.(int), nil
	}
	c, err := k.types.Struct(cname)
	if err != nil {
		return 0, err
	}
	for path := range strings.SplitSeq(paths, "|") {
		var f types.Field
		if f, err = c.Lookup(path); err == nil {
			k.lazy.offsets.Store(key, f.Offset())
			return f.Offset(), nil
		}
	}
	return 0, fmt.Errorf("%s: %w", cname, err)
}

type offsetKey struct{ cname, path string }

// lazies holds what is found out on first use.
type lazies struct {
	offsets sync.Map // offsetKey -> int

	timekeeper atomic.Value // Addr, of a kernel without its symbol
	modules    atomic.Value // Addr, of a kernel without its symbol
	tickSched  atomic.Value // Addr, per-CPU, of a kernel without its symbol
	hugePages  atomic.Value // hstates, of a kernel without their symbol
	pingTable  atomic.Value // Addr, of a kernel without its symbol

	moduleSyms  sync.Map // moduleKey -> *symbols.Table
	moduleTypes sync.Map // btfFields -> types.Source

	btfOnce sync.Once
	btf     *types.BTF
	btfErr  error

	framesOnce, linesOnce sync.Once // of debug files
	frames                *cfi.Table
	framesErr             error
	lines                 *debugfile.Lines
	linesErr              error
}
