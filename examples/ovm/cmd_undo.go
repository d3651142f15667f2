package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/signal"
	"github.com/ovmigrate/ovmigrate/vmi"
)

const longUndo = `Commands that write to the guest keep a journal. If one of them is killed, undo says
what it was in the middle of, and with --all takes it back: words that were written get
their old values, a guest that was held paused runs again, what was frozen is thawed.
Nothing is written if a word holds neither its old nor its new value.

While something is to be undone, other commands refuse to write to the guest.`

// noJournal is the directory that stands for no journal.
const noJournal = "none"

// journalDir returns the directory of journals, "" for none.
func (a *app) journalDir() (string, error) {
	dir := cmp.Or(a.journal, os.Getenv("OVM_JOURNAL"))
	if dir == noJournal {
		return "", nil
	}
	if dir != "" {
		return dir, nil
	}
	if state := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(state) {
		return filepath.Join(state, "ovm"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("where to keep the journal? give --journal DIR, or --journal none: %w", err)
	}
	return filepath.Join(home, ".local", "state", "ovm"), nil
}

// openJournal looks for operations on the guest that were not brought to an end. They
// are a reason not to write, and worth a word before reading. What is written from now
// on is recorded.
func (a *app) openJournal(g *guest, n need) error {
	if _, live := g.image.(vmi.Pauser); !live {
		return nil // nobody can have written to it
	}
	dir, err := a.journalDir()
	if err != nil && n == needRead {
		return nil
	}
	if err != nil || dir == "" {
		return err
	}
	pending, err := signal.Pending(g.Kernel, dir)
	switch {
	case n == needUndo:
		return err
	case err != nil && n == needRead:
		fmt.Fprintf(a.stderr, "ovm: warning: %s\n", oneLine(err))
		return nil
	case err != nil:
		return err
	case len(pending) > 0 && n == needRead:
		fmt.Fprintf(a.stderr, "ovm: warning: %s was interrupted and is not undone: run ovm undo\n", printable(pending[0].String()))
		return nil
	case len(pending) > 0:
		return fmt.Errorf("%s was interrupted and is not undone: run ovm undo", pending[0])
	case n == needWrite:
		return signal.Record(g.Kernel, dir)
	}
	return nil
}

func (a *app) undoCommand() *cobra.Command {
	all, forget := false, false
	c := a.command("undo", "Undo what a killed ovm was in the middle of", longUndo, nil)
	c.Flags().BoolVar(&all, "all", false, "undo everything that is listed without it")
	c.Flags().BoolVar(&forget, "forget", false, "throw the journals away, and leave the guest as it is")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if all && forget {
			return usagef("--all or --forget, not both")
		}
		return a.with(c.Context(), needUndo, func(g *guest) error {
			dir, err := a.journalDir()
			if err != nil {
				return err
			}
			if dir == "" {
				return errors.New("there is no journal")
			}
			pending, err := signal.Pending(g.Kernel, dir)
			if err != nil {
				return err
			}
			if len(pending) == 0 {
				return a.nothingToUndo(c.Context(), g)
			}
			return a.undo(c.Context(), pending, all, forget)
		})
	}
	return a.jsonFlag(c)
}

func (a *app) undo(ctx context.Context, pending []*signal.Unfinished, all, forget bool) error {
	type result struct {
		Operation *signal.Unfinished `json:"operation"`
		Undone    *signal.Undone     `json:"undone,omitempty"`
	}
	results := []result{}
	for _, u := range pending {
		r := result{Operation: u}
		if !a.json {
			a.printUnfinished(u)
		}
		var err error
		switch {
		case all:
			r.Undone, err = u.Undo(ctx, a.logger())
		case forget:
			err = u.Forget()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", u, err)
		}
		results = append(results, r)
		switch {
		case a.json:
		case all:
			a.printUndone(r.Undone)
		case forget:
			fmt.Fprintln(a.stdout, "  forgotten")
		}
	}
	if a.json {
		return a.printJSON(results)
	}
	return nil
}

// nothingToUndo also says what a journal cannot: some commands pause without one.
func (a *app) nothingToUndo(ctx context.Context, g *guest) error {
	if m, ok := g.image.(vmi.Stater); ok {
		status, err := m.Status(ctx)
		if err != nil {
			return err
		}
		if !status.Running {
			return errors.New("nothing to undo; the virtual machine is paused, but no journal says by whom: cont in QEMU's monitor lets it run")
		}
	}
	if a.json {
		return a.printJSON([]*signal.Unfinished{})
	}
	fmt.Fprintln(a.stdout, "nothing to undo")
	return nil
}

func (a *app) printUnfinished(u *signal.Unfinished) {
	fmt.Fprintf(a.stdout, "%s, %s by process %d\n", printable(u.String()), u.Begun.Format(time.DateTime), u.Tool)
	if u.Paused {
		fmt.Fprintln(a.stdout, "  the guest was held paused")
	}
	for _, w := range u.Words {
		fmt.Fprintf(a.stdout, "  %s: %#x -> %#x, now %#x (%s)\n", printable(w.Path), w.Old, w.New, w.Now, w.State())
	}
	if len(u.Held) > 0 {
		fmt.Fprintf(a.stdout, "  %d threads are frozen\n", len(u.Held))
	}
	if u.Wakes > 0 {
		fmt.Fprintf(a.stdout, "  %d forged wake-ups were under way\n", u.Wakes)
	}
}

func (a *app) printUndone(d *signal.Undone) {
	s := d.Effect
	if d.PutBack > 0 {
		s = fmt.Sprintf("%d words put back", d.PutBack)
	}
	if d.Continued {
		s += "; the guest runs again"
	}
	fmt.Fprintln(a.stdout, "  undone: "+s)
}
