package signal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// SetReport is what an operation on a set did to the guest and what came of it.
type SetReport struct {
	Set       string
	Signal    Signal // 0 for FreezeAll and ThawAll
	DryRun    bool
	Processes []kernel.PID    // in the order in which they were found
	Threads   int             // of these processes, when they were found
	Passes    int             // how often it was looked which processes there are
	Edits     []Edit          // in the order of writing
	Pauses    []time.Duration // how long the guest stood still, each time
	Latency   time.Duration   // from the resume after the first write to the effect on all
	Effect    string          // the proof that was seen
}

// MarshalJSON writes durations in microseconds.
func (r *SetReport) MarshalJSON() ([]byte, error) {
	pauses := make([]int64, len(r.Pauses))
	for i, d := range r.Pauses {
		pauses[i] = d.Microseconds()
	}
	sig := ""
	if r.Signal != 0 {
		sig = r.Signal.String()
	}
	return json.Marshal(struct {
		Set       string       `json:"set"`
		Signal    string       `json:"signal,omitempty"`
		DryRun    bool         `json:"dry_run,omitempty"`
		Processes []kernel.PID `json:"processes"`
		Threads   int          `json:"threads"`
		Passes    int          `json:"passes"`
		Edits     []Edit       `json:"edits"`
		Pauses    []int64      `json:"pauses_us"`
		Latency   int64        `json:"latency_us,omitempty"`
		Effect    string       `json:"effect,omitempty"`
	}{
		r.Set, sig, r.DryRun, append([]kernel.PID{}, r.Processes...), r.Threads, r.Passes,
		append([]Edit{}, r.Edits...), pauses, r.Latency.Microseconds(), r.Effect,
	})
}

// setOp is an operation on a set.
type setOp struct {
	*op
	set    Set
	report SetReport
	first  time.Time // when the guest went on after the first write
}

func newSetOp(ctx context.Context, s Set, do string, o *Options) (*setOp, error) {
	base, err := newOp(ctx, s.k, o.Logger)
	if err != nil {
		return nil, err
	}
	if base.caps.ByBitmap != nil {
		return nil, base.caps.ByBitmap
	}
	if base.queue != nil {
		return nil, base.queue
	}
	base.aim = aim{Do: do, Set: s.name}
	base.report.DryRun = o.DryRun
	return &setOp{op: base, set: s, report: SetReport{Set: s.name, DryRun: o.DryRun}}, nil
}

// finished fills in what the transactions have recorded.
func (g *setOp) finished() *SetReport {
	g.report.Edits, g.report.Pauses = g.op.report.Edits, g.op.report.Pauses
	return &g.report
}

// timeout is that of an operation on one process, since the first write.
func (g *setOp) timeout(what, state string, err error) error {
	err = g.op.timeout(what, state, "", err)
	var e *TimeoutError
	if errors.As(err, &e) {
		if e.Set = g.set.name; !g.first.IsZero() {
			e.After = time.Since(g.first)
		}
	}
	return err
}

func (g *setOp) add(p *process) {
	g.report.Processes = append(g.report.Processes, p.t.PID)
	g.report.Threads += len(p.threads)
}

// SendAll sends a signal to all processes of a set at once: in one pause of the guest
// each gets it, and none of them runs a step of its own afterwards before it acts on
// it. For SIGSTOP and SIGKILL it is then looked again for processes whose fork was
// under way in that pause, until there are none and all have stopped or gone; no other
// process can have been missed. SendAll returns when the effect was seen on all, as
// Send does. A set without processes is a success.
//
// It is all or nothing: if one process must be left alone, none is touched. If some do
// not stop in time, those that were stopped go on; a SIGKILL cannot be taken back.
//
// Signals are delivered as ByBitmap does. Errors are those of Send.
func SendAll(ctx context.Context, s Set, sig Signal, opt *Options) (*SetReport, error) {
	if opt == nil {
		opt = &Options{}
	}
	if sig == 0 || sig > sigMax {
		return nil, fmt.Errorf("%s: %w", s.name, ErrBadSignal)
	}
	base, err := newSetOp(ctx, s, sig.String(), opt)
	if err != nil {
		return nil, err
	}
	g := &sendAll{setOp: base, sig: sig, known: make(map[kernel.Addr]*member)}
	g.report.Signal = sig
	timeout := opt.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err = g.run(bounded)
	if err != nil && sig == SIGSTOP {
		err = errors.Join(err, g.letGo(context.WithoutCancel(ctx), opt))
	}
	err = errors.Join(err, g.afterKick(), g.end())
	return g.finished(), err
}

