package signal

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// Unfinished is an operation whose program was killed before it had come to an end, as
// its journal says.
type Unfinished struct {
	Do      string     // "SIGSTOP", "freeze", …
	Set     string     // what it was done to, if not to one process
	PID     kernel.PID // of the process, in the guest's initial pid namespace
	Comm    string
	Begun   time.Time
	Tool    int    // process number of the program
	Journal string // path of the file

	// Paused: the program held the guest paused, and it may still be.
	Paused bool
	// Words are those of a transaction that the program was carrying out when it was
	// killed, in the order of writing, as they are now.
	Words []Word
	// Held are threads that the program froze, and had not thawed, or processes of a set
	// of which it had stopped some and not all.
	Held []kernel.PID
	// Wakes is the number of forged wake-ups that were under way.
	Wakes int

	k *kernel.Kernel
	s *story
}

// Word is a word of an interrupted transaction.
type Word struct {
	Edit
	Now uint64
}

// State says what the word holds: "old", "new", or "neither", which nobody can undo.
func (w Word) State() string {
	switch w.Now {
	case w.Old:
		return "old"
	case w.New:
		return "new"
	}
	return "neither"
}

func (u *Unfinished) String() string {
	what := u.Set
	if what == "" {
		what = fmt.Sprintf("pid %d (%s)", u.PID, u.Comm)
	}
	return fmt.Sprintf("%s of %s", u.Do, what)
}

// ErrChanged says that memory holds neither what an interrupted transaction was to
// write nor what was there before: the guest went on from there.
var ErrChanged = errors.New("the guest has changed what an interrupted transaction wrote")

// Pending returns the operations on the guest of k that were not brought to an end,
// as the journals in dir say, those first that must be undone first. Operations of
// programs that are alive are not among them, nor are those of which nothing is left.
// dir need not exist.
// A file in dir that others than this user can write to is an error.
func Pending(k *kernel.Kernel, dir string) ([]*Unfinished, error) {
	id, err := identify(k)
	if err != nil {
		return nil, err
	}
	paths, err := filepath.Glob(filepath.Join(escapeGlob(dir), id.key()+"-*"+journalSuffix))
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	var all []*Unfinished
	for _, path := range paths {
		u, err := pending(k, id, path)
		if errors.Is(err, errLocked) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("journal %s: %w", path, err)
		}
		if u != nil {
			all = append(all, u)
		}
	}
	slices.SortStableFunc(all, func(a, b *Unfinished) int {
		if a.Paused != b.Paused {
			if a.Paused {
				return -1
			}
			return 1
		}
		return a.Begun.Compare(b.Begun)
	})
	return all, nil
}

var errOtherGuest = errors.New("it is of another guest")

