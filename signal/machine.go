package signal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"time"
	"weak"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// machine is what this package keeps of a guest between calls. It does not refer
// to its kernel.Kernel, so that it dies with it.
type machine struct {
	mu    sync.Mutex // held from planning to commit: plans must not cross
	at    place
	caps  Capabilities
	slots slots
	queue error    // why many tasks cannot be woken at once
	kicks int      // NMIs whose effect has not been seen yet
	nmis  [16]byte // counts of NMIs before the last one that was sent

	journal *journal // nil: none is kept
}

var machines struct {
	sync.Mutex
	of map[weak.Pointer[kernel.Kernel]]*machine
}

// machineOf returns the machine of k, probed.
func machineOf(k *kernel.Kernel) (*machine, error) {
	machines.Lock()
	defer machines.Unlock()
	key := weak.Make(k)
	if m := machines.of[key]; m != nil {
		return m, nil
	}
	m := &machine{}
	if err := m.probe(k); err != nil {
		return nil, err
	}
	if machines.of == nil {
		machines.of = make(map[weak.Pointer[kernel.Kernel]]*machine)
	}
	machines.of[key] = m
	runtime.AddCleanup(k, func(key weak.Pointer[kernel.Kernel]) {
		machines.Lock()
		defer machines.Unlock()
		delete(machines.of, key)
	}, key)
	return m, nil
}

// op is one operation on one process, with the record of what it did.
type op struct {
	*machine
	k   *kernel.Kernel
	log *slog.Logger
	aim aim

	rec       *record      // from the first pause on, if there is a journal
	left      bool         // something is in the guest that could not be taken back
	thread    *kernel.Task // that alone is to get the signal, nil for any of its process
	report    Report
	resumed   time.Time // when the guest last went on: latencies count from here
	kicks     int       // own share of machine.kicks
	between   int       // how often CPU 0 was neither asleep nor busy
	unsettled []*wake   // in flight, or not yet cleaned up after
}

// begin starts the record of the operation, if records are kept and there is none.
func (o *op) begin() (err error) {
	if o.journal == nil || o.rec != nil || o.report.DryRun {
		return nil
	}
	o.rec, err = o.journal.create(o.k, o.aim)
	return err
}

// end ends the record, which stays if anything of the operation is still in the guest.
func (o *op) end() error {
	err := o.rec.close(o.left || len(o.unsettled) > 0)
	o.rec = nil
	return err
}

// pauseLimit bounds what is done while the guest stands still; ctx alone does not,
// for what has been begun inside a pause is brought to an end.
const pauseLimit = 5 * time.Second

// paused runs f while the guest stands still and nobody else in this program
// changes it. If f finds a lock taken (a *retryError) the guest runs for a moment
// and f is run again, until ctx ends. The guest is resumed on every path.
func (o *op) paused(ctx context.Context, f func(ctx context.Context) error) error {
	for {
		err := o.pausedOnce(ctx, f)
		var again *retryError
		if !errors.As(err, &again) {
			return err
		}
		o.log.Debug("guest busy, trying again", "what", again.what)
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %s: %w", ErrBusy, again.what, context.Cause(ctx))
		case <-time.After(time.Millisecond + rand.N(2*time.Millisecond)):
		}
	}
}

func (o *op) pausedOnce(ctx context.Context, f func(ctx context.Context) error) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.begin(); err != nil {
		return err
	}
	// A QMP command that is cut off in the middle leaves the guest in an unknown
	// state, so the caller's impatience does not reach it.
	inner, cancel := context.WithTimeout(context.WithoutCancel(ctx), pauseLimit)
	defer cancel()
	start := time.Now()
	resume, err := o.pauseGuest(inner)
	if err != nil {
		return err
	}
	defer func() {
		o.resumed = time.Now()
		err = errors.Join(err, resume())
		o.report.Pauses = append(o.report.Pauses, time.Since(start))
	}()
	if err := f(inner); err != nil {
		var undo *UndoError
		o.left = o.left || errors.As(err, &undo)
		return err
	}
	return nil
}

// pauseGuest pauses the guest; the record says so for as long as it lasts.
func (o *op) pauseGuest(ctx context.Context) (resume func() error, err error) {
	if err := o.rec.note("pause"); err != nil {
		return nil, err
	}
	letRun, err := o.k.Memory().(vmi.Pauser).Pause(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pause the guest: %w", err), o.rec.note("resume"))
	}
	return sync.OnceValue(func() error {
		if err := letRun(); err != nil {
			o.left = true
			return fmt.Errorf("resume the guest: %w", err)
		}
		return o.rec.note("resume")
	}), nil
}

// plan is a transaction with what belongs to it: forged wake-ups, and an NMI that
// must follow the commit at once.
type plan struct {
	*Tx
	wakes   []*wake // to be in flight
	settled []*wake // to be forgotten
	marks   []mark  // threads that stay changed
	work    bool    // send_signal_work is to be in flight
	kick    bool
}

// transact pauses the guest, lets f make a plan and carries it out. f sees guest
// memory stand still; if it fails, nothing has happened. An empty plan is fine. In
// a dry run the plan is recorded and not carried out.
func (o *op) transact(ctx context.Context, f func(ctx context.Context, p *plan) error) error {
	return o.paused(ctx, o.carryOut(f))
}

// carryOut returns what plans and commits in a pause.
func (o *op) carryOut(f func(ctx context.Context, p *plan) error) func(context.Context) error {
	return func(ctx context.Context) error {
		p := &plan{Tx: NewTx(o.k)}
		err := f(ctx, p)
		if err == nil {
			err = o.commit(ctx, p)
		}
		if err != nil || o.report.DryRun {
			for _, w := range p.wakes {
				o.slots.untake(w.slot)
				o.slots.untake(w.work)
			}
			return err
		}
		o.unsettled = slices.DeleteFunc(o.unsettled, func(w *wake) bool { return slices.Contains(p.settled, w) })
		o.unsettled = append(o.unsettled, p.wakes...)
		return nil
	}
}

// commit carries p out. Where the NMI fails everything is taken back.
func (o *op) commit(ctx context.Context, p *plan) error {
	if o.report.DryRun {
		o.report.Edits = append(o.report.Edits, p.Edits()...)
		return nil
	}
	o.rec.keep(p)
	if err := p.Commit(); err != nil {
		return err
	}
	if p.kick {
		if err := o.rec.note("kick"); err != nil {
			return errors.Join(err, p.Undo())
		}
		if err := o.k.Memory().(vmi.NMI).InjectNMI(ctx); err != nil {
			err = fmt.Errorf("inject NMI: %w", err)
			if undoErr := p.Undo(); undoErr != nil {
				return fmt.Errorf("%w; undo: %w", err, undoErr)
			}
			return err
		}
		o.kicks++
		o.machine.kicks++
	}
	o.report.Edits = append(o.report.Edits, p.Edits()...)
	return nil
}

// waitFor polls until done returns true, ctx ends or done fails. Every now and
// then, less and less often, it calls nudge, if given, to help a stuck delivery.
func waitFor(ctx context.Context, done func() (bool, error), nudge func() error) error {
	const shortest, longest = 50 * time.Microsecond, 2 * time.Millisecond
	wait, nudgeAfter := shortest, 60*time.Millisecond
	next := time.Now().Add(nudgeAfter)
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if nudge != nil && time.Now().After(next) {
			if err := nudge(); err != nil {
				return err
			}
			nudgeAfter = min(2*nudgeAfter, time.Second)
			next = time.Now().Add(nudgeAfter)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
		wait = min(wait*5/4, longest)
	}
}