// member is a process of a set that has got the signal.
type member struct {
	t       *kernel.Task
	was     bool // stopped before
	settled bool // the effect was seen
}

type sendAll struct {
	*setOp
	sig   Signal
	known map[kernel.Addr]*member
	order []*member
}

// member says whether a process is one of those that have got the signal.
func (g *sendAll) member(t *kernel.Task) bool {
	m := g.known[t.Addr]
	return m != nil && idOf(m.t) == idOf(t)
}

func (g *sendAll) run(ctx context.Context) error {
	again := g.sig == SIGSTOP || g.sig == SIGKILL
	for patience := 50 * time.Millisecond; ; patience = min(2*patience, time.Second) {
		fresh, err := g.pass(ctx)
		if err != nil || g.report.DryRun {
			return err
		}
		if g.first.IsZero() {
			g.first = g.resumed
		}
		if fresh == 0 && g.report.Passes > 1 && g.allSettled() {
			break
		}
		round, cancel := context.WithTimeout(ctx, patience)
		waiting, err := g.wait(round, again)
		cancel()
		if ctx.Err() != nil {
			return g.timeout(g.sig.String(), waiting, context.Cause(ctx))
		}
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		if waiting == "" {
			g.report.Latency = time.Since(g.first)
			if !again {
				break
			}
		}
	}
	g.report.Effect = fmt.Sprintf("%d processes: %s", len(g.order), map[Signal]string{
		SIGSTOP: "every thread is in state T, or will be once its vfork child goes on", SIGKILL: "all are gone or zombies", SIGCONT: "no thread is in state T",
	}[g.sig])
	if g.sig != SIGSTOP && g.sig != SIGKILL && g.sig != SIGCONT {
		g.report.Effect = fmt.Sprintf("%d processes have the signal", len(g.order))
	}
	return errors.Join(g.settle(ctx), g.rec.note("whole"))
}

// pass sends the signal to the processes that have not got it yet, all in one pause,
// and returns how many there were.
func (g *sendAll) pass(ctx context.Context) (int, error) {
	var fresh []*process
	err := g.transact(ctx, func(ctx context.Context, p *plan) error {
		fresh = nil
		if err := g.planSettle(p); err != nil {
			return err
		}
		all, err := g.processes(ctx, g.set, g.sig)
		if err != nil {
			return err
		}
		b := &byBitmap{op: g.op, gather: true}
		for _, u := range all {
			if g.member(u.t) {
				continue
			}
			fresh = append(fresh, u)
			if g.sig == SIGSTOP && u.stopped() {
				continue
			}
			if err := b.sendOne(ctx, p, u, g.sig); err != nil {
				return err
			}
		}
		for _, u := range fresh {
			if g.sig == SIGSTOP && !u.stopped() {
				p.marks = append(p.marks, markOf(u.t))
			}
		}
		_, err = g.planWake(ctx, p, b.sleepers)
		return err
	})
	if err != nil {
		return 0, err
	}
	g.report.Passes++
	for _, u := range fresh {
		m := &member{t: u.t, was: u.stopped()}
		g.known[u.t.Addr] = m
		g.order = append(g.order, m)
		g.add(u)
	}
	return len(fresh), nil
}

// stopped says whether all threads of the process are.
func (u *process) stopped() bool {
	return !slices.ContainsFunc(u.threads, func(t *thread) bool { return t.State&kernel.TaskStopped == 0 })
}

// sendOne plans sig for one process. All its threads are to look for it: whichever is
// the first to return to user mode takes it, before it gets there.
func (b *byBitmap) sendOne(ctx context.Context, p *plan, u *process, sig Signal) error {
	s, err := signalLayout.Load(b.k, u.t.Signal)
	if err != nil {
		return err
	}
	d := &delivery{b, p, u.t, s, u.threads}
	if err := d.send(ctx, sig); err != nil || sig == SIGCONT {
		return err
	}
	for _, t := range u.threads {
		if t.State&(kernel.TaskStopped|kernel.TaskTraced) != 0 {
			continue
		}
		if err := d.notice(t); err != nil {
			return err
		}
	}
	return nil
}

