package signal

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/vmitest"
)

// faulty is kernel memory that goes wrong at a chosen access.
type faulty struct {
	*vmitest.Mem
	n    int // accesses until then; -1: never
	kind faultKind
}

type faultKind int

const (
	failRead  faultKind = iota
	failWrite           // an error, nothing written
	tornWrite           // an error, half of it written
	lostWrite           // no error, nothing written
	wildWrite           // no error, something else written
	faultKinds
)

var errFault = errors.New("memory fault")

func (m *faulty) now(read bool) bool {
	if (m.kind == failRead) != read {
		return false
	}
	m.n--
	return m.n == -1
}

func (m *faulty) ReadAt(p []byte, a kernel.Addr) (int, error) {
	if m.now(true) {
		return 0, errFault
	}
	return m.ReadPhys(p, vmi.Phys(a))
}

func (m *faulty) WriteAt(p []byte, a kernel.Addr) (int, error) {
	if !m.now(false) {
		return m.WritePhys(p, vmi.Phys(a))
	}
	switch m.kind {
	case failWrite:
		return 0, errFault
	case tornWrite:
		n, _ := m.WritePhys(p[:len(p)/2], vmi.Phys(a))
		return n, errFault
	case wildWrite:
		q := make([]byte, len(p))
		for i := range q {
			q[i] = ^p[i]
		}
		return m.WritePhys(q, vmi.Phys(a))
	}
	return len(p), nil // lost
}

const testPages = 2 * vmi.PageSize

func testMemory() *faulty {
	m := &faulty{Mem: vmitest.New(vmi.Range{End: testPages}), n: -1}
	for a := vmi.Phys(0); a < testPages; a += 8 {
		m.SetUint64(a, uint64(a)*0x0101010101010101+7)
	}
	return m
}

func contents(m *faulty) []byte {
	b := make([]byte, testPages)
	if _, err := m.ReadPhys(b, 0); err != nil {
		panic(err)
	}
	return b
}

func planned(t *testing.T, m *faulty) *Tx {
	t.Helper()
	tx := NewTx(m)
	require.NoError(t, tx.Set(0x10, 8, "a", 1))
	require.NoError(t, tx.Set(0x20, 4, "b", 2))
	require.NoError(t, tx.Set(0x24, 2, "c", 3))
	require.NoError(t, tx.Set(0x27, 1, "d", 4))
	require.NoError(t, tx.Update(0x10, 8, "a", func(v uint64) uint64 { return v | 0x100 }))
	require.NoError(t, tx.Set(vmi.PageSize, 8, "e", 5))
	return tx
}

func TestTxCommitUndo(t *testing.T) {
	m := testMemory()
	before := contents(m)
	tx := planned(t, m)
	require.Equal(t, before, contents(m), "planning writes nothing")
	require.Equal(t, 5, tx.Len(), "edits of one word are one edit")
	require.NoError(t, tx.Commit())
	require.EqualValues(t, 0x101, m.Uint64(0x10))
	require.EqualValues(t, 5, m.Uint64(vmi.PageSize))
	after := contents(m)
	changed := 0
	for i := range after {
		if after[i] != before[i] {
			changed++
		}
	}
	require.LessOrEqual(t, changed, 8+4+2+1+8, "nothing else was written")
	require.Error(t, tx.Commit(), "a second commit is refused")
	require.NoError(t, tx.Undo())
	require.Equal(t, before, contents(m))
	require.NoError(t, tx.Undo(), "undo twice does nothing")
}

// Whatever goes wrong, and wherever, guest memory is as it was, or the error says
// what is not.
func TestTxFaultAtEveryAccess(t *testing.T) {
	for kind := range faultKinds {
		failures := 0
		for n := 0; ; n++ {
			m := testMemory()
			before := contents(m)
			tx := planned(t, m)
			m.kind, m.n = kind, n
			err := tx.Commit()
			if m.n >= 0 { // the fault was never reached
				require.NoError(t, err)
				break
			}
			failures++
			require.Error(t, err, "kind %d at %d", kind, n)
			require.Equal(t, before, contents(m), "kind %d at %d: %v", kind, n, err)
			var undo *UndoError
			require.False(t, errors.As(err, &undo), "one fault can be undone: %v", err)
			require.NoError(t, tx.Undo())
		}
		require.GreaterOrEqual(t, failures, 5, "kind %d", kind)
	}
}

func TestTxUndoFails(t *testing.T) {
	m := testMemory()
	tx := planned(t, m)
	// The third write fails, and so does putting back the second.
	broken := &brokenAfter{m, 2}
	tx.mem = broken
	err := tx.Commit()
	var undo *UndoError
	require.ErrorAs(t, err, &undo)
	require.ErrorIs(t, err, errFault)
	require.Len(t, undo.Left, 3)
	require.Contains(t, err.Error(), "could not be put back")
}

// brokenAfter fails every write after the first n.
type brokenAfter struct {
	*faulty
	n int
}

func (m *brokenAfter) WriteAt(p []byte, a kernel.Addr) (int, error) {
	if m.n--; m.n < 0 {
		return 0, errFault
	}
	return m.faulty.WriteAt(p, a)
}

