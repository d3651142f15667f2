package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/signal"
)

const longTimers = `timers lists the timers of a process, or of all: interval timers (setitimer) that are
armed, POSIX timers (timer_create) and timerfds. The time that is left is as of the guest's
last look at its clock, a moment ago.`

func (a *app) timersCommand() *cobra.Command {
	c := a.command("timers PID", "List the timers of a process, or of all", longTimers,
		func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.with(c.Context(), needRead, func(g *guest) error {
					all, err := allTimers(c.Context(), g.Kernel)
					return a.showTimers(all, err)
				})
			}
			return a.process(c.Context(), needRead, args[0], func(_ *guest, t *kernel.Task) error {
				all, err := timersOf(t)
				return a.showTimers(all, err)
			})
		})
	c.Use = "timers [PID] [flags]"
	exact := c.Args
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return exact(c, args)
	}
	return a.jsonFlag(c)
}

// timer is an element of what timers --json prints.
type timer struct {
	PID        kernel.PID `json:"pid"`
	Comm       string     `json:"comm"`
	Kind       string     `json:"kind"`        // "itimer", "posix" or "timerfd"
	ID         int        `json:"id"`          // ITIMER_*, the timer's number, or the descriptor
	Clock      string     `json:"clock"`       // "CLOCK_MONOTONIC", of an itimer its name
	LeftNS     *int64     `json:"left_ns"`     // 0: not armed; null: not known
	IntervalNS int64      `json:"interval_ns"` // 0: it fires once

	Notify    string     `json:"notify,omitempty"` // "signal", "none" or "thread", as SIGEV_*
	Signal    string     `json:"signal,omitempty"`
	NotifyTID kernel.PID `json:"notify_tid,omitempty"` // thread that is signalled, as its namespace counts
	Overrun   int64      `json:"overrun,omitempty"`
	Ticks     uint64     `json:"ticks,omitempty"` // of a timerfd: expirations that nobody has read
}

// allTimers returns the timers of all processes. Processes that exit while they are
// looked at are left out.
func allTimers(ctx context.Context, k *kernel.Kernel) ([]timer, error) {
	found, err := tasks(k, false)
	all := []timer{}
	for _, t := range found {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if t.IsKernelThread() {
			continue
		}
		some, terr := timersOf(t)
		if terr != nil && t.Refresh() == nil {
			err = errors.Join(err, terr)
		}
		all = append(all, some...)
	}
	return all, err
}

// timersOf returns the timers of a process, read again if they change meanwhile.
func timersOf(t *kernel.Task) (all []timer, err error) {
	if t.IsKernelThread() {
		return nil, fmt.Errorf("pid %d (%s): a kernel thread has no timers", t.PID, t.Comm)
	}
	for range walkTries {
		if all, err = readTimers(t); err == nil || t.Refresh() != nil {
			break
		}
	}
	if err != nil {
		return nil, about(t, err)
	}
	return all, nil
}

func readTimers(t *kernel.Task) ([]timer, error) {
	all := []timer{}
	if !t.Signal.IsKernel() {
		return all, nil // it has exited
	}
	now, err := t.Kernel().Clocks()
	if err != nil {
		return nil, err
	}
	add := func(v timer) { v.PID, v.Comm = t.TGID, t.Comm; all = append(all, v) }
	if err := addITimers(t, now, add); err != nil {
		return nil, err
	}
	posix, err := t.PosixTimers(now)
	if err != nil {
		return nil, err
	}
	for _, p := range posix {
		add(posixTimer(p))
	}
	for fd, err := range t.Files() {
		if err != nil {
			return nil, err
		}
		if fd.File.Kind != kernel.KindTimerFD {
			continue
		}
		f, err := fd.File.TimerFD(now)
		if err != nil {
			return nil, fmt.Errorf("fd %d: %w", fd.Num, err)
		}
		add(timer{
			Kind: "timerfd", ID: fd.Num, Clock: clockName(f.Clock),
			LeftNS: nanoseconds(f.Value), IntervalNS: int64(f.Interval), Ticks: f.Ticks,
		})
	}
	return all, nil
}

