package signal

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// Memory is what a transaction works on: kernel-virtual memory. *kernel.Kernel is
// one, if its guest was opened writable.
type Memory interface {
	ReadAt(p []byte, a kernel.Addr) (int, error)
	WriteAt(p []byte, a kernel.Addr) (int, error)
}

// Edit is one word of guest memory that a transaction changes.
type Edit struct {
	Addr  kernel.Addr // kernel-virtual, naturally aligned
	Path  string      // the C expression that lies there, for people
	Old   uint64      // what was there when the edit was planned
	New   uint64
	Width int // bytes: 1, 2, 4 or 8
}

func (e Edit) String() string {
	return fmt.Sprintf("%s u%d %s: %#x -> %#x", e.Addr, 8*e.Width, e.Path, e.Old, e.New)
}

// MarshalJSON writes numbers as hexadecimal strings: JSON's own lose bits above 2^53.
func (e Edit) MarshalJSON() ([]byte, error) {
	hex := func(v uint64) string { return fmt.Sprintf("%#x", v) }
	return json.Marshal(struct {
		Addr  string `json:"addr"`
		Path  string `json:"path"`
		Old   string `json:"old"`
		New   string `json:"new"`
		Width int    `json:"width"`
	}{hex(uint64(e.Addr)), e.Path, hex(e.Old), hex(e.New), e.Width})
}

// MismatchError says that a word of guest memory does not hold what a transaction
// expects of it: the guest changed it, or a write did not arrive.
type MismatchError struct {
	Edit Edit
	Want uint64
	Got  uint64
	Step string // "compare", "verify" or "undo"
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("%s %s at %s: found %#x, expected %#x", e.Step, e.Edit.Path, e.Edit.Addr, e.Got, e.Want)
}

// UndoError says that a failed transaction could not be taken back completely;
// Left are the edits that are still in guest memory, or may be.
type UndoError struct {
	Left  []Edit
	Cause error // why the transaction failed
	Err   error // why the undo failed
}

func (e *UndoError) Error() string {
	s := fmt.Sprintf("%d words could not be put back: %v", len(e.Left), e.Err)
	if e.Cause != nil {
		s = e.Cause.Error() + "; and " + s
	}
	return s
}

// Unwrap returns both errors.
func (e *UndoError) Unwrap() []error { return []error{e.Cause, e.Err} }

// Tx is a planned change of guest memory. Words are read when an edit is planned,
// written by Commit in the order of planning, and put back by Undo. The guest must
// be paused from the first edit to the end of Commit. A Tx is not safe for
// concurrent use; the zero value is not usable.
//
// Within a Tx reads see planned values, so that two edits of one list compose.
type Tx struct {
	mem     Memory
	edits   []Edit
	index   map[kernel.Addr][]int // aligned 8 bytes -> the edits in them
	written int                   // edits[:written] are in guest memory
	keeper  keeper
}

// keeper keeps a record of a transaction that outlives the program.
type keeper interface {
	begin(edits []Edit) error // nothing was written yet; an error keeps it so
	done() error              // all was written; an error takes it back
	undone() error            // all was put back
}

// NewTx returns an empty transaction over mem.
func NewTx(mem Memory) *Tx { return &Tx{mem: mem, index: make(map[kernel.Addr][]int)} }

// Edits returns a copy of what is planned, in the order of writing.
func (tx *Tx) Edits() []Edit { return append([]Edit(nil), tx.edits...) }

// Len returns the number of planned edits.
func (tx *Tx) Len() int { return len(tx.edits) }

// String shows the plan, one edit a line.
func (tx *Tx) String() string {
	var b strings.Builder
	for _, e := range tx.edits {
		fmt.Fprintln(&b, e)
	}
	return b.String()
}

// MarshalJSON returns the edits as a JSON array.
func (tx *Tx) MarshalJSON() ([]byte, error) {
	if tx.edits == nil {
		return []byte("[]"), nil
	}
	return json.Marshal(tx.edits)
}

// Get returns the word at a as it will be after Commit.
func (tx *Tx) Get(a kernel.Addr, width int) (uint64, error) {
	if i := tx.find(a, width); i >= 0 {
		return tx.edits[i].New, nil
	}
	return tx.read(a, width)
}

