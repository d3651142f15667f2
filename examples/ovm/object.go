package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/kernel/types"
)

// node is the value of a kernel object, read and ready to be printed.
type node struct {
	typ  string
	addr kernel.Addr

	text    string // for people; empty if there are members or elements
	json    any    // for JSON; nil likewise
	members []member
	array   []*node
	more    int  // elements that are not shown
	closed  bool // a struct that is not opened because it lies too deep
}

type member struct {
	name string
	node *node
}

// maxNodes bounds how much one command prints: an array of arrays of structs is
// otherwise larger than anybody wants.
const maxNodes = 1 << 16

// objPrinter reads objects to print.
type objPrinter struct {
	depth, elements int
	nodes           int
}

// node reads v.
func (p *objPrinter) node(k *kernel.Kernel, v value) (*node, error) {
	if v.ptr {
		return pointerNode(k, v.obj.Type().String()+" *", v.obj.Addr(), uint64(v.obj.Addr())), nil
	}
	return p.read(k, v.obj, p.depth)
}

func (p *objPrinter) read(k *kernel.Kernel, o kernel.Object, depth int) (*node, error) {
	if p.nodes++; p.nodes > maxNodes {
		return nil, fmt.Errorf("%s: %w: print less with --depth or --elements", o.Path(), kernel.ErrLimit)
	}
	u, err := o.Type().Underlying()
	if err != nil {
		return nil, err
	}
	n := &node{typ: o.Type().String(), addr: o.Addr()}
	switch u.Kind {
	case types.Struct, types.Union:
		return n, p.readMembers(k, n, o, u, depth)
	case types.Array:
		return n, p.readArray(k, n, o, u, depth)
	case types.Pointer:
		v, err := o.Uint()
		if err != nil {
			return nil, err
		}
		return pointerNode(k, n.typ, n.addr, v), nil
	case types.Int, types.Enum:
		return n, n.readNumber(o, u)
	}
	n.text = fmt.Sprintf("<%s>", n.typ)
	return n, nil
}

func (n *node) readNumber(o kernel.Object, u *types.Type) error {
	v, err := o.Int()
	if err != nil {
		return err
	}
	n.json = v
	n.text = strconv.FormatInt(v, 10)
	if !u.Signed {
		n.json = uint64(v)
		n.text = strconv.FormatUint(uint64(v), 10)
		if v < 0 || v > 9 {
			n.text += fmt.Sprintf(" (%#x)", uint64(v))
		}
	}
	for _, e := range u.Values {
		if e.Value == v {
			n.text = fmt.Sprintf("%s (%d)", e.Name, v)
		}
	}
	return nil
}

func pointerNode(k *kernel.Kernel, typ string, at kernel.Addr, v uint64) *node {
	n := &node{typ: typ, addr: at, text: hex(v).String(), json: hex(v)}
	if v == 0 {
		n.text = "NULL"
	} else if name, off, ok := k.SymbolAt(kernel.Addr(v)); ok {
		n.text += " <" + name
		if off != 0 {
			n.text += fmt.Sprintf("+%#x", off)
		}
		n.text += ">"
	}
	return n
}

func (p *objPrinter) readMembers(k *kernel.Kernel, n *node, o kernel.Object, u *types.Type, depth int) error {
	if depth < 0 {
		n.closed, n.text = true, "{…}"
		return nil
	}
	n.members = []member{}
	return p.flatten(k, n, o, u, depth, 0)
}

// flatten reads the members of u, those of anonymous structs and unions inside it
// included, as members of o.
func (p *objPrinter) flatten(k *kernel.Kernel, n *node, o kernel.Object, u *types.Type, depth, nested int) error {
	for i := range u.Members {
		m := &u.Members[i]
		if m.Name == "" {
			mt, err := m.Type()
			if err != nil {
				return err
			}
			// An unnamed bit-field is padding.
			if len(mt.Members) > 0 && nested < maxNesting {
				if err := p.flatten(k, n, o, mt, depth, nested+1); err != nil {
					return err
				}
			}
			continue
		}
		f, err := o.Field(m.Name)
		if err != nil {
			return err
		}
		v, err := p.read(k, f, depth-1)
		if err != nil {
			return err
		}
		n.members = append(n.members, member{m.Name, v})
	}
	return nil
}

func (p *objPrinter) readArray(k *kernel.Kernel, n *node, o kernel.Object, u *types.Type, depth int) error {
	e, err := u.Elem()
	if err != nil {
		return err
	}
	if eu, err := e.Underlying(); err == nil && eu.Kind == types.Int && eu.Size == 1 && e.String() == "char" && u.Len > 0 {
		s, err := o.CString(min(u.Len, 4096))
		if err != nil {
			return err
		}
		n.text, n.json = strconv.Quote(s), s
		return nil
	}
	shown := min(u.Len, max(p.elements, 0))
	n.more = u.Len - shown
	n.array = []*node{}
	for i := range shown {
		f, err := o.Field("[" + strconv.Itoa(i) + "]")
		if err != nil {
			return err
		}
		v, err := p.read(k, f, depth-1)
		if err != nil {
			return err
		}
		n.array = append(n.array, v)
	}
	return nil
}

// print writes "name = value", members on lines of their own.
func (n *node) print(w *bufio.Writer, name string, level int) {
	indent := strings.Repeat("    ", level)
	head := indent + name + " = "
	if level == 0 {
		head = fmt.Sprintf("(%s) %s", printable(n.typ), head)
	}
	switch {
	case n.members != nil:
		fmt.Fprintf(w, "%s{\n", head)
		for _, m := range n.members {
			m.node.print(w, printable(m.name), level+1)
		}
		fmt.Fprintf(w, "%s}\n", indent)
	case n.array != nil && n.flat():
		cells := make([]string, 0, len(n.array)+1)
		for _, e := range n.array {
			cells = append(cells, printable(e.text))
		}
		if n.more > 0 {
			cells = append(cells, fmt.Sprintf("… %d more", n.more))
		}
		fmt.Fprintf(w, "%s{%s}\n", head, strings.Join(cells, ", "))
	case n.array != nil:
		fmt.Fprintf(w, "%s{\n", head)
		for i, e := range n.array {
			e.print(w, fmt.Sprintf("[%d]", i), level+1)
		}
		if n.more > 0 {
			fmt.Fprintf(w, "%s    … %d more\n", indent, n.more)
		}
		fmt.Fprintf(w, "%s}\n", indent)
	default:
		fmt.Fprintf(w, "%s%s\n", head, printable(n.text))
	}
}

// flat says whether all elements of an array fit on one line.
func (n *node) flat() bool {
	for _, e := range n.array {
		if e.members != nil || e.array != nil {
			return false
		}
	}
	return true
}

// MarshalJSON writes members in the order of the C declaration.
func (n *node) MarshalJSON() ([]byte, error) {
	switch {
	case n.members != nil:
		var b bytes.Buffer
		b.WriteByte('{')
		for i, m := range n.members {
			if i > 0 {
				b.WriteByte(',')
			}
			key, err := json.Marshal(m.name)
			if err != nil {
				return nil, err
			}
			val, err := json.Marshal(m.node)
			if err != nil {
				return nil, err
			}
			b.Write(key)
			b.WriteByte(':')
			b.Write(val)
		}
		b.WriteByte('}')
		return b.Bytes(), nil
	case n.array != nil:
		return json.Marshal(n.array)
	case n.closed:
		return []byte(`{}`), nil
	}
	return json.Marshal(n.json)
}