func nanoseconds(d time.Duration) *int64 {
	n := int64(d)
	return &n
}

// addITimers adds those that are armed: every process has all three.
func addITimers(t *kernel.Task, now kernel.Clocks, add func(timer)) error {
	real, virt, prof, err := t.ITimers(now)
	if err != nil {
		return err
	}
	for i, v := range []struct {
		name string
		signal.Signal
		kernel.ITimer
	}{{"ITIMER_REAL", 14, real}, {"ITIMER_VIRTUAL", 26, virt}, {"ITIMER_PROF", 27, prof}} {
		if v.Value > 0 {
			add(timer{
				Kind: "itimer", ID: i, Clock: v.name, LeftNS: nanoseconds(v.Value), IntervalNS: int64(v.Interval),
				Notify: "signal", Signal: v.Signal.String(),
			})
		}
	}
	return nil
}

func posixTimer(p kernel.PosixTimer) timer {
	v := timer{
		Kind: "posix", ID: int(p.ID), Clock: clockName(p.Clock), LeftNS: nanoseconds(p.Value), IntervalNS: int64(p.Interval),
		NotifyTID: p.NotifyTID, Overrun: p.Overrun,
	}
	if p.Unsupported != "" {
		v.LeftNS = nil
	}
	const none, thread, threadID = 1, 2, 4 // SIGEV_*
	switch p.Notify &^ threadID {
	case none:
		v.Notify = "none"
		return v
	case thread:
		v.Notify = "thread"
	default:
		v.Notify = "signal"
	}
	v.Signal = signal.Signal(p.Signo).String()
	return v
}

// clockNames has what a program asks for, and what the kernel makes of a program's own
// CPU clocks.
var clockNames = map[int32]string{
	-6: "CLOCK_PROCESS_CPUTIME_ID", -2: "CLOCK_THREAD_CPUTIME_ID",
	0: "CLOCK_REALTIME", 1: "CLOCK_MONOTONIC", 2: "CLOCK_PROCESS_CPUTIME_ID", 3: "CLOCK_THREAD_CPUTIME_ID",
	7: "CLOCK_BOOTTIME", 8: "CLOCK_REALTIME_ALARM", 9: "CLOCK_BOOTTIME_ALARM", 11: "CLOCK_TAI",
}

// clockName names a clock. Negative ones are those of a process or a thread, or of a
// device. Source: include/linux/posix-timers.h.
func clockName(c int32) string {
	if name, ok := clockNames[c]; ok {
		return name
	}
	const deviceClock, perThread = 3, 4
	switch {
	case c >= 0 || c&deviceClock == deviceClock:
		return fmt.Sprintf("clock %d", c)
	case c&perThread != 0:
		return fmt.Sprintf("CPU time of thread %d", ^(c >> 3))
	}
	return fmt.Sprintf("CPU time of process %d", ^(c >> 3))
}

// showTimers prints what has been read, also if not all could be.
func (a *app) showTimers(all []timer, err error) error {
	if all == nil {
		return err
	}
	if perr := a.printTimers(all); perr != nil {
		return perr
	}
	return err
}

func (a *app) printTimers(all []timer) error {
	if a.json {
		return a.printJSON(all)
	}
	t := newTable(a.stdout, "PID", "NAME", "KIND", "ID", "CLOCK", "LEFT", "INTERVAL", "DOES")
	for _, v := range all {
		left := "?"
		switch {
		case v.LeftNS == nil:
		case *v.LeftNS == 0:
			left = "-"
		default:
			left = time.Duration(*v.LeftNS).Round(time.Millisecond).String()
		}
		interval := "-"
		if v.IntervalNS > 0 {
			interval = time.Duration(v.IntervalNS).String()
		}
		does := v.Signal
		switch {
		case v.NotifyTID != 0:
			does += fmt.Sprintf(" to thread %d", v.NotifyTID)
		case v.Notify == "none":
			does = "nothing"
		case v.Kind == "timerfd":
			does = fmt.Sprintf("%d ticks to read", v.Ticks)
		}
		t.row(v.PID, v.Comm, v.Kind, v.ID, v.Clock, left, interval, does)
	}
	return t.flush()
}
