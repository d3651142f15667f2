package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sort"

	"github.com/ovmigrate/ovmigrate/kernel/cfi"
)

// UserFrame is a function of a program that has not returned, as far as it can be
// told from outside.
type UserFrame struct {
	Addr       UserAddr // where it goes on
	Path       string   // name of the file that is mapped there, or "[vdso]" and such; "" for none
	FileOffset uint64   // of Addr in that file
	// Symbol is the function, "" if it is not known; SymbolOffset is the distance of
	// Addr from its start.
	Symbol       string
	SymbolOffset uint64
	// Signal is set for the code that a signal handler returns to, which is part of
	// no caller: the next frame was interrupted by the signal.
	Signal bool
	// How the frame was found: "registers" for the first, else by the call frame
	// information of the caller before ("eh_frame"), or by "frame pointer" where it
	// has none. The latter hides callers that were compiled without frame pointers.
	How string
}

// maxUserFrames bounds a walk: a stack of 8 MiB has room for more, but nobody reads
// them.
const maxUserFrames = 512

// UserStack returns the user stack of a thread that is in the kernel: the place where
// it entered, and callers by the call frame information (.eh_frame) of the files that
// are mapped there, or by the chain of frame pointers where there is none. Files are
// read from memory and the page cache alone. What is needed but not resident, and
// information that makes no sense, ends the walk with an error; the frames found are
// returned with it. Symbols are of .symtab if that is in the page cache, else of
// .dynsym. Errors as of UserRegs and MM; *paging.NotMappedError, *CacheError,
// cfi.ErrFormat, ErrCorrupt.
func (t *Task) UserStack() ([]UserFrame, error) {
	m, err := t.MM()
	if err != nil {
		return nil, err
	}
	r, err := t.UserRegs()
	if err != nil {
		return nil, err
	}
	w := &userWalk{m: m, images: map[UserAddr]*userImage{}}
	if w.vmas, err = m.VMAList(); err != nil {
		return nil, err
	}
	if err := w.add(UserAddr(r.IP), "registers", true); err != nil {
		return w.frames, err
	}
	if !r.Compat() {
		return w.frames, w.unwind(cfiRegs(r))
	}
	return w.frames, w.framePointers(UserAddr(r.SP), UserAddr(r.BP), 4)
}

// cfiRegs arranges registers as DWARF numbers them.
func cfiRegs(r *PtRegs) *cfi.Regs {
	regs := &cfi.Regs{}
	for i, v := range []uint64{
		r.AX, r.DX, r.CX, r.BX, r.SI, r.DI, r.BP, r.SP, r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15, r.IP,
	} {
		regs.Set(i, v)
	}
	return regs
}

// unwind follows callers by call frame information.
func (w *userWalk) unwind(regs *cfi.Regs) error {
	exact := true // the address is not behind a call
	read := func(a uint64) (uint64, error) {
		var b [8]byte
		_, err := w.m.ReadAt(b[:], UserAddr(a))
		return binary.LittleEndian.Uint64(b[:]), err
	}
	for len(w.frames) < maxUserFrames {
		sp, pc := regs.Val[cfi.RSP], UserAddr(regs.Val[cfi.RA])
		if !exact {
			pc--
		}
		e, err := w.entry(pc)
		if errors.Is(err, cfi.ErrNone) || errors.Is(err, errNoImage) {
			bp, _ := regs.Get(cfi.RBP)
			return w.framePointers(UserAddr(sp), UserAddr(bp), 8)
		}
		if err == nil {
			err = e.Step(regs, uint64(pc), read)
		}
		if errors.Is(err, cfi.ErrEnd) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("caller of %s: %w", w.frames[len(w.frames)-1].Addr, err)
		}
		next := UserAddr(regs.Val[cfi.RA])
		if next == 0 {
			return nil
		}
		// A signal handler may have a stack of its own.
		if v := w.vma(next); v == nil || v.Flags&VMExec == 0 || regs.Val[cfi.RSP] <= sp && !e.Signal {
			return fmt.Errorf("%w: caller of %s at %s, stack pointer %#x after %#x",
				ErrCorrupt, w.frames[len(w.frames)-1].Addr, next, regs.Val[cfi.RSP], sp)
		}
		if exact = e.Signal; exact {
			w.frames[len(w.frames)-1].Signal = true
		}
		if err := w.add(next, "eh_frame", exact); err != nil {
			return err
		}
	}
	return nil
}

// entry returns the call frame information of the code at pc.
func (w *userWalk) entry(pc UserAddr) (*cfi.Entry, error) {
	v := w.vma(pc)
	if v == nil {
		return nil, errNoImage
	}
	im, err := w.imageAt(v)
	if err != nil {
		return nil, err
	}
	return im.entry(pc)
}

type userWalk struct {
	m       *MM
	vmas    []VMA
	frames  []UserFrame
	images  map[UserAddr]*userImage // by their begin
	symbols int                     // bytes of symbol tables that were read
}

// index returns the place of the first mapping that ends behind a.
func (w *userWalk) index(a UserAddr) int {
	return sort.Search(len(w.vmas), func(i int) bool { return w.vmas[i].End > a })
}

// vma returns the mapping that a lies in, nil if none.
func (w *userWalk) vma(a UserAddr) *VMA {
	i := w.index(a)
	if i == len(w.vmas) || w.vmas[i].Start > a {
		return nil
	}
	return &w.vmas[i]
}

// add adds a frame that goes on at a: behind a call, unless exact.
func (w *userWalk) add(a UserAddr, how string, exact bool) error {
	f := UserFrame{Addr: a, How: how}
	at := a
	if !exact {
		at--
	}
	if v := w.vma(at); v != nil {
		name, err := w.m.Name(v)
		if err != nil {
			return err
		}
		f.Path = name
		if v.File != 0 {
			f.FileOffset = v.PgOff<<12 + uint64(a-v.Start)
		}
		if im, err := w.imageAt(v); err == nil {
			f.Symbol, f.SymbolOffset = im.symbol(at)
			f.SymbolOffset += uint64(a - at)
			if f.Symbol == "" {
				f.SymbolOffset = 0
			}
		}
	}
	w.frames = append(w.frames, f)
	return nil
}

// framePointers follows pairs of a saved frame pointer and a return address. Frames
// lie above each other on one stack, so that the walk ends.
func (w *userWalk) framePointers(sp, bp UserAddr, word int) error {
	stack := w.vma(sp)
	if stack == nil {
		return nil
	}
	var buf [16]byte
	for len(w.frames) < maxUserFrames {
		if bp < sp || bp < stack.Start || stack.End-bp < UserAddr(2*word) || bp >= stack.End || bp%UserAddr(word) != 0 {
			return nil
		}
		if _, err := w.m.ReadAt(buf[:2*word], bp); err != nil {
			return fmt.Errorf("frame at %s: %w", bp, err)
		}
		next, ret := uint64(binary.LittleEndian.Uint32(buf[:])), uint64(binary.LittleEndian.Uint32(buf[4:]))
		if word == 8 {
			next, ret = binary.LittleEndian.Uint64(buf[:]), binary.LittleEndian.Uint64(buf[8:])
		}
		v := w.vma(UserAddr(ret))
		if v == nil || v.Flags&VMExec == 0 {
			return nil // not a frame, but what a register of that name happens to hold
		}
		if err := w.add(UserAddr(ret), "frame pointer", false); err != nil {
			return err
		}
		sp, bp = bp+UserAddr(2*word), UserAddr(next)
	}
	return nil
}
