package main

import (
	"fmt"
	"strings"

	"github.com/ovmigrate/ovmigrate/kernel/types"
)

// shape is what a Go field has to be to hold a member of one kernel.
type shape struct {
	kind   shapeKind
	size   int // bytes of an integer, or of an element
	signed bool
	len    int // elements
	ctype  string
}

type shapeKind uint8

const (
	inPlace  shapeKind = iota // a structure: its address is what a program needs
	boolean                   // _Bool, or one bit
	integer                   // and enums, and bit-fields
	pointer                   // its value
	integers                  // an array
)

// maxArray bounds the bytes of an array that is read with its structure.
const maxArray = 4096

// shapeOf classifies a member. Bit-fields become unsigned, as Layout reads them.
func shapeOf(f types.Field) (shape, error) {
	u, err := f.Type.Underlying()
	if err != nil {
		return shape{}, err
	}
	s := shape{ctype: f.Type.String(), size: u.Size, signed: u.Signed}
	switch {
	case f.BitSize == 1:
		s.ctype += ", 1 bit"
		s.kind, s.size, s.signed = boolean, 1, false
	case f.BitSize > 0:
		s.kind, s.size, s.signed = integer, roundUp(f.BitSize), false
		s.ctype += fmt.Sprintf(", %d bits", f.BitSize)
	case u.Kind == types.Int && u.Name == "_Bool":
		s.kind = boolean
	case u.Kind == types.Int && u.Size <= 8, u.Kind == types.Enum:
		s.kind = integer
	case u.Kind == types.Pointer:
		s.kind = pointer
	case u.Kind == types.Array:
		return s, s.array(u)
	default:
		s.kind = inPlace
	}
	return s, nil
}

// roundUp returns the bytes of the smallest integer that holds n bits.
func roundUp(n int) int {
	size := 1
	for 8*size < n {
		size *= 2
	}
	return size
}

func (s *shape) array(u *types.Type) error {
	s.kind, s.size = inPlace, 0
	e, err := u.Elem()
	if err != nil {
		return err
	}
	if e, err = e.Underlying(); err != nil {
		return err
	}
	if e.Kind == types.Int && e.Size <= 8 && u.Len > 0 && u.Len*e.Size <= maxArray {
		s.kind, s.size, s.signed, s.len = integers, e.Size, e.Signed, u.Len
	}
	return nil
}

// join returns the shape that holds what both do.
func (s shape) join(t shape) (shape, error) {
	switch {
	case s.kind == boolean && t.kind == integer, s.kind == integer && t.kind == boolean:
		// A flag that grew, or shrank, to a number.
		s.signed = s.signed || t.signed // a boolean has no sign
		s.kind, s.size = integer, max(s.size, t.size)
	case s.kind != t.kind:
		return s, fmt.Errorf("is %s on one kernel and %s on another", s.ctype, t.ctype)
	case s.kind == integers && s.size != t.size:
		return s, fmt.Errorf("has elements of %d bytes on one kernel and of %d on another", s.size, t.size)
	case s.kind == integers:
		s.len = min(s.len, t.len)
	case s.kind == integer:
		// Where the signs differ, the wider one's serves both.
		if t.size > s.size {
			s.signed = t.signed
		}
		s.size = max(s.size, t.size)
	}
	return s, nil
}

// goType is the type of the Go field; kernel is how the package kernel is named.
func (s shape) goType() string {
	sign := "u"
	if s.signed {
		sign = ""
	}
	switch s.kind {
	case boolean:
		return "bool"
	case integer:
		return fmt.Sprintf("%sint%d", sign, 8*s.size)
	case integers:
		elem := fmt.Sprintf("%sint%d", sign, 8*s.size)
		if s.size == 1 {
			elem = "byte" // char is signed on some machines, and text on all
		}
		return fmt.Sprintf("[%d]%s", s.len, elem)
	}
	return "kernel.Addr"
}

// field is a member as it is on all kernels.
type field struct {
	member  string
	shape   shape
	missing []string // kernels without it
	// renamed are the kernels that have it under each of its further names.
	renamed map[string][]string
}

func (f *field) tag() string {
	tag := f.member
	if f.shape.kind == inPlace {
		tag = "&" + strings.ReplaceAll(tag, "|", "|&")
	}
	if f.missing != nil {
		tag += ",opt"
	}
	return tag
}

// lookup finds the first of a member's names.
func lookup(t *types.Type, member string) (f types.Field, name string, err error) {
	for name = range strings.SplitSeq(member, "|") {
		if f, err = t.Lookup(name); err == nil {
			return f, name, nil
		}
	}
	return f, "", err
}