// escapeGlob makes a path its own pattern.
func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// pending reads one journal, and removes it if there is nothing to be undone.
func pending(k *kernel.Kernel, id guestID, path string) (*Unfinished, error) {
	f, err := openJournal(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s, err := readStory(f)
	if err != nil {
		return nil, err
	}
	if s.id != id {
		return nil, errOtherGuest
	}
	u := &Unfinished{
		Do: s.aim.Do, Set: s.aim.Set, PID: s.aim.PID, Comm: s.aim.Comm, Begun: s.aim.Begun, Tool: s.aim.Tool,
		Journal: path, Paused: s.paused > 0, Wakes: len(s.wakes), k: k, s: s,
	}
	if s.underWay() {
		if u.Words, err = s.look(k.Memory()); err != nil {
			return nil, err
		}
	}
	for _, m := range s.marks {
		if t, err := k.TaskAt(m.Task); err == nil && t.PID == m.PID && t.BootTime == m.Boot && t.ExitState == 0 {
			u.Held = append(u.Held, m.PID)
		}
	}
	if !u.Paused && u.Words == nil && u.Held == nil && u.Wakes == 0 && !s.kicks && !s.work {
		return nil, os.Remove(path)
	}
	return u, nil
}

// underWay says that the last transaction must be looked at word by word: the guest
// has not run since, as far as the journal knows.
func (s *story) underWay() bool { return s.step == begun || s.step == done && !s.resumed }

// look reads the words of the last transaction.
func (s *story) look(m vmi.Memory) ([]Word, error) {
	out := make([]Word, len(s.words))
	for i, w := range s.words {
		now, err := w.read(m)
		if err != nil {
			return nil, err
		}
		out[i] = Word{w.Edit, now}
	}
	return out, nil
}

func (w *word) read(m vmi.Memory) (uint64, error) {
	var b [8]byte
	if _, err := m.ReadPhys(b[:w.Width], w.phys); err != nil {
		return 0, fmt.Errorf("%s: %w", w.Path, err)
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// putBack writes the old value and reads it back.
func (w *word) putBack(m vmi.Memory) error {
	out, ok := m.(vmi.Writer)
	if !ok {
		return ErrReadOnly
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], w.Old)
	if _, err := out.WritePhys(b[:w.Width], w.phys); err != nil {
		return fmt.Errorf("%s: %w", w.Path, err)
	}
	now, err := w.read(m)
	if err == nil && now != w.Old {
		err = &MismatchError{Edit: w.Edit, Want: w.Old, Got: now, Step: "undo"}
	}
	return err
}

// Undone is what Undo did.
type Undone struct {
	PutBack   int    `json:"put_back"`  // words that hold again what they did before
	Continued bool   `json:"continued"` // the guest was still paused, and runs again
	Effect    string `json:"effect"`    // what became of the operation
}

// Forget removes the journal without touching the guest.
func (u *Unfinished) Forget() error { return os.Remove(u.Journal) }

// Undo brings the operation to an end. A transaction that was being carried out is
// taken back, word by word; if a word holds neither what it held before nor what was
// to be written, nothing is written and the error is ErrChanged. If the program held
// the guest paused, the guest runs again. Then what is left of the operation's earlier
// transactions is cleared up: wake-ups are waited for, or taken back, and what was
// frozen is thawed. A signal that the guest has received stays received.
//
// If Undo fails, or its program is killed too, it can be called again.
func (u *Unfinished) Undo(ctx context.Context, log *slog.Logger) (*Undone, error) {
	f, err := openJournal(u.Journal, os.O_RDWR)
	if err != nil {
		return nil, fmt.Errorf("journal %s: %w", u.Journal, err)
	}
	r := &record{f: f, path: u.Journal}
	s, err := r.reread()
	if err == nil && s.id != u.s.id {
		err = errOtherGuest
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("journal %s: %w", u.Journal, err), f.Close())
	}
	r.phys = u.k.Phys
	m, err := machineOf(u.k)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	o := &op{machine: m, k: u.k, log: log, rec: r, aim: s.aim, unsettled: slices.Clone(s.wakes)}
	o.report.PID, o.report.Comm, o.report.Strategy = s.aim.PID, s.aim.Comm, ByBitmap
	done := &Undone{}
	err = o.undoWords(ctx, s, done)
	if err == nil {
		err = o.finish(ctx, s, done)
	}
	o.left = o.left || err != nil
	return done, errors.Join(err, o.end())
}

// reread reads the journal and goes on behind its last whole line.
func (r *record) reread() (*story, error) {
	s, err := readStory(r.f)
	if err != nil {
		return nil, err
	}
	r.txs = s.tx
	if err := r.f.Truncate(s.size); err != nil {
		return nil, err
	}
	_, err = r.f.Seek(s.size, io.SeekStart)
	return s, err
}

// undoWords takes back the transaction that was under way, and lets the guest run.
func (o *op) undoWords(ctx context.Context, s *story, out *Undone) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pauseLimit)
	defer cancel()
	runs, err := o.runs(ctx)
	if err != nil {
		return err
	}
	pauser, ok := o.k.Memory().(vmi.Pauser)
	if !ok {
		return ErrNoPause
	}
	resume, err := pauser.Pause(ctx)
	if err != nil {
		return fmt.Errorf("pause the guest: %w", err)
	}
	if s.underWay() {
		err = o.takeBack(ctx, s, runs, out)
	}
	if err = errors.Join(err, resume()); err != nil || runs || s.paused == 0 {
		return err
	}
	c, ok := o.k.Memory().(vmi.Continuer)
	if !ok {
		return fmt.Errorf("%w, and this memory source cannot let it run", ErrNotRunning)
	}
	if err := c.Continue(ctx); err != nil {
		return fmt.Errorf("let the guest run: %w", err)
	}
	o.resumed, out.Continued = time.Now(), true
	return o.rec.note("running")
}

