package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/kernel/debugfile"
	"github.com/ovmigrate/ovmigrate/vmi"
)

const longStack = `stack shows where a thread is in the kernel: the functions that have not returned, the
innermost first. Of a thread that runs it needs the registers of the virtual processors
(qmp:SOCKET), and pauses the guest to read them. A line with ? is behind code that the
kernel's tables do not describe. With --vmlinux, frames have source lines. --user adds
where the program is.`

func (a *app) stackCommand() *cobra.Command {
	threads, user := false, false
	c := a.command("stack PID", "Show the kernel stack of a thread", longStack,
		func(c *cobra.Command, args []string) error {
			return a.process(c.Context(), needRead, args[0], func(g *guest, t *kernel.Task) error {
				some := []*kernel.Task{t}
				if threads {
					some = nil
					for u, err := range t.Threads() {
						if err != nil {
							return about(t, err)
						}
						some = append(some, u)
					}
				}
				all := []threadStack{}
				for _, u := range some {
					s, err := readStack(c.Context(), g, u, user)
					if err != nil {
						return err
					}
					all = append(all, s)
				}
				if a.json {
					return a.printJSON(all)
				}
				return a.printStacks(all, user)
			})
		})
	c.Flags().BoolVar(&threads, "threads", false, "show every thread of the process")
	c.Flags().BoolVar(&user, "user", false, "show the user stack, too")
	return a.jsonFlag(c)
}

// threadStack is an element of what stack --json prints.
type threadStack struct {
	PID      kernel.PID   `json:"pid"`
	TID      kernel.PID   `json:"tid"`
	Comm     string       `json:"comm"`
	State    string       `json:"state"`
	CPU      *int         `json:"cpu,omitempty"` // if it runs
	Unwinder string       `json:"unwinder"`
	Frames   []stackFrame `json:"frames"`
	Error    string       `json:"error,omitempty"` // why the frames end too early
	User     []userFrame  `json:"user,omitempty"`
	UserErr  string       `json:"user_error,omitempty"`
}

type stackFrame struct {
	Addr        hex    `json:"addr"`
	Symbol      string `json:"symbol"`
	Offset      uint64 `json:"offset"`
	Size        uint64 `json:"size"`
	Module      string `json:"module,omitempty"`
	Reliable    bool   `json:"reliable"`
	Interrupted bool   `json:"interrupted,omitempty"`
	File        string `json:"file,omitempty"` // of the source, with --vmlinux
	Line        int    `json:"line,omitempty"`

	text string
}

type userFrame struct {
	Addr   hex    `json:"addr"`
	Path   string `json:"path"`   // of the file that is mapped there
	Offset hex    `json:"offset"` // in the file
	Symbol string `json:"symbol,omitempty"`
	SymOff uint64 `json:"symbol_offset,omitempty"`
	Signal bool   `json:"signal,omitempty"` // what a signal handler returns to
	How    string `json:"how"`              // how the frame was found: "registers", "eh_frame", "frame pointer"
}

func readStack(ctx context.Context, g *guest, t *kernel.Task, user bool) (threadStack, error) {
	s := threadStack{PID: t.TGID, TID: t.PID, Comm: t.Comm, State: string(t.StateChar()), Frames: []stackFrame{}}
	tr, err := t.KernelStack()
	switch {
	case errors.Is(err, kernel.ErrOnCPU):
		var cpu int
		if tr, cpu, err = runningStack(ctx, g, t); err == nil {
			s.CPU = &cpu
		}
	case errors.Is(err, kernel.ErrNoTask): // a zombie
		tr, err = &kernel.StackTrace{}, nil
	}
	if err != nil {
		return s, about(t, err)
	}
	s.Unwinder = tr.Unwinder
	if tr.Err != nil {
		s.Error = oneLine(tr.Err)
	}
	for _, f := range tr.Frames {
		at := f.Addr
		if !f.Interrupted {
			at-- // in the call
		}
		// Modules and assembly have no lines in a vmlinux.
		file, line, err := g.SourceLine(at)
		if err != nil && !errors.Is(err, debugfile.ErrNothing) {
			return s, about(t, err)
		}
		s.Frames = append(s.Frames, stackFrame{
			hex(f.Addr), f.Symbol, f.Offset, f.Size, f.Module, f.Reliable, f.Interrupted, file, line, f.String(),
		})
	}
	if user && !t.IsKernelThread() {
		frames, err := t.UserStack()
		if err != nil {
			s.UserErr = oneLine(err)
		}
		for _, f := range frames {
			s.User = append(s.User, userFrame{hex(f.Addr), f.Path, hex(f.FileOffset), f.Symbol, f.SymbolOffset, f.Signal, f.How})
		}
	}
	return s, nil
}

// runningStack reads the stack of a task that is on a virtual processor.
func runningStack(ctx context.Context, g *guest, t *kernel.Task) (tr *kernel.StackTrace, cpu int, err error) {
	cpus, ok := g.image.(vmi.CPUs)
	if !ok {
		return nil, 0, fmt.Errorf("it runs on CPU %d, and this source does not know the registers of its processors", t.CPU)
	}
	if p, ok := g.image.(vmi.Pauser); ok {
		resume, err := p.Pause(ctx)
		if err != nil {
			return nil, 0, err
		}
		defer resume()
	}
	all, err := cpus.CPUs(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, c := range all {
		n, err := g.CPUNumber(c)
		if err != nil {
			return nil, 0, err
		}
		rq, err := g.RunQueue(n)
		if err != nil {
			return nil, 0, err
		}
		if rq.Curr == t.Addr {
			tr, err = g.CPUStack(c)
			return tr, n, err
		}
	}
	// It has gone to sleep since.
	if err := t.Refresh(); err != nil {
		return nil, 0, err
	}
	tr, err = t.KernelStack()
	return tr, int(t.CPU), err
}

func (a *app) printStacks(all []threadStack, user bool) error {
	for i, s := range all {
		if i > 0 {
			fmt.Fprintln(a.stdout)
		}
		where := "state " + s.State
		if s.CPU != nil {
			where = fmt.Sprintf("on CPU %d", *s.CPU)
		}
		fmt.Fprintf(a.stdout, "%d %s, %s\n", s.TID, printable(s.Comm), where)
		for _, f := range s.Frames {
			mark := " "
			if !f.Reliable {
				mark = "?"
			}
			text := f.text
			if f.File != "" {
				text += fmt.Sprintf(" at %s:%d", f.File, f.Line)
			}
			fmt.Fprintf(a.stdout, "  %#x %s %s\n", uint64(f.Addr), mark, printable(text))
		}
		if s.Error != "" {
			fmt.Fprintf(a.stdout, "  … %s\n", s.Error)
		}
		if len(s.User) > 0 {
			fmt.Fprintln(a.stdout, "  user:")
		}
		for _, f := range s.User {
			text := fmt.Sprintf("%s+%v", f.Path, f.Offset)
			if f.Symbol != "" {
				text = fmt.Sprintf("%s+%#x (%s)", f.Symbol, f.SymOff, f.Path)
			}
			fmt.Fprintf(a.stdout, "  %#x   %s\n", uint64(f.Addr), printable(text))
		}
		if s.UserErr != "" && user {
			fmt.Fprintf(a.stdout, "  … %s\n", s.UserErr)
		}
	}
	return nil
}
