package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/checkpoint"
	"github.com/ovmigrate/ovmigrate/kernel"
)

const longMigrate = `migrate moves process PID to another machine. It holds and saves the process, and runs
CMD, a shell command, on this host with the images as a tar stream on its standard input.
If CMD succeeds, the process is killed here: it goes on over there. If CMD fails, or ovm
is interrupted, the process goes on here. For example

  ovm -g qmp:/run/a.sock migrate 1234 --to \
    "ssh root@b 'mkdir /tmp/x && tar x -C /tmp/x && criu restore -d -D /tmp/x'"`

func (a *app) migrateCommand() *cobra.Command {
	to, work := "", ""
	c := a.command("migrate PID", "Move a process to another machine", longMigrate, nil)
	save := saveFlags(c)
	f := c.Flags()
	f.StringVar(&to, "to", "", "the shell command `CMD` that restores the images on its standard input")
	f.StringVar(&work, "work-dir", os.TempDir(), "keep the images in `DIR` meanwhile")
	c.RunE = func(c *cobra.Command, args []string) error {
		o, err := save(a)
		if err != nil {
			return err
		}
		if to == "" {
			return usagef("where to? give --to CMD")
		}
		return a.process(c.Context(), needWrite, args[0], func(g *guest, t *kernel.Task) error {
			m := &migration{app: a, guest: g, pid: t.PID, to: to, opts: o}
			return m.run(c.Context(), work)
		})
	}
	return a.jsonFlag(c)
}

// migration is one process on its way.
type migration struct {
	app   *app
	guest *guest
	pid   kernel.PID
	to    string
	opts  *checkpoint.SaveOptions
	sent  time.Duration
}

// migrateResult is what migrate --json prints.
type migrateResult struct {
	*checkpoint.Result
	Command string        `json:"command"`
	Send    time.Duration `json:"send_ns"` // until the command had ended
}

func (m *migration) run(ctx context.Context, work string) error {
	tmp, err := os.MkdirTemp(work, "ovm-migrate-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)

	// Until the command runs, an interrupt ends the migration through Save. From
	// then on only the command is interrupted: whether it succeeded decides where
	// the process lives, and that must be carried out to the end.
	save, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	disarm := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })

	bar := m.app.startProgress("saving")
	m.opts.Leave = checkpoint.LeaveKilled
	m.opts.NoSync = true // the images are gone in a moment
	m.opts.Progress = bar.report
	m.opts.Deliver = func(_ context.Context, dir string) error {
		bar.finish()
		if !disarm() {
			return context.Cause(ctx)
		}
		start := time.Now()
		err := sendImages(ctx, m.app, dir, m.to)
		m.sent = time.Since(start)
		return err
	}
	r, err := checkpoint.Save(save, m.guest.Kernel, m.pid, filepath.Join(tmp, "images"), m.opts)
	bar.finish()
	if err != nil {
		return err
	}
	r.Dir = ""
	if m.app.json {
		return m.app.printJSON(migrateResult{orEmpty(r), m.to, m.sent})
	}
	return m.print(r)
}

func (m *migration) print(r *checkpoint.Result) error {
	fmt.Fprintf(m.app.stdout, "%d (%s) has moved\n", r.PID, printable(r.Comm))
	t := newTable(m.app.stdout)
	t.row("  hold", round(r.Hold), "until every thread was held")
	t.row("  capture", round(r.Pause), "the guest was paused")
	t.row("  write", round(r.Write), fmt.Sprintf("%s, %s of memory", count(r.Threads, "thread"), formatSize(uint64(r.Bytes))))
	t.row("  send", round(m.sent), m.to)
	t.row("  kill", round(r.Release), "until it was gone here")
	t.row("  total", round(r.Total), "")
	for _, i := range r.Issues {
		t.row("  "+i.What, i.Severity, i.Reason)
	}
	return t.flush()
}
