package signal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/vmitest"
)

// dying is memory whose user dies before the n-th write.
type dying struct {
	*vmitest.Mem
	n int
}

var errDied = errors.New("died")

func (m *dying) ReadAt(p []byte, a kernel.Addr) (int, error) { return m.ReadPhys(p, vmi.Phys(a)) }

func (m *dying) WriteAt(p []byte, a kernel.Addr) (int, error) {
	if m.n--; m.n < 0 {
		panic(errDied)
	}
	return m.WritePhys(p, vmi.Phys(a))
}

func testRecord(t *testing.T) *record {
	f, err := os.Create(filepath.Join(t.TempDir(), "test"+journalSuffix))
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	r := &record{f: f, path: f.Name(), phys: func(a kernel.Addr) (vmi.Phys, error) { return vmi.Phys(a), nil }}
	require.NoError(t, r.append([]byte(journalMagic+"\nguest {}\naim {\"do\":\"SIGSTOP\",\"pid\":7,\"comm\":\"sh\"}\n")))
	return r
}

func readBack(t *testing.T, r *record) *story {
	t.Helper()
	b, err := os.ReadFile(r.path)
	require.NoError(t, err)
	s, err := readStory(bytes.NewReader(b))
	require.NoError(t, err)
	return s
}

// A journal is an order to write into a guest: it must be from nobody else.
func TestJournalNotTrusted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x"+journalSuffix)
	require.NoError(t, os.WriteFile(path, []byte(journalMagic+"\n"), 0o600))
	for _, damage := range []func() error{
		func() error { return os.Chmod(path, 0o622) },
		func() error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)) },
	} {
		require.NoError(t, damage())
		_, err := pending(nil, guestID{}, path)
		require.ErrorContains(t, err, "not trusted")
		_, err = (&Unfinished{Journal: path}).Undo(t.Context(), nil)
		require.ErrorContains(t, err, "not trusted")
	}
}

// Whatever its name says, a journal is for the guest that is named in it.
func TestJournalOfAnotherGuest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x"+journalSuffix)
	text := journalMagic + "\nguest {\"banner\":\"one\"}\naim {\"do\":\"SIGSTOP\"}\n"
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	_, err := pending(nil, guestID{Banner: "two"}, path)
	require.ErrorIs(t, err, errOtherGuest)
	_, err = (&Unfinished{Journal: path, s: &story{id: guestID{Banner: "two"}}}).Undo(t.Context(), nil)
	require.ErrorIs(t, err, errOtherGuest)
	u, err := pending(nil, guestID{Banner: "one"}, path)
	require.NoError(t, err)
	require.Nil(t, u, "nothing is left of it")
	require.NoFileExists(t, path)
}

// Whichever write is the last that is made: memory is as before or as planned, or the
// journal makes it as before.
func TestJournalDeathAtEveryWrite(t *testing.T) {
	for n := 0; ; n++ {
		m := testMemory()
		before := contents(m)
		d := &dying{m.Mem, n}
		r := testRecord(t)
		tx := NewTx(d)
		for i, a := range []kernel.Addr{0x10, 0x28, 0x2c, 0x30, 0x31, 0x1000, 0x18} {
			width := []int{8, 4, 2, 1, 1, 8, 8}[i]
			require.NoError(t, tx.Set(a, width, "word \"x\"\n of "+a.String(), uint64(i)*0x1111))
		}
		p := &plan{Tx: tx, wakes: []*wake{{slot: 0x40, task: 0x80, pid: 7}}, marks: []mark{{Task: 0x80, PID: 7}}}
		r.keep(p)
		died := func() (died bool) {
			defer func() { died = recover() != nil }()
			require.NoError(t, p.Commit())
			return
		}()
		s := readBack(t, r)
		require.Equal(t, tx.Edits(), editsOf(s))
		if !died {
			require.Equal(t, tx.Len(), n)
			require.Equal(t, done, s.step)
			require.Len(t, s.wakes, 1)
			require.Len(t, s.marks, 1)
			require.NotEqual(t, before, contents(m))
			d.n = 2 * n
			require.NoError(t, p.Undo())
			require.Equal(t, before, contents(m))
			s = readBack(t, r)
			require.Equal(t, undone, s.step)
			require.Empty(t, s.wakes)
			require.Empty(t, s.marks)
			break
		}
		require.Equal(t, begun, s.step)
		require.Empty(t, s.wakes)
		words, err := s.look(m)
		require.NoError(t, err)
		// Even the one who puts back may die, at every write of his.
		for k := range n {
			half := testMemory()
			copyInto(t, half, m)
			undoer := &dyingWriter{Mem: half.Mem, n: k}
			func() {
				defer func() { require.Equal(t, errDied, recover()) }()
				_, _ = s.putBack(undoer, words)
			}()
			again, err := s.look(half)
			require.NoError(t, err)
			_, err = s.putBack(half, again)
			require.NoError(t, err)
			require.Equal(t, before, contents(half))
		}
		got, err := s.putBack(m, words)
		require.NoError(t, err)
		require.Equal(t, n, got)
		require.Equal(t, before, contents(m), "death before write %d", n)
	}
}