func (g *sendAll) allSettled() bool {
	return !slices.ContainsFunc(g.order, func(m *member) bool { return !m.settled })
}

// wait waits until all wake-ups have landed and the effect shows on all processes, or,
// if forks are looked for, until there is a process that has not got the signal.
func (g *sendAll) wait(ctx context.Context, forks bool) (waiting string, err error) {
	next := time.Now().Add(newcomersEvery)
	err = waitFor(ctx, func() (bool, error) {
		if forks && time.Now().After(next) {
			if g.newcomers(ctx, g.member) {
				waiting = "a process was forked meanwhile"
				return true, nil
			}
			next = time.Now().Add(newcomersEvery)
		}
		if ok, err := g.allLanded(); !ok || err != nil {
			waiting = "a forged wake-up has not arrived"
			return false, err
		}
		var err error
		waiting, err = g.unsettledMembers()
		return waiting == "" && err == nil, err
	}, nil)
	if errors.Is(err, context.DeadlineExceeded) {
		// A wake-up may have missed CPU 0 on its way to sleep.
		err = errors.Join(err, g.nudge(context.WithoutCancel(ctx)))
	}
	return waiting, err
}

func (g *sendAll) unsettledMembers() (waiting string, err error) {
	left := 0
	for _, m := range g.order {
		if m.settled {
			continue
		}
		var why string
		if m.settled, why, err = g.see(m.t); err != nil {
			return "", err
		}
		if !m.settled {
			left++
			waiting = fmt.Sprintf("pid %d (%s): %s", m.t.PID, m.t.Comm, why)
		}
	}
	if left > 1 {
		waiting = fmt.Sprintf("%s, and %d more", waiting, left-1)
	}
	return waiting, nil
}

// newcomersEvery is how often the running guest is looked at for new processes.
const newcomersEvery = 5 * time.Millisecond

// newcomers says whether there seem to be processes that are not known. The guest
// runs, so that only a pass can tell that there are none.
func (g *setOp) newcomers(ctx context.Context, known members) bool {
	leaders, err := g.set.leaders(ctx)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(leaders, func(t *kernel.Task) bool {
		return !known(t) && !t.IsKernelThread() && t.ExitState == 0 && t.Flags&kernel.PFExiting == 0
	})
}

// see says whether the effect shows on one process. That it is gone is as good.
func (g *sendAll) see(t *kernel.Task) (ok bool, why string, err error) {
	switch g.sig {
	case SIGSTOP:
		ok, why, err = seeStopped(t, g.member)
	case SIGCONT:
		ok, why, err = g.seeContinued(t)
	case SIGKILL:
		ok, why, err = g.seeDead(t)
	default:
		return true, "", nil
	}
	if errors.Is(err, ErrExited) {
		return true, "", nil
	}
	return ok, why, err
}

// letGo continues the processes that were stopped, and had not been before.
func (g *sendAll) letGo(ctx context.Context, opt *Options) error {
	var ours []*kernel.Task
	for _, m := range g.order {
		if !m.was {
			ours = append(ours, m.t)
		}
	}
	fresh, cancel := context.WithTimeout(ctx, pauseLimit)
	defer cancel()
	err := g.cancelWakes(fresh)
	if len(ours) == 0 {
		return err
	}
	_, contErr := SendAll(ctx, someProcesses(g.set, ours), SIGCONT, &Options{Logger: opt.Logger})
	if err = errors.Join(err, contErr); err != nil {
		g.left = true
		return fmt.Errorf("and not all of them could be let go on: %w", err)
	}
	return nil
}

// someProcesses is those of the given processes of a set that there still are.
func someProcesses(s Set, leaders []*kernel.Task) Set {
	return Set{s.name, s.k, func(context.Context) ([]*kernel.Task, error) {
		var all []*kernel.Task
		for _, t := range leaders {
			l, err := processOf(t)
			if errors.Is(err, ErrExited) {
				continue
			}
			if err != nil {
				return nil, err
			}
			all = append(all, l)
		}
		return all, nil
	}}
}