func TestTxChangedMemory(t *testing.T) {
	m := testMemory()
	tx := planned(t, m)
	m.SetUint64(vmi.PageSize, 99)
	before := contents(m)
	var mismatch *MismatchError
	require.ErrorAs(t, tx.Commit(), &mismatch)
	require.Equal(t, "e", mismatch.Edit.Path)
	require.EqualValues(t, 99, mismatch.Got)
	require.Equal(t, before, contents(m))

	tx = planned(t, m)
	require.NoError(t, tx.Commit())
	m.SetUint64(0x10, 42) // the guest went on
	before = contents(m)
	require.ErrorAs(t, tx.Undo(), &mismatch)
	require.Equal(t, "undo", mismatch.Step)
	require.Equal(t, before, contents(m), "undo of what was consumed writes nothing")
}

func TestTxRefusesNonsense(t *testing.T) {
	tx := NewTx(testMemory())
	require.NoError(t, tx.Set(0x10, 8, "a", 1))
	require.ErrorContains(t, tx.Set(0x14, 4, "b", 1), "overlaps")
	require.ErrorContains(t, tx.Set(0x10, 4, "b", 1), "overlaps")
	require.ErrorContains(t, tx.Set(0x21, 4, "b", 1), "aligned")
	require.ErrorContains(t, tx.Set(0x20, 3, "b", 1), "no word")
	require.ErrorContains(t, tx.Set(0x20, 16, "b", 1), "no word")
	require.Error(t, tx.Set(testPages, 8, "outside", 1))
	require.Error(t, tx.Update(testPages, 8, "outside", func(v uint64) uint64 { return v }))
	require.Equal(t, 1, tx.Len())
	v, err := tx.Get(0x10, 8)
	require.NoError(t, err)
	require.EqualValues(t, 1, v, "reads see the plan")
}

func TestTxShow(t *testing.T) {
	m := testMemory()
	m.SetUint64(0x10, 0xffffffffffffffff)
	tx := NewTx(m)
	b, err := json.Marshal(tx)
	require.NoError(t, err)
	require.Equal(t, "[]", string(b))
	require.NoError(t, tx.Set(0x10, 8, "task_struct(7 sh).jobctl", 0x800000))
	require.Equal(t, "0x10 u64 task_struct(7 sh).jobctl: 0xffffffffffffffff -> 0x800000\n", tx.String())
	b, err = json.Marshal(tx)
	require.NoError(t, err)
	want := `[{"addr":"0x10","path":"task_struct(7 sh).jobctl","old":"0xffffffffffffffff","new":"0x800000","width":8}]`
	require.Empty(t, cmp.Diff(want, string(b)))
}

// Lists are made of several words: what is planned on one must compose.
func TestLLISTUnlink(t *testing.T) {
	const head = kernel.Addr(0xffffffff00000000)
	mem := &offset{testMemory()}
	set := func(a, v kernel.Addr) { mem.SetUint64(vmi.Phys(a-head), uint64(v)) }
	node := func(i int) kernel.Addr { return head.Add(0x40 * i) }
	for i := range 4 {
		set(node(i), node(i+1))
	}
	set(node(4), 0)
	tx := NewTx(mem)
	for _, i := range []int{2, 3, 1, 4} {
		found, err := llistUnlink(tx, head, node(i), "list")
		require.NoError(t, err)
		require.True(t, found)
	}
	found, err := llistUnlink(tx, head, node(1), "list")
	require.NoError(t, err)
	require.False(t, found)
	require.NoError(t, tx.Commit())
	require.Zero(t, mem.Uint64(0), "the list is empty")

	set(node(0), node(1))
	set(node(1), node(1)) // a loop
	_, err = llistUnlink(NewTx(mem), head, node(9), "list")
	require.ErrorIs(t, err, kernel.ErrLimit)
	set(node(1), 0x1234)
	_, err = llistUnlink(NewTx(mem), head, node(9), "list")
	require.ErrorIs(t, err, kernel.ErrCorrupt)
}

// offset puts test memory where kernel pointers point.
type offset struct{ *faulty }

func (m *offset) ReadAt(p []byte, a kernel.Addr) (int, error) {
	return m.faulty.ReadAt(p, a-0xffffffff00000000)
}

func (m *offset) WriteAt(p []byte, a kernel.Addr) (int, error) {
	return m.faulty.WriteAt(p, a-0xffffffff00000000)
}

func ExampleTx() {
	mem := testMemory()
	mem.SetUint64(0x40, 0)
	tx := NewTx(mem)
	if err := tx.Set(0x40, 8, "task_struct(196 counter).jobctl", 1<<23); err != nil {
		fmt.Println(err)
	}
	fmt.Print(tx)
	if err := tx.Commit(); err != nil {
		fmt.Println(err)
	}
	fmt.Printf("now %#x\n", mem.Uint64(0x40))
	if err := tx.Undo(); err != nil {
		fmt.Println(err)
	}
	fmt.Printf("and %#x\n", mem.Uint64(0x40))
	// Output:
	// 0x40 u64 task_struct(196 counter).jobctl: 0x0 -> 0x800000
	// now 0x800000
	// and 0x0
}