func editsOf(s *story) (e []Edit) {
	for _, w := range s.words {
		e = append(e, w.Edit)
	}
	return e
}

func copyInto(t *testing.T, to, from *faulty) {
	t.Helper()
	_, err := to.WritePhys(contents(from), 0)
	require.NoError(t, err)
}

// dyingWriter is dying at guest-physical addresses.
type dyingWriter struct {
	*vmitest.Mem
	n int
}

func (m *dyingWriter) WritePhys(p []byte, a vmi.Phys) (int, error) {
	if m.n--; m.n < 0 {
		panic(errDied)
	}
	return m.Mem.WritePhys(p, a)
}

// A guest that went on from what was written is left alone.
func TestJournalRefusesChangedWords(t *testing.T) {
	m := testMemory()
	d := &dying{m.Mem, 2}
	r := testRecord(t)
	p := &plan{Tx: NewTx(d)}
	for _, a := range []kernel.Addr{0x10, 0x20, 0x30} {
		require.NoError(t, p.Set(a, 8, "w", 1))
	}
	r.keep(p)
	require.Panics(t, func() { _ = p.Commit() })
	m.SetUint64(0x10, 77)
	now := contents(m)
	s := readBack(t, r)
	words, err := s.look(m)
	require.NoError(t, err)
	require.Equal(t, []string{"neither", "new", "old"}, []string{words[0].State(), words[1].State(), words[2].State()})
	_, err = s.putBack(m, words)
	require.ErrorIs(t, err, ErrChanged)
	require.ErrorContains(t, err, "w holds 0x4d")
	require.Equal(t, now, contents(m), "nothing was written")
}

// A journal that ends anywhere, as the program that wrote it did, is read as far as it
// goes, and a transaction counts from its last line on.
func TestJournalCutOff(t *testing.T) {
	m := testMemory()
	r := testRecord(t)
	p := &plan{Tx: NewTx(m), wakes: []*wake{{slot: 0x40, task: 0x80, pid: 7}}, kick: true}
	require.NoError(t, r.note("pause"))
	require.NoError(t, p.Set(0x10, 8, "a", 1))
	require.NoError(t, p.Set(0x20, 4, "b", 2))
	r.keep(p)
	require.NoError(t, p.Commit())
	require.NoError(t, r.note("kick"))
	require.NoError(t, r.note("resume"))
	require.NoError(t, r.note("freed 40"))
	require.NoError(t, r.note("quiet"))
	whole, err := os.ReadFile(r.path)
	require.NoError(t, err)
	begins, dones := bytes.Index(whole, []byte("\nbegin ")), bytes.Index(whole, []byte("\ndone "))
	for n := range len(whole) + 1 {
		s, err := readStory(bytes.NewReader(whole[:n]))
		if n < bytes.Index(whole, []byte("\npause"))+1 {
			require.Error(t, err)
			continue
		}
		require.NoError(t, err, "%q", whole[:n])
		require.LessOrEqual(t, s.size, int64(n))
		switch {
		case n <= begins+len("\nbegin "):
			require.Equal(t, undone, s.step)
			require.Empty(t, s.words)
		case n == dones+1:
			require.Equal(t, begun, s.step)
			require.Len(t, s.words, 2)
		case n == len(whole):
			require.Equal(t, done, s.step)
			require.True(t, s.resumed && s.kicked && !s.kicks)
			require.Zero(t, s.paused)
			require.Len(t, s.wakes, 1, "its reference is to be dropped")
			require.True(t, s.wakes[0].cleared)
		}
	}
	for _, bad := range []string{"x\n", "e 1 2\n", "e 11 11 0 0 8 \"a\"\n", "begin 1 5 {}\n", "begin x\n", "freed y\n", "e 1 1 0 0 1 a\n"} {
		_, err := readStory(bytes.NewReader(append(bytes.Clone(whole), bad...)))
		require.Error(t, err, "%q", bad)
	}
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte(journalMagic + "\nguest {}\naim {\"do\":\"freeze\"}\npause\ne 10 10 0 1 8 \"a\"\nbegin 1 1 {\"wakes\":[{\"slot\":64}],\"marks\":[{\"pid\":1}]}\ndone 1\nundoing\nresume\nfreed 40\nwhole\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := readStory(bytes.NewReader(b))
		if (s == nil) == (err == nil) {
			t.Fatal("both or neither")
		}
	})
}
