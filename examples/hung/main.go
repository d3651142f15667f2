// Command hung finds the tasks of a Linux guest that are stuck: in uninterruptible
// sleep (state D) for longer than a while, which no signal ends. It says how long, and
// where in the kernel:
//
//	hung -g qmp:/run/vm.sock -min 30s
//
// The kernel has a thread that does the same every two minutes (khungtaskd), counts how
// often a task was switched away from, and writes to a log that somebody would have to
// read inside. It passes over sleeps that a deadly signal does end; here they are
// marked killable.
//
// How long a task has slept is the scheduler's clock against the moment when it took
// the task off the processor. On an idle processor that clock stands still, up to a few
// seconds: a task has slept for at least that long. Of a guest that runs, tasks are
// looked at twice, -interval apart, and those that ran in between are not stuck; of a
// dump, -interval 0 saves that time.
//
// Exit status: 0 if no task is stuck, 1 if one is, 2 if the guest could not be read.
package main

//go:generate go run github.com/ovmigrate/ovmigrate/kernel/structgen -btf ../../kernel/testdata/btf/corpus.tar.zst -o structs.go structs.list

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/sources"
)

// options are what the flags say.
type options struct {
	guest    string
	least    time.Duration
	interval time.Duration
	json     bool
}

func main() {
	var o options
	flag.StringVar(&o.guest, "g", "", "the `GUEST`: qmp:SOCKET, pid:PID or a file")
	flag.DurationVar(&o.least, "min", 10*time.Second, "report tasks that have slept for this long")
	flag.DurationVar(&o.interval, "interval", time.Second, "look again after this long; 0: look once")
	flag.BoolVar(&o.json, "json", false, "print JSON")
	flag.Parse()
	if o.guest == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "usage: hung -g GUEST [-min DURATION] [-interval DURATION] [-json]")
		os.Exit(2)
	}
	found, err := run(context.Background(), os.Stdout, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "hung:", err)
		os.Exit(2)
	}
	if found > 0 {
		os.Exit(1)
	}
}

// run prints the tasks that are stuck, and returns how many there are.
func run(ctx context.Context, w io.Writer, o options) (int, error) {
	mem, err := vmi.Open(ctx, o.guest, nil)
	if err != nil {
		return 0, err
	}
	defer mem.Close()
	k, err := kernel.Open(ctx, mem, nil)
	if err != nil {
		return 0, err
	}
	asleep, err := uninterruptible(k)
	if err != nil {
		return 0, err
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(o.interval):
	}
	stuck, err := stillAsleep(k, asleep, o.least)
	if err != nil {
		return 0, err
	}
	if o.json {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return len(stuck), e.Encode(stuck)
	}
	return len(stuck), printStuck(w, k, stuck)
}

func printStuck(w io.Writer, k *kernel.Kernel, all []stuckTask) error {
	fmt.Fprintf(w, "Linux %s: %d stuck\n", k.Release(), len(all))
	for _, t := range all {
		fmt.Fprintf(w, "\n%d (%q), of process %d, has slept for %s", t.TID, t.Comm, t.PID, time.Duration(t.AsleepNS).Round(time.Millisecond))
		for _, mark := range []struct {
			set  bool
			text string
		}{{t.IOWait, "waits for I/O"}, {t.Killable, "killable"}, {t.Noticed, "khungtaskd has seen it"}} {
			if mark.set {
				fmt.Fprintf(w, ", %s", mark.text)
			}
		}
		if t.Blocker != "" {
			fmt.Fprintf(w, ", wants %s", t.Blocker)
		}
		fmt.Fprintln(w)
		for _, f := range t.Stack {
			fmt.Fprintf(w, "    %s\n", f)
		}
		if t.StackError != "" {
			fmt.Fprintf(w, "    no more is known: %s\n", t.StackError)
		}
	}
	_, err := fmt.Fprintln(w)
	return err
}
