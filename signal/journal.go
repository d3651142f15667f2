package signal

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// Record makes all later operations on k keep a journal: before the first word of a
// transaction is written, what it will write and what was there before are in a file
// in dir, by guest-physical address. If the program is killed, whatever the guest was
// in the middle of, the next one finds it with [Pending] and takes it back. The files
// of an operation disappear when nothing of it is left to be undone. dir is made if it
// is not there; it may serve any number of guests and programs.
//
// Without Record nothing is kept, and only what ends in an orderly way is undone.
//
// A journal is not flushed to the disk: it is for a guest whose memory ends with this
// host, and the host's page cache does not end earlier. Flushing it would hold the
// guest for as long as the disk takes.
func Record(k *kernel.Kernel, dir string) error {
	id, err := identify(k)
	if err != nil {
		return err
	}
	m, err := machineOf(k)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.journal = &journal{dir: dir, id: id}
	return nil
}

// journal is where the operations on one guest are recorded.
type journal struct {
	dir string
	id  guestID
}

const (
	journalMagic  = "ovmigrate journal 1"
	journalSuffix = ".journal"
)

// aim is what an operation is about, as a journal has it.
type aim struct {
	Do    string      `json:"do"` // a signal's name, or "freeze"
	Set   string      `json:"set,omitempty"`
	PID   kernel.PID  `json:"pid,omitempty"`
	Comm  string      `json:"comm,omitempty"`
	Task  kernel.Addr `json:"task,omitempty"`
	Boot  uint64      `json:"start_ns,omitempty"`
	Begun time.Time   `json:"begun"`
	Tool  int         `json:"tool"` // the process that did it
}

// aimFreeze is what Do says of a freeze.
const aimFreeze = "freeze"

func aimAt(do string, t *kernel.Task) aim {
	return aim{Do: do, PID: t.PID, Comm: t.Comm, Task: t.Addr, Boot: t.BootTime}
}

// record is the journal of one operation. A nil record keeps nothing.
type record struct {
	phys func(kernel.Addr) (vmi.Phys, error)
	f    *os.File // locked: as long as the lock is held its program lives
	path string
	txs  int // begun
}

// create makes the file of an operation.
func (j *journal) create(k *kernel.Kernel, a aim) (*record, error) {
	a.Begun, a.Tool = time.Now(), os.Getpid()
	id, err := json.Marshal(j.id)
	if err != nil {
		return nil, err
	}
	what, err := json.Marshal(a)
	if err != nil {
		return nil, err
	}
	// Under another name until it is locked, or it would look abandoned.
	f, err := os.CreateTemp(j.dir, ".new-*")
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	name := fmt.Sprintf("%s-%d-%d%s", j.id.key(), a.Tool, a.Begun.UnixNano(), journalSuffix)
	r := &record{phys: k.Phys, f: f, path: filepath.Join(j.dir, name)}
	err = lockFile(f)
	if err == nil {
		err = r.append(fmt.Appendf(nil, "%s\nguest %s\naim %s\n", journalMagic, id, what))
	}
	if err == nil {
		err = os.Rename(f.Name(), r.path)
	}
	if err != nil {
		f.Close()
		os.Remove(f.Name())
		return nil, fmt.Errorf("journal: %w", err)
	}
	return r, nil
}

// lockFile takes the lock of a journal; errLocked says that its program lives.
func lockFile(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return errLocked
	}
	return err
}

var errLocked = errors.New("in use by a program that runs")

func (r *record) append(lines []byte) error {
	_, err := r.f.Write(lines)
	return err
}

// note adds a line.
func (r *record) note(format string, args ...any) error {
	if r == nil {
		return nil
	}
	if err := r.append(fmt.Appendf(nil, format+"\n", args...)); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// close ends the record. What it says is forgotten, unless something is left in the
// guest that the next program should know of.
func (r *record) close(left bool) error {
	if r == nil {
		return nil
	}
	var err error
	if !left {
		err = os.Remove(r.path)
	}
	return errors.Join(err, r.f.Close())
}

// mark is a thread that an operation changed for as long as it lasts.
type mark struct {
	Task kernel.Addr `json:"task"`
	PID  kernel.PID  `json:"pid"`
	TGID kernel.PID  `json:"tgid"`
	Boot uint64      `json:"start_ns"`
}

func markOf(t *kernel.Task) mark { return mark{t.Addr, t.PID, t.TGID, t.BootTime} }

// extras is what a transaction does beside writing words, as a journal has it.
type extras struct {
	Wakes   []wakeRecord  `json:"wakes,omitempty"`
	Settled []kernel.Addr `json:"settled,omitempty"` // slots of wake-ups that are over
	Marks   []mark        `json:"marks,omitempty"`
	Work    bool          `json:"work,omitempty"` // send_signal_work is in flight
	Kick    bool          `json:"kick,omitempty"`
}

// recorder records one transaction.
type recorder struct {
	r *record
	p *plan
	n int
}

// keep makes p tell r what it does.
func (r *record) keep(p *plan) {
	if r != nil {
		p.keeper = &recorder{r: r, p: p}
	}
}

// begin writes the whole transaction with one write. It counts as begun only if its
// last line is there.
func (c *recorder) begin(edits []Edit) error {
	c.r.txs++
	c.n = c.r.txs
	x := extras{Marks: c.p.marks, Work: c.p.work, Kick: c.p.kick}
	for _, w := range c.p.wakes {
		x.Wakes = append(x.Wakes, w.record())
	}
	for _, w := range c.p.settled {
		x.Settled = append(x.Settled, w.slot)
	}
	b := make([]byte, 0, 128*(len(edits)+1))
	for _, e := range edits {
		phys, err := c.r.phys(e.Addr)
		if err != nil {
			return err
		}
		b = append(b, 'e', ' ')
		for _, v := range []uint64{uint64(phys), uint64(e.Addr), e.Old, e.New} {
			b = strconv.AppendUint(b, v, 16)
			b = append(b, ' ')
		}
		b = strconv.AppendInt(b, int64(e.Width), 10)
		b = append(b, ' ')
		b = strconv.AppendQuote(b, e.Path)
		b = append(b, '\n')
	}
	also, err := json.Marshal(x)
	if err != nil {
		return err
	}
	b = fmt.Appendf(b, "begin %d %d %s\n", c.n, len(edits), also)
	if err := c.r.append(b); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

func (c *recorder) done() error { return c.r.note("done %d", c.n) }

func (c *recorder) undone() error { return c.r.note("undone %d", c.n) }
