package signal

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// maxJournal bounds the journal of one operation.
const maxJournal = 256 << 20

// step says how far a transaction came.
type step int

const (
	begun  step = iota // some of its words may be written
	done               // all of them are
	undone             // none of them is any more
)

// word is an edit at the guest-physical address where it was planned.
type word struct {
	Edit
	phys vmi.Phys
}

// story is what a journal says.
type story struct {
	id  guestID
	aim aim

	size    int64 // bytes of whole lines
	paused  int   // pauses that have not ended
	tx      int   // number of the last transaction, 0 for none
	words   []word
	step    step
	last    extras
	resumed bool // the guest went on after it
	kicked  bool // the NMI that belongs to it was sent, or was about to be

	// Of the transactions that are in the guest:
	wakes []*wake // in flight
	marks []mark
	work  bool // send_signal_work was put in flight
	kicks bool // an NMI may have come that was kept silent
}

// trusted refuses a journal that somebody else may have written: what it says goes into
// the memory of a guest.
func trusted(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.Mode().IsRegular() || int(owner.Uid) != os.Geteuid() || st.Mode().Perm()&0o022 != 0 {
		return errors.New("not trusted: others than this user may have written it")
	}
	return nil
}

// openJournal opens and locks a journal; errLocked says that its program lives.
func openJournal(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err = trusted(f); err == nil {
		err = lockFile(f)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// readStory reads a journal. What its program was writing when it was killed is cut
// off, and counts as not written: nothing is done before it is in the file.
func readStory(r io.Reader) (*story, error) {
	s := &story{step: undone}
	in := bufio.NewReaderSize(io.LimitReader(r, maxJournal), 1<<16)
	var words []word
	for n := 1; ; n++ {
		line, err := in.ReadString('\n')
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		s.size += int64(len(line))
		line = strings.TrimSuffix(line, "\n")
		if n == 1 {
			if line != journalMagic {
				return nil, fmt.Errorf("no journal: it begins with %.40q", line)
			}
			continue
		}
		verb, rest, _ := strings.Cut(line, " ")
		if verb != "e" && verb != "begin" {
			words = nil // of a transaction that never began
		}
		switch verb {
		case "guest":
			err = json.Unmarshal([]byte(rest), &s.id)
		case "aim":
			err = json.Unmarshal([]byte(rest), &s.aim)
		case "pause":
			s.paused++
		case "resume":
			s.paused = max(0, s.paused-1)
			s.resumed = s.resumed || s.paused == 0
		case "running":
			s.paused, s.resumed = 0, true
		case "e":
			var w word
			w, err = parseWord(rest)
			words = append(words, w)
		case "begin":
			s.last, err = s.begin(rest, words)
			words = nil
		case "done":
			s.done(s.last)
		case "undoing":
			s.undoing(s.last)
		case "undone":
			if s.step == done {
				s.undoing(s.last)
			}
			s.step = undone
		case "kick":
			s.kicked = true
		case "quiet":
			s.kicks = false
		case "taken":
			s.work = false
		case "freed":
			err = s.freed(rest)
		case "whole":
			s.marks = nil // nobody is to go on
		default:
			err = fmt.Errorf("unknown word %.20q", verb)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	if s.aim.Do == "" {
		return nil, io.ErrUnexpectedEOF
	}
	return s, nil
}

func parseWord(s string) (w word, err error) {
	f := strings.SplitN(s, " ", 6)
	if len(f) != 6 {
		return w, fmt.Errorf("a word of %d fields", len(f))
	}
	var v [4]uint64
	for i := range v {
		if v[i], err = strconv.ParseUint(f[i], 16, 64); err != nil {
			return w, err
		}
	}
	w.phys, w.Addr, w.Old, w.New = vmi.Phys(v[0]), kernel.Addr(v[1]), v[2], v[3]
	if w.Width, err = strconv.Atoi(f[4]); err != nil {
		return w, err
	}
	if w.Path, err = strconv.Unquote(f[5]); err != nil {
		return w, err
	}
	return w, checkWidth(kernel.Addr(w.phys), w.Width)
}

func (s *story) begin(rest string, words []word) (x extras, err error) {
	var n, count int
	if _, err = fmt.Sscanf(rest, "%d %d", &n, &count); err != nil {
		return x, err
	}
	if count != len(words) {
		return x, fmt.Errorf("transaction %d has %d words, not %d", n, len(words), count)
	}
	if i := strings.IndexByte(rest, '{'); i >= 0 {
		err = json.NewDecoder(bytes.NewReader([]byte(rest[i:]))).Decode(&x)
	}
	s.tx, s.words, s.step, s.resumed, s.kicked = n, words, begun, false, false
	return x, err
}

// done takes over what the last transaction did beside writing words.
func (s *story) done(x extras) {
	s.step = done
	for _, a := range x.Settled {
		s.drop(a, true)
	}
	for _, w := range x.Wakes {
		s.wakes = append(s.wakes, w.wake())
	}
	s.marks = append(s.marks, x.Marks...)
	s.work = s.work || x.Work
	s.kicks = s.kicks || x.Kick
}

// undoing takes that back. Wake-ups that the transaction settled are over
// nevertheless; at worst a task_struct keeps a reference too many.
func (s *story) undoing(x extras) {
	s.step = begun
	for _, w := range x.Wakes {
		s.drop(w.Slot, true)
	}
	s.marks = s.marks[:max(0, len(s.marks)-len(x.Marks))]
	s.work = s.work && !x.Work
}

func (s *story) freed(rest string) error {
	a, err := strconv.ParseUint(rest, 16, 64)
	s.drop(kernel.Addr(a), false)
	return err
}

// drop forgets the wake-up in slot a: at once, or if its slot was all it had.
func (s *story) drop(a kernel.Addr, settled bool) {
	for i, w := range s.wakes {
		if w.slot != a {
			continue
		}
		if settled || w.noRef {
			s.wakes = append(s.wakes[:i], s.wakes[i+1:]...)
			return
		}
		w.cleared = true
	}
}
