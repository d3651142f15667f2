package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/signal"
)

const longSignal = `The signal is sent by writing to the kernel's own data: the process acts on it as on
any other, at once, even if it sleeps on an idle machine. What was written and the
effect that was seen are printed.

--strategy chooses how:
  kernel   the kernel is made to send the signal itself
  bitmap   the signal is entered among the pending ones and the process is woken
  auto     what this guest's kernel allows, kernel first`

// sender sends one signal to a process and waits for its effect.
type sender func(ctx context.Context, t *kernel.Task, o *signal.Options) (*signal.Report, error)

func (a *app) signalCommand() *cobra.Command {
	c := a.command("signal SIG PID", "Send a signal to a process",
		"signal sends SIG, a name or a number, to process PID.\n\n"+longSignal, nil)
	run := a.signalFlags(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		sig, err := signal.Parse(args[0])
		if err != nil {
			return usageError{err}
		}
		return run(c.Context(), args[1],
			func(ctx context.Context, t *kernel.Task, o *signal.Options) (*signal.Report, error) {
				return signal.Send(ctx, t, sig, o)
			})
	}
	return c
}

// signalFlags adds the flags of all commands that send, and returns how they run.
func (a *app) signalFlags(c *cobra.Command) func(ctx context.Context, pid string, send sender) error {
	strategy, dryRun, timeout := "", false, time.Duration(0)
	addSendFlags(a, c, &strategy, &dryRun, &timeout)
	return func(ctx context.Context, pid string, send sender) error {
		s, err := signal.ParseStrategy(strategy)
		if err != nil {
			return usageError{err}
		}
		o := &signal.Options{Strategy: s, DryRun: dryRun, Timeout: timeout, Logger: a.logger()}
		return a.process(ctx, needWrite, pid, func(_ *guest, t *kernel.Task) error {
			r, err := send(ctx, t, o)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(r)
			}
			return printReport(a, r)
		})
	}
}

func addSendFlags(a *app, c *cobra.Command, strategy *string, dryRun *bool, timeout *time.Duration) {
	f := c.Flags()
	f.StringVar(strategy, "strategy", string(signal.Auto), "how to send it: `auto`, kernel or bitmap")
	f.BoolVar(dryRun, "dry-run", false, "show what would be written, and write nothing")
	f.DurationVar(timeout, "timeout", 10*time.Second, "how long to wait for the effect")
	a.jsonFlag(c)
}

func printReport(a *app, r *signal.Report) error {
	verb := "sent"
	if r.DryRun {
		verb = "would be sent"
	}
	fmt.Fprintf(a.stdout, "%s %s to %d (%s), strategy %s\n", r.Signal, verb, r.PID, printable(r.Comm), r.Strategy)
	t := newTable(a.stdout)
	for _, e := range r.Edits {
		t.row("  "+e.Path, e.Addr, fmt.Sprintf("%#x -> %#x", e.Old, e.New))
	}
	if err := t.flush(); err != nil {
		return err
	}
	if r.Note != "" {
		fmt.Fprintf(a.stdout, "note: %s\n", printable(r.Note))
	}
	if r.DryRun {
		return nil
	}
	var paused time.Duration
	for _, p := range r.Pauses {
		paused += p
	}
	_, err := fmt.Fprintf(a.stdout, "effect: %s, %s after the write (%d attempts, guest paused for %s)\n",
		printable(r.Effect), round(r.Latency), r.Attempts, round(paused))
	return err
}

// round makes a duration readable: three digits are enough.
func round(d time.Duration) time.Duration {
	for unit := time.Duration(1); unit <= time.Hour; unit *= 10 {
		if d < 1000*unit {
			return d.Round(unit)
		}
	}
	return d
}
