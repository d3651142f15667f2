package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/signal"
)

const longSet = `Instead of PID, --cgroup PATH names all processes of a control group and of those below
it, --tree PID a process and all its descendants. All of them are acted upon in one pause
of the guest, forks that are under way included: all or none.`

// target is what a command acts upon: a process, a control group or a tree.
type target struct{ pid, cgroup, tree string }

// setFlags adds --cgroup and --tree to a command that otherwise takes PID.
func (a *app) setFlags(c *cobra.Command, t *target) {
	c.Flags().StringVar(&t.cgroup, "cgroup", "", "all processes of the control group at `PATH`; [CONTROLLER:]PATH for cgroup v1")
	c.Flags().StringVar(&t.tree, "tree", "", "process `PID` and all its descendants")
	c.Args = func(_ *cobra.Command, args []string) error {
		given := len(args)
		for _, s := range []string{t.cgroup, t.tree} {
			if s != "" {
				given++
			}
		}
		switch {
		case given == 0:
			return usagef("PID, --cgroup or --tree is missing")
		case given > 1:
			return usagef("too many arguments: one of PID, --cgroup and --tree")
		}
		if len(args) > 0 {
			t.pid = args[0]
		}
		return nil
	}
}

// set opens the guest and calls f with the processes that t names.
func (a *app) set(ctx context.Context, t *target, f func(s signal.Set) error) error {
	if t.cgroup != "" {
		return a.with(ctx, needWrite, func(g *guest) error {
			s, err := signal.InCgroup(g.Kernel, t.cgroup)
			if err != nil {
				return err
			}
			return f(s)
		})
	}
	of, pid := signal.Process, t.pid
	if t.tree != "" {
		of, pid = signal.Tree, t.tree
	}
	return a.process(ctx, needWrite, pid, func(_ *guest, t *kernel.Task) error { return f(of(t)) })
}

// sendCommand returns a command that sends always the same.
func (a *app) sendCommand(name, short string, sig signal.Signal) *cobra.Command {
	c := a.command(name+" PID", short, short+".\n\n"+longSet+"\n\n"+longSignal, nil)
	strategy, dryRun, timeout := "", false, time.Duration(0)
	addSendFlags(a, c, &strategy, &dryRun, &timeout)
	var to target
	a.setFlags(c, &to)
	c.RunE = func(c *cobra.Command, _ []string) error {
		s, err := signal.ParseStrategy(strategy)
		if err != nil {
			return usageError{err}
		}
		o := &signal.Options{Strategy: s, DryRun: dryRun, Timeout: timeout, Logger: a.logger()}
		if to.pid != "" {
			return a.process(c.Context(), needWrite, to.pid, func(_ *guest, t *kernel.Task) error {
				r, err := signal.Send(c.Context(), t, sig, o)
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(r)
				}
				return printReport(a, r)
			})
		}
		if s == signal.ByKernel {
			return usagef("--strategy kernel sends one signal at a time, and cannot be used with --cgroup and --tree")
		}
		return a.set(c.Context(), &to, func(set signal.Set) error {
			r, err := signal.SendAll(c.Context(), set, sig, o)
			if err != nil {
				return err
			}
			return a.printSetReport(r)
		})
	}
	return c
}

func (a *app) freezeCommand() *cobra.Command {
	c := a.command("freeze PID", "Hold processes without anybody in the guest noticing",
		"freeze holds processes where the guest's cgroup freezer would, and leaves them so: ovm\nthaw lets them go on. Nobody in the guest is told, and ps shows no change.\n\n"+longSet, nil)
	var to target
	timeout := time.Duration(0)
	a.setFlags(c, &to)
	c.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "how long to wait until all are held")
	c.RunE = func(c *cobra.Command, _ []string) error {
		return a.set(c.Context(), &to, func(s signal.Set) error {
			f, err := signal.FreezeAll(c.Context(), s, &signal.FreezeOptions{Timeout: timeout, Logger: a.logger()})
			if err != nil {
				return err
			}
			if err := f.Leave(); err != nil {
				return err
			}
			return a.printSetReport(f.Report())
		})
	}
	return a.jsonFlag(c)
}

func (a *app) thawCommand() *cobra.Command {
	c := a.command("thaw PID", "Let frozen processes go on", "thaw lets processes go on that ovm freeze holds.\n\n"+longSet, nil)
	var to target
	a.setFlags(c, &to)
	c.RunE = func(c *cobra.Command, _ []string) error {
		return a.set(c.Context(), &to, func(s signal.Set) error {
			r, err := signal.ThawAll(c.Context(), s, &signal.FreezeOptions{Logger: a.logger()})
			if err != nil {
				return err
			}
			return a.printSetReport(r)
		})
	}
	return a.jsonFlag(c)
}

func (a *app) printSetReport(r *signal.SetReport) error {
	if a.json {
		return a.printJSON(r)
	}
	fmt.Fprintf(a.stdout, "%s: %d processes with %d threads\n", printable(r.Set), len(r.Processes), r.Threads)
	if r.DryRun {
		t := newTable(a.stdout)
		for _, e := range r.Edits {
			t.row("  "+e.Path, e.Addr, fmt.Sprintf("%#x -> %#x", e.Old, e.New))
		}
		return t.flush()
	}
	var paused, longest time.Duration
	for _, p := range r.Pauses {
		paused, longest = paused+p, max(longest, p)
	}
	_, err := fmt.Fprintf(a.stdout, "effect: %s, %s after the first write (%d words, guest paused %d times for %s, longest %s)\n",
		printable(r.Effect), round(r.Latency), len(r.Edits), len(r.Pauses), round(paused), round(longest))
	return err
}
