// Package copyout goes through all memory of a guest, for those who write dumps:
// in pieces of bounded size, without reading what is known to be zeros, and telling
// what the source lacks from what is zero.
package copyout

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// MaxPiece is the most bytes of a Piece that has data.
const MaxPiece = 1 << 20

// Kind says what is known about a Piece.
type Kind uint8

// Kinds of pieces.
const (
	Data   Kind = iota // bytes, not all zeros
	Zeros              // all zeros
	Absent             // the guest has it, the source does not
)

// Piece is a part of guest memory: whole pages, but for the ends of ranges.
type Piece struct {
	vmi.Range
	Kind Kind
	Data []byte // of kind Data: valid until the next piece
}

// Memory calls f for all memory of mem in order of address. It ends with f's error,
// with the context's, and with that of a read that fails for another reason than
// vmi.ErrExcluded. progress, if not nil, gets the number of bytes done and of all.
func Memory(ctx context.Context, mem vmi.Memory, progress func(done, total uint64), f func(p Piece) error) error {
	w := walk{ctx: ctx, mem: mem, f: f, progress: progress, buf: make([]byte, MaxPiece)}
	ranges := mem.Ranges()
	for _, r := range ranges {
		w.total += r.Len()
	}
	data := ranges
	if s, ok := mem.(vmi.Sparse); ok {
		data = wholePages(s.Data())
	}
	for _, r := range ranges {
		for at := r.Start; at < r.End; {
			for len(data) > 0 && data[0].End <= at {
				data = data[1:]
			}
			next := r.End
			var err error
			if len(data) > 0 && data[0].Start <= at {
				next = min(next, data[0].End)
				err = w.read(at, next)
			} else {
				if len(data) > 0 {
					next = min(next, data[0].Start)
				}
				err = w.emit(Piece{Range: vmi.Range{Start: at, End: next}, Kind: Zeros})
			}
			if err != nil {
				return err
			}
			at = next
		}
	}
	return nil
}

// wholePages makes the ends of ranges whole pages, so that pieces are.
func wholePages(ranges []vmi.Range) []vmi.Range {
	var out []vmi.Range
	for _, r := range ranges {
		r.Start &^= vmi.PageSize - 1
		r.End = (r.End + vmi.PageSize - 1) &^ (vmi.PageSize - 1)
		if n := len(out); n > 0 && out[n-1].End >= r.Start {
			out[n-1].End = max(out[n-1].End, r.End)
			continue
		}
		out = append(out, r)
	}
	return out
}

type walk struct {
	ctx         context.Context
	mem         vmi.Memory
	f           func(p Piece) error
	progress    func(done, total uint64)
	done, total uint64
	buf         []byte
}

func (w *walk) emit(p Piece) error {
	if p.Len() == 0 {
		return nil
	}
	if err := context.Cause(w.ctx); err != nil {
		return err
	}
	if err := w.f(p); err != nil {
		return err
	}
	w.done += p.Len()
	if w.progress != nil {
		w.progress(w.done, w.total)
	}
	return nil
}

// pageEnd is where the page that holds a ends.
func pageEnd(a vmi.Phys) vmi.Phys { return a&^(vmi.PageSize-1) + vmi.PageSize }

// read reads and emits what is at [at, end).
func (w *walk) read(at, end vmi.Phys) error {
	for at < end {
		n := int(min(uint64(end-at), MaxPiece-uint64(at%vmi.PageSize)))
		n, err := w.mem.ReadPhys(w.buf[:n], at)
		if err := w.split(at, w.buf[:n]); err != nil {
			return err
		}
		at += vmi.Phys(n)
		if err == nil {
			continue
		}
		var fault *vmi.FaultError
		if !errors.As(err, &fault) || !errors.Is(err, vmi.ErrExcluded) {
			return fmt.Errorf("read guest memory: %w", err)
		}
		gap := vmi.Range{Start: at, End: min(pageEnd(at), end)}
		if err := w.emit(Piece{Range: gap, Kind: Absent}); err != nil {
			return err
		}
		at = gap.End
	}
	return nil
}

var zeros [vmi.PageSize]byte

// split emits b, which is at a, as runs of zeros and of other pages.
func (w *walk) split(a vmi.Phys, b []byte) error {
	kind := func(from int) (k Kind, n int) {
		n = min(int(pageEnd(a+vmi.Phys(from))-a), len(b)) - from
		if bytes.Equal(b[from:from+n], zeros[:n]) {
			return Zeros, n
		}
		return Data, n
	}
	for start := 0; start < len(b); {
		k, n := kind(start)
		end := start + n
		for end < len(b) {
			next, n := kind(end)
			if next != k {
				break
			}
			end += n
		}
		p := Piece{Range: vmi.Range{Start: a + vmi.Phys(start), End: a + vmi.Phys(end)}, Kind: k}
		if k == Data {
			p.Data = b[start:end]
		}
		if err := w.emit(p); err != nil {
			return err
		}
		start = end
	}
	return nil
}
