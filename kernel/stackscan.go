package kernel

import "encoding/binary"

// Tables of frames are exact where code calls and where interrupts are let in. A
// processor that is stopped from outside may be anywhere else: among the pushes with
// which an exception begins, in code that was patched after its table was made, in
// the thunk of an indirect call. What is here finds the way out of such places.

// Selectors that the kernel runs with. Source: arch/x86/include/asm/segment.h. The
// stack segment is 0 since an interrupt of user code.
const (
	kernelCS = 0x10
	kernelDS = 0x18
)

// maxScan is how many words are looked at: a struct pt_regs, and what its making
// needs.
const maxScan = 32

// leaveThunk replaces s, which is in the thunk of an indirect call, by who called it,
// or by the function that is called if the thunk is about to go there. It returns
// false if s is not there. Source: arch/x86/lib/retpoline.S.
func (c *kernelCode) leaveThunk(s *unwindState) (bool, error) {
	if !s.interrupted || !inRanges(c.thunks, s.ip) {
		return false, nil
	}
	sp := s.sp
	ret, err := s.deref(c.k, sp)
	if err == nil && inRanges(c.thunks, ret) { // the thunk's own call
		sp = sp.Add(8)
		ret, err = s.deref(c.k, sp)
	}
	if err != nil {
		return true, err
	}
	next := unwindState{ip: ret, sp: sp.Add(8), bp: s.bp, stacks: s.stacks, unsure: s.unsure, earlier: s.anyRegs()}
	next.interrupted = !c.afterCall(ret)
	if next.interrupted {
		next.regs, next.earlier = next.earlier, nil
	}
	*s = next
	return true, nil
}

// anyRegs returns all registers of s, nil if they are not known.
func (s *unwindState) anyRegs() *PtRegs {
	if s.regs != nil && !s.partial {
		return s.regs
	}
	return s.earlier
}

// doubtful says whether next, found by a table that may be wrong, cannot be the caller.
func (c *kernelCode) doubtful(next *unwindState) bool {
	text, err := c.isText(next.ip)
	if err != nil || !text {
		return true
	}
	if r := next.regs; r != nil {
		return uint16(r.CS) != kernelCS || next.stackOf(next.sp) == nil
	}
	return !c.afterCall(next.ip)
}

// scan looks on the stack for what s will return to: behind a call of its function, or
// to what an exception interrupted. It leaves s alone if it
// returns false. All that follows is unsure. end says that the exception came from
// user code.
func (c *kernelCode) scan(s *unwindState) (found, end bool) {
	self, _ := c.frame(s.ip, true)
	var w [maxScan]Addr
	n := 0
	for ; n < maxScan; n++ {
		var err error
		if w[n], err = s.deref(c.k, s.sp.Add(8*n)); err != nil {
			break
		}
	}
	next := unwindState{sp: s.sp, bp: s.bp, stacks: s.stacks, unsure: true, earlier: s.anyRegs()}
	for i := range n {
		at := s.sp.Add(8 * i)
		if i+5 <= n {
			r := &PtRegs{IP: uint64(w[i]), CS: uint64(w[i+1]), Flags: uint64(w[i+2]), SP: uint64(w[i+3]), SS: uint64(w[i+4])}
			if !w[i].IsKernel() && r.plausible() {
				return true, true
			}
			if text, err := c.isText(w[i]); err == nil && text && uint16(r.CS) == kernelCS && (uint16(r.SS) == kernelDS || r.SS == 0) &&
				s.stackOf(w[i+3]) != nil {
				next.ip, next.sp, next.regs, next.partial, next.interrupted = w[i], w[i+3], r, true, true
				*s = next
				return true, false
			}
		}
		if target, ok := c.calledBefore(w[i]); ok && self.Symbol != "" && target == s.ip.Add(-int(self.Offset)) {
			next.ip, next.sp = w[i], at.Add(8)
			*s = next
			return true, false
		}
	}
	return false, false
}

// longestCall is an indirect call with a prefix, a SIB byte and a displacement.
const longestCall = 8

// codeBefore reads the bytes before a.
func (c *kernelCode) codeBefore(a Addr) (b [longestCall]byte, ok bool) {
	if text, err := c.isText(a - longestCall); err != nil || !text {
		return b, false
	}
	_, err := c.k.ReadAt(b[:], a-longestCall)
	return b, err == nil
}

// calledBefore returns the target of the direct call that a is behind.
func (c *kernelCode) calledBefore(a Addr) (Addr, bool) {
	b, ok := c.codeBefore(a)
	if !ok || b[longestCall-5] != 0xe8 {
		return 0, false
	}
	return a.Add(int(int32(binary.LittleEndian.Uint32(b[longestCall-4:])))), true
}

// afterCall says whether the instruction before a can be a call.
func (c *kernelCode) afterCall(a Addr) bool {
	b, ok := c.codeBefore(a)
	if !ok {
		return false
	}
	if b[longestCall-5] == 0xe8 {
		return true
	}
	for n := 2; n <= 7; n++ { // ff /2, by its length
		if p := b[longestCall-n:]; p[0] == 0xff && p[1]>>3&7 == 2 && modRMLength(p[1:]) == n-1 {
			return true
		}
	}
	return false
}

// modRMLength returns the length of an operand that begins with the ModRM byte b[0].
func modRMLength(b []byte) int {
	mod, rm := b[0]>>6, b[0]&7
	n := 1
	sib := mod != 3 && rm == 4
	if sib {
		n++
	}
	switch {
	case mod == 1:
		n++
	case mod == 2, mod == 0 && rm == 5, mod == 0 && sib && len(b) > 1 && b[1]&7 == 5:
		n += 4
	}
	return n
}