// Set plans to write v at a. Planning a second value for the same word replaces
// the first, in its place in the order. The error is a *kernel.PathError, or
// says that edits overlap.
func (tx *Tx) Set(a kernel.Addr, width int, path string, v uint64) error {
	if err := checkWidth(a, width); err != nil {
		return fmt.Errorf("plan %s: %w", path, err)
	}
	v &= mask(width)
	if i := tx.find(a, width); i >= 0 {
		tx.edits[i].New = v
		return nil
	}
	for _, i := range tx.index[a&^7] { // words are aligned, so none reaches out of its 8 bytes
		if e := &tx.edits[i]; a < e.Addr.Add(e.Width) && e.Addr < a.Add(width) {
			return fmt.Errorf("plan %s: overlaps the edit of %s", path, e.Path)
		}
	}
	old, err := tx.read(a, width)
	if err != nil {
		return fmt.Errorf("plan %s: %w", path, err)
	}
	tx.index[a&^7] = append(tx.index[a&^7], len(tx.edits))
	tx.edits = append(tx.edits, Edit{a, path, old, v, width})
	return nil
}

// find returns the index of the edit of exactly that word, or -1.
func (tx *Tx) find(a kernel.Addr, width int) int {
	for _, i := range tx.index[a&^7] {
		if e := &tx.edits[i]; e.Addr == a && e.Width == width {
			return i
		}
	}
	return -1
}

// Update plans to replace the word at a by f of it.
func (tx *Tx) Update(a kernel.Addr, width int, path string, f func(uint64) uint64) error {
	v, err := tx.Get(a, width)
	if err != nil {
		return fmt.Errorf("plan %s: %w", path, err)
	}
	return tx.Set(a, width, path, f(v))
}

// Commit compares every word with what it was when it was planned, then writes
// them in order and reads each back. If anything differs or fails, what was
// written is put back in reverse order and guest memory is as before. Errors:
// *MismatchError, *kernel.PathError, and *UndoError if even putting back failed.
func (tx *Tx) Commit() error {
	if tx.written > 0 {
		return errors.New("transaction was committed already")
	}
	for _, e := range tx.edits {
		if err := tx.expect(e, e.Old, "compare"); err != nil {
			return err
		}
	}
	if tx.keeper != nil && len(tx.edits) > 0 {
		if err := tx.keeper.begin(tx.edits); err != nil {
			return err
		}
	}
	for i, e := range tx.edits {
		// Counted before the attempt: a failed write may have changed memory.
		tx.written = i + 1
		err := tx.write(e.Addr, e.Width, e.New)
		if err == nil {
			err = tx.expect(e, e.New, "verify")
		}
		if err != nil {
			return tx.rollback(err)
		}
	}
	if tx.keeper != nil && len(tx.edits) > 0 {
		if err := tx.keeper.done(); err != nil {
			return tx.rollback(err)
		}
	}
	return nil
}

// rollback puts everything back that was written, whatever memory holds now.
func (tx *Tx) rollback(cause error) error {
	var left []Edit
	var failed error
	for i := tx.written - 1; i >= 0; i-- {
		e := tx.edits[i]
		err := tx.write(e.Addr, e.Width, e.Old)
		if err == nil {
			err = tx.expect(e, e.Old, "undo")
		}
		if err != nil {
			left, failed = append(left, e), errors.Join(failed, err)
		}
	}
	begun := tx.written > 0
	tx.written = 0
	if failed != nil {
		return &UndoError{Left: left, Cause: cause, Err: failed}
	}
	if tx.keeper != nil && begun {
		return errors.Join(cause, tx.keeper.undone())
	}
	return cause
}

// Undo puts the old words back, in reverse order. The guest must be paused. If any
// word no longer holds what Commit wrote, the guest went on from there: nothing is
// written and the error is a *MismatchError. Undo of a Tx that was not committed
// does nothing.
func (tx *Tx) Undo() error {
	for _, e := range tx.edits[:tx.written] {
		if err := tx.expect(e, e.New, "undo"); err != nil {
			return err
		}
	}
	return tx.rollback(nil)
}

func (tx *Tx) expect(e Edit, want uint64, step string) error {
	got, err := tx.read(e.Addr, e.Width)
	if err != nil {
		return fmt.Errorf("%s %s: %w", step, e.Path, err)
	}
	if got != want {
		return &MismatchError{Edit: e, Want: want, Got: got, Step: step}
	}
	return nil
}

func (tx *Tx) read(a kernel.Addr, width int) (uint64, error) {
	if err := checkWidth(a, width); err != nil {
		return 0, err
	}
	var b [8]byte
	if _, err := tx.mem.ReadAt(b[:width], a); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

func (tx *Tx) write(a kernel.Addr, width int, v uint64) error {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	_, err := tx.mem.WriteAt(b[:width], a)
	return err
}

// checkWidth refuses words that a CPU would not store in one piece.
func checkWidth(a kernel.Addr, width int) error {
	switch width {
	case 1, 2, 4, 8:
	default:
		return fmt.Errorf("%d bytes are no word", width)
	}
	if uint64(a)%uint64(width) != 0 {
		return fmt.Errorf("%s is not aligned to %d bytes", a, width)
	}
	return nil
}

func mask(width int) uint64 { return ^uint64(0) >> (64 - 8*width) }
