package kernel

import (
	"encoding/binary"
	"fmt"
	"sort"
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
	// How the frame was found: "registers" for the first, else "frame pointer". Code
	// that was compiled without frame pointers ends the walk, or hides callers.
	How string
}

// maxUserFrames bounds a walk: a stack of 8 MiB has room for more, but nobody reads
// them.
const maxUserFrames = 512

// UserStack returns the user stack of a thread that is in the kernel: the place where
// it entered, and callers by the chain of frame pointers. Stack memory that is not
// resident ends the walk with an error; the frames found are returned with it. Errors
// as of UserRegs and MM.
func (t *Task) UserStack() ([]UserFrame, error) {
	m, err := t.MM()
	if err != nil {
		return nil, err
	}
	r, err := t.UserRegs()
	if err != nil {
		return nil, err
	}
	w := &userWalk{m: m}
	if w.vmas, err = m.VMAList(); err != nil {
		return nil, err
	}
	if err := w.add(UserAddr(r.IP), "registers"); err != nil {
		return w.frames, err
	}
	word := 8
	if r.Compat() {
		word = 4
	}
	return w.frames, w.framePointers(UserAddr(r.SP), UserAddr(r.BP), word)
}

type userWalk struct {
	m      *MM
	vmas   []VMA
	frames []UserFrame
}

// vma returns the mapping that a lies in, nil if none.
func (w *userWalk) vma(a UserAddr) *VMA {
	i := sort.Search(len(w.vmas), func(i int) bool { return w.vmas[i].End > a })
	if i == len(w.vmas) || w.vmas[i].Start > a {
		return nil
	}
	return &w.vmas[i]
}

func (w *userWalk) add(a UserAddr, how string) error {
	f := UserFrame{Addr: a, How: how}
	if v := w.vma(a); v != nil {
		name, err := w.m.Name(v)
		if err != nil {
			return err
		}
		f.Path = name
		if v.File != 0 {
			f.FileOffset = v.PgOff<<12 + uint64(a-v.Start)
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
		if err := w.add(UserAddr(ret), "frame pointer"); err != nil {
			return err
		}
		sp, bp = bp+UserAddr(2*word), UserAddr(next)
	}
	return nil
}