// runs says whether the guest runs, as far as the source knows.
func (o *op) runs(ctx context.Context) (bool, error) {
	m, ok := o.k.Memory().(vmi.Stater)
	if !ok {
		return true, nil
	}
	status, err := m.Status(ctx)
	return status.Running, err
}

// takeBack puts the words of the last transaction back. One that was carried out to
// the end stays if the guest has run since, or if an NMI for it may be under way.
func (o *op) takeBack(ctx context.Context, s *story, runs bool, out *Undone) error {
	words, err := s.look(o.k.Memory())
	if err != nil {
		return err
	}
	if s.step == done {
		if runs {
			return nil
		}
		if s.kicked {
			// Sent once more it is still one, as long as the guest stands still.
			if m, ok := o.k.Memory().(vmi.NMI); ok {
				return m.InjectNMI(ctx)
			}
			return nil
		}
		if changedWords(words) != nil {
			return nil
		}
		if err := o.rec.note("undoing"); err != nil {
			return err
		}
		// Not in the guest any more, and nothing to be cleared up after.
		s.undoing(s.last)
		o.unsettled = slices.Clone(s.wakes)
	}
	if out.PutBack, err = s.putBack(o.k.Memory(), words); err != nil {
		return err
	}
	s.step = undone
	return o.rec.note("undone %d", s.tx)
}

// changedWords says which words hold neither their old nor their new value.
func changedWords(words []Word) (changed []string) {
	for _, w := range words {
		if w.State() == "neither" {
			changed = append(changed, fmt.Sprintf("%s holds %#x", w.Path, w.Now))
		}
	}
	return changed
}

// putBack gives the words of the last transaction, which hold what words says, their
// old values, the last first, and returns how many had others.
func (s *story) putBack(m vmi.Memory, words []Word) (n int, err error) {
	if c := changedWords(words); c != nil {
		return 0, fmt.Errorf("%w: %s", ErrChanged, strings.Join(c[:min(4, len(c))], ", "))
	}
	for i := len(s.words) - 1; i >= 0; i-- {
		if words[i].Now == s.words[i].Old {
			continue
		}
		if err := s.words[i].putBack(m); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// MarshalJSON writes what is pending with the names of docs/cli.md.
func (u *Unfinished) MarshalJSON() ([]byte, error) {
	type wordJSON struct {
		Phys  string `json:"phys"`
		Path  string `json:"path"`
		Old   string `json:"old"`
		New   string `json:"new"`
		Now   string `json:"now"`
		Width int    `json:"width"`
		State string `json:"state"`
	}
	hex := func(v uint64) string { return fmt.Sprintf("%#x", v) }
	words := make([]wordJSON, len(u.Words))
	for i, w := range u.Words {
		words[i] = wordJSON{hex(uint64(u.s.words[i].phys)), w.Path, hex(w.Old), hex(w.New), hex(w.Now), w.Width, w.State()}
	}
	return json.Marshal(struct {
		Do      string       `json:"do"`
		Set     string       `json:"set,omitempty"`
		PID     kernel.PID   `json:"pid,omitempty"`
		Comm    string       `json:"comm,omitempty"`
		Begun   time.Time    `json:"begun"`
		Tool    int          `json:"tool"`
		Journal string       `json:"journal"`
		Paused  bool         `json:"paused"`
		Words   []wordJSON   `json:"words"`
		Held    []kernel.PID `json:"held"`
		Wakes   int          `json:"wakes"`
	}{u.Do, u.Set, u.PID, u.Comm, u.Begun, u.Tool, u.Journal, u.Paused, words, append([]kernel.PID{}, u.Held...), u.Wakes})
}
