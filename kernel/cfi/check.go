package cfi

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// delve's parser believes what it reads: a number that does not end, a state that is
// restored but was never saved or a register number of 2^60 make it panic or take
// memory. What is here goes over an entry first, and refuses it.

// Limits of an entry. A compiler's are far below them.
const (
	maxEntry     = 16 << 10 // bytes
	maxRegister  = 128
	maxAlign     = 64
	maxRemember  = 64
	maxExprStack = 32
)

// cursor reads the fields of an entry. After the first that does not fit, bad is set
// and all are 0.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n uint64) []byte {
	if n > uint64(len(c.b)) {
		c.bad, c.b = true, nil
		return nil
	}
	b := c.b[:n]
	c.b = c.b[n:]
	return b
}

func (c *cursor) u8() byte {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

// leb skips a number in LEB128 and returns the lowest 64 bits.
func (c *cursor) leb(signed bool) uint64 {
	v, shift := uint64(0), 0
	for range 10 {
		b := c.u8()
		v |= uint64(b&0x7f) << shift
		if shift += 7; b&0x80 == 0 {
			if signed && b&0x40 != 0 && shift < 64 {
				v |= ^uint64(0) << shift
			}
			return v
		}
	}
	c.bad = true
	return 0
}

// Pointer encodings (DW_EH_PE_*) that are believed: sizes, and whether they count from
// their own place.
var pointerSizes = map[byte]uint64{0x00: 8, 0x02: 2, 0x03: 4, 0x04: 8, 0x0a: 2, 0x0b: 4, 0x0c: 8}

const (
	relative = 0x10
	indirect = 0x80
)

// cie is what a common information entry says about those that name it.
type cie struct {
	pointer uint64 // size of addresses
	z       bool   // entries have augmentation data
	signal  bool
	saved   map[uint64]bool // registers that it has rules for
}

// checkCIE checks the entry without its length and id.
func checkCIE(b []byte, eh bool) (cie, error) {
	c := &cursor{b: b}
	e := cie{pointer: 8, saved: map[uint64]bool{}}
	version := c.u8()
	end := bytes.IndexByte(c.b, 0)
	if version != 1 && version != 3 || end < 0 || end > 8 {
		return e, fmt.Errorf("%w: version %d of a common entry", ErrFormat, version)
	}
	aug := string(c.take(uint64(end)))
	c.u8()
	code, data := c.leb(false), int64(c.leb(true))
	ra := uint64(0)
	if eh && version == 1 {
		ra = uint64(c.u8())
	} else {
		ra = c.leb(false)
	}
	if c.bad || code == 0 || code > maxAlign || data < -maxAlign || data > maxAlign || ra != RA {
		return e, fmt.Errorf("%w: alignment %d and %d, return address in register %d", ErrFormat, code, data, ra)
	}
	if aug != "" && (!eh || aug[0] != 'z') {
		return e, fmt.Errorf("%w: augmentation %q", ErrFormat, aug)
	}
	if aug != "" {
		e.z = true
		rest := &cursor{b: c.b}
		n := rest.leb(false)
		data := &cursor{b: rest.take(n)}
		for _, ch := range aug[1:] {
			switch enc := byte(0); ch {
			case 'S':
				e.signal = true
			case 'L':
				data.u8()
			case 'R', 'P':
				if enc = data.u8(); ch == 'P' {
					enc &^= indirect
				}
				size, ok := pointerSizes[enc&^relative]
				if !ok {
					return e, fmt.Errorf("%w: pointer encoding %#x", ErrFormat, enc)
				}
				if ch == 'P' {
					data.take(size)
				} else {
					e.pointer = size
				}
			default:
				return e, fmt.Errorf("%w: augmentation %q", ErrFormat, aug)
			}
		}
		if c.b = rest.b; rest.bad || data.bad || len(data.b) != 0 {
			return e, fmt.Errorf("%w: augmentation %q of %d bytes", ErrFormat, aug, n)
		}
	}
	if c.bad {
		return e, fmt.Errorf("%w: truncated", ErrFormat)
	}
	return e, e.checkProgram(c.b, true)
}

// checkFDE checks an entry of a function, without its length and the place of its CIE.
func (e *cie) checkFDE(b []byte) error {
	c := &cursor{b: b}
	c.take(2 * e.pointer)
	if e.z {
		c.take(c.leb(false))
	}
	if c.bad {
		return fmt.Errorf("%w: truncated", ErrFormat)
	}
	return e.checkProgram(c.b, false)
}

// operands of the instructions of call frame programs: r a register, u and s numbers in
// LEB128, digits bytes, e an expression. Instructions that are missing are not used on
// x86-64, or delve gets them wrong (val_offset, set_loc).
var operands = map[byte]string{
	0x00: "", 0x02: "1", 0x03: "2", 0x04: "4", 0x05: "ru", 0x06: "R", 0x07: "r", 0x08: "r", 0x09: "rr", 0x0a: "+", 0x0b: "-",
	0x0c: "ru", 0x0d: "r", 0x0e: "u", 0x0f: "e", 0x10: "rE", 0x11: "rs", 0x12: "rs", 0x13: "s", 0x16: "rE", 0x2e: "u",
	0x40: "", 0x80: "u", 0xc0: "",
}

// checkProgram checks instructions, of the common entry (common) or of a function. A
// register that the common entry has a rule for must not be restored to it: delve
// forgets that rule.
func (e *cie) checkProgram(b []byte, common bool) error {
	c := &cursor{b: b}
	depth := 0
	for len(c.b) > 0 {
		op := c.u8()
		low := uint64(op & 0x3f)
		if op >= 0x40 {
			op &= 0xc0
		}
		form, ok := operands[op]
		if !ok {
			return fmt.Errorf("%w: instruction %#x", ErrFormat, op)
		}
		if common && (op >= 0x02 && op <= 0x04 || op == 0x40) {
			return fmt.Errorf("%w: a common entry that advances", ErrFormat)
		}
		if op == 0x80 && common {
			e.saved[low] = true
		}
		if op == 0xc0 && e.saved[low] {
			return fmt.Errorf("%w: register %d is restored", ErrFormat, low)
		}
		for _, f := range form {
			switch f {
			case 'r', 'R':
				reg := c.leb(false)
				if reg >= maxRegister || f == 'R' && e.saved[reg] {
					return fmt.Errorf("%w: register %d in instruction %#x", ErrFormat, reg, op)
				}
				if common && op != 0x0c && op != 0x0d {
					e.saved[reg] = true
				}
			case 'u', 's':
				c.leb(f == 's')
			case '1', '2', '4':
				c.take(uint64(f - '0'))
			case '+':
				depth++
			case '-':
				depth--
			case 'e', 'E':
				given := 0 // the address of the frame, for those of registers
				if f == 'E' {
					given = 1
				}
				if err := checkExpression(c.take(c.leb(false)), given); err != nil {
					return err
				}
			}
		}
		if c.bad || depth < 0 || depth > maxRemember {
			return fmt.Errorf("%w: instruction %#x", ErrFormat, op)
		}
	}
	return nil
}

// expressions are the operations that are believed in expressions: how many words they
// take from the stack and put there, and their operand. None jumps.
var expressions = map[byte]struct {
	pops, pushes int
	operand      string
}{
	0x06: {1, 1, ""}, 0x08: {0, 1, "1"}, 0x09: {0, 1, "1"}, 0x0a: {0, 1, "2"}, 0x0b: {0, 1, "2"}, 0x0c: {0, 1, "4"},
	0x0d: {0, 1, "4"}, 0x0e: {0, 1, "8"}, 0x0f: {0, 1, "8"}, 0x10: {0, 1, "u"}, 0x11: {0, 1, "s"}, 0x12: {1, 2, ""},
	0x13: {1, 0, ""}, 0x14: {2, 3, ""}, 0x16: {2, 2, ""}, 0x1a: {2, 1, ""}, 0x1c: {2, 1, ""}, 0x1e: {2, 1, ""},
	0x1f: {1, 1, ""}, 0x20: {1, 1, ""}, 0x21: {2, 1, ""}, 0x22: {2, 1, ""}, 0x23: {1, 1, "u"}, 0x24: {2, 1, ""},
	0x25: {2, 1, ""}, 0x26: {2, 1, ""}, 0x27: {2, 1, ""}, 0x29: {2, 1, ""}, 0x2a: {2, 1, ""}, 0x2b: {2, 1, ""},
	0x2c: {2, 1, ""}, 0x2d: {2, 1, ""}, 0x2e: {2, 1, ""}, 0x96: {0, 0, ""},
}

func checkExpression(b []byte, depth int) error {
	c := &cursor{b: b}
	for len(c.b) > 0 {
		op := c.u8()
		x, ok := expressions[op]
		switch {
		case op >= 0x30 && op <= 0x4f: // lit0 and on
			x.pushes, ok = 1, true
		case op >= 0x70 && op <= 0x70+RA: // breg0 and on
			x.pushes, x.operand, ok = 1, "s", true
		}
		if !ok || depth < x.pops {
			return fmt.Errorf("%w: operation %#x", ErrFormat, op)
		}
		switch x.operand {
		case "u", "s":
			c.leb(x.operand == "s")
		case "1", "2", "4", "8":
			c.take(uint64(x.operand[0] - '0'))
		}
		if depth += x.pushes - x.pops; c.bad || depth > maxExprStack {
			return fmt.Errorf("%w: operation %#x", ErrFormat, op)
		}
	}
	if depth < 1 {
		return fmt.Errorf("%w: an empty expression", ErrFormat)
	}
	return nil
}

// entry cuts the first entry off section: the bytes behind its length, of which the
// first four say what it is.
func entry(section []byte) (body, rest []byte, err error) {
	if len(section) < 4 {
		return nil, nil, fmt.Errorf("%w: truncated", ErrFormat)
	}
	n := binary.LittleEndian.Uint32(section)
	if n == 0 {
		return nil, section[4:], nil
	}
	if n < 4 || n > maxEntry || uint64(n) > uint64(len(section)-4) {
		return nil, nil, fmt.Errorf("%w: an entry of %d bytes", ErrFormat, n)
	}
	return section[4 : 4+n], section[4+n:], nil
}
