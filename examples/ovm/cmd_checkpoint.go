package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/checkpoint"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/signal"
)

const longCheckpoint = `checkpoint saves process PID with all its threads as a set of images that "criu restore"
accepts in another machine. DIR is made; it must not exist, or be empty. If anything
fails, or ovm is interrupted, the process goes on as if nothing had been, and nothing is
left in DIR.`

func (a *app) checkpointCommand() *cobra.Command {
	dir, leave := "", ""
	c := a.command("checkpoint PID", "Save a process as a CRIU image set", longCheckpoint, nil)
	save := saveFlags(c)
	f := c.Flags()
	f.StringVarP(&dir, "images-dir", "D", "", "write the images to `DIR`")
	f.StringVar(&leave, "leave", string(checkpoint.LeaveRunning), "leave the process `running`, stopped or killed")
	c.RunE = func(c *cobra.Command, args []string) error {
		o, err := save(a)
		if err != nil {
			return err
		}
		if dir == "" {
			return usagef("where to? give -D DIR")
		}
		if o.Leave, err = parseLeave(leave); err != nil {
			return err
		}
		return a.process(c.Context(), needWrite, args[0], func(g *guest, t *kernel.Task) error {
			bar := a.startProgress("saving")
			o.Progress = bar.report
			r, err := checkpoint.Save(c.Context(), g.Kernel, t.PID, dir, o)
			bar.finish()
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(orEmpty(r))
			}
			return printSaved(a, r)
		})
	}
	return a.jsonFlag(c)
}

// saveFlags adds the flags of all commands that save a process. What it returns
// makes options of them.
func saveFlags(c *cobra.Command) func(a *app) (*checkpoint.SaveOptions, error) {
	var o checkpoint.SaveOptions
	freeze, sigstop, strategy := false, false, ""
	f := c.Flags()
	f.BoolVar(&freeze, "freeze", false, "hold the process without anybody noticing (default)")
	f.BoolVar(&sigstop, "sigstop", false, "hold the process by SIGSTOP")
	f.StringVar(&strategy, "strategy", string(signal.Auto), "how to send signals: `auto`, kernel or bitmap")
	f.BoolVar(&o.AllowIssues, "allow-issues", false, "save the process without what cannot be carried")
	f.BoolVar(&o.OneShotTimers, "one-shot-timers", false, "write timers that fire once as such: needs CRIU 4.1")
	f.BoolVar(&o.NoSync, "no-sync", false, "do not wait for the images to reach the disk")
	return func(a *app) (*checkpoint.SaveOptions, error) {
		if freeze && sigstop {
			return nil, usagef("--freeze and --sigstop exclude each other")
		}
		o.Hold = checkpoint.HoldFreeze
		if sigstop {
			o.Hold = checkpoint.HoldStop
		}
		var err error
		if o.Signal.Strategy, err = signal.ParseStrategy(strategy); err != nil {
			return nil, usageError{err}
		}
		o.Signal.Logger = a.logger()
		return &o, nil
	}
}

// orEmpty makes of issues that are not there an empty list.
func orEmpty(r *checkpoint.Result) *checkpoint.Result {
	if r.Issues == nil {
		r.Issues = []checkpoint.Issue{}
	}
	return r
}

func parseLeave(s string) (checkpoint.Leave, error) {
	switch l := checkpoint.Leave(s); l {
	case checkpoint.LeaveRunning, checkpoint.LeaveStopped, checkpoint.LeaveKilled:
		return l, nil
	}
	return "", usagef("--leave %s: there are running, stopped and killed", s)
}

func printSaved(a *app, r *checkpoint.Result) error {
	fmt.Fprintf(a.stdout, "%d (%s): %s, %s of memory, saved to %s in %s\n", r.PID, printable(r.Comm),
		count(r.Threads, "thread"), formatSize(uint64(r.Bytes)), r.Dir, round(r.Total))
	fmt.Fprintf(a.stdout, "  held after %s, guest paused for %s, written in %s, let go in %s\n",
		round(r.Hold), round(r.Pause), round(r.Write), round(r.Release))
	for _, i := range r.Issues {
		fmt.Fprintln(a.stdout, printable("  "+i.String()))
	}
	args := []string{"criu", "restore", "-D", r.Dir}
	args = append(args, r.RestoreOptions...)
	for _, key := range r.External {
		args = append(args, "--inherit-fd", "'fd[N]:"+key+"'")
	}
	_, err := fmt.Fprintln(a.stdout, printable("restore with: "+strings.Join(args, " ")))
	return err
}
