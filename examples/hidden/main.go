// Command hidden looks for processes that somebody hides in a Linux guest, from outside
// its virtual machine. A rootkit takes a process out of the lists that tools in the
// guest read. The kernel has many more lists, which it needs to run the process at all:
//
//	tasks        the list of all processes (init_task.tasks), with the threads of each
//	pids         the numbers of threads in the first pid namespace: where kill looks
//	/proc        the numbers of processes there: what /proc lists, and ps
//	pids of N    those of the pid namespace N, of the threads in it
//	children     the children of each process, from the first one on
//	cgroups      the threads of each control group
//	run queues   what is running, or waits for a processor
//
// Each is a view. A thread that one of them has and that is missing in another where
// the kernel itself would have put it is reported:
//
//	hidden -g qmp:/run/vm.sock
//
// The guest may run meanwhile. Views are read one after the other, so that a process
// that starts or ends in between is in some only. What differs is looked at again a
// moment later, and again: only a thread that is missing each time is reported.
//
// Exit status: 0 if nothing is hidden, 1 if something is, 2 if the guest could not be
// read.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/sources"
)

func main() {
	guest := flag.String("g", "", "the `GUEST`: qmp:SOCKET, pid:PID or a file")
	asJSON := flag.Bool("json", false, "print JSON")
	flag.Parse()
	if *guest == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "usage: hidden -g GUEST [-json]")
		os.Exit(2)
	}
	found, err := run(context.Background(), os.Stdout, *guest, *asJSON)
	if err != nil {
		fmt.Fprintln(os.Stderr, "hidden:", err)
		os.Exit(2)
	}
	if found > 0 {
		os.Exit(1)
	}
}

// run prints what is hidden in the guest, and returns how many threads that are.
func run(ctx context.Context, w io.Writer, guest string, asJSON bool) (int, error) {
	mem, err := vmi.Open(ctx, guest, nil)
	if err != nil {
		return 0, err
	}
	defer mem.Close()
	k, err := kernel.Open(ctx, mem, nil)
	if err != nil {
		return 0, err
	}
	r, err := search(ctx, k, pauses)
	if err != nil {
		return 0, err
	}
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return len(r.Hidden), e.Encode(r)
	}
	return len(r.Hidden), r.print(w)
}

// pauses are the times between looks at what differs.
var pauses = []time.Duration{20 * time.Millisecond, 100 * time.Millisecond, 400 * time.Millisecond}

// report is what search has found.
type report struct {
	Release string         `json:"release"`
	Views   map[string]int `json:"views"` // threads in each, at the last look
	Looks   int            `json:"looks"`
	Hidden  []finding      `json:"hidden"`

	order []string // of the views
}

// search looks at the guest once, and once more after each pause while threads are
// missing somewhere.
func search(ctx context.Context, k *kernel.Kernel, pauses []time.Duration) (*report, error) {
	r := &report{Release: k.Release()}
	for {
		views, err := readViews(k)
		if err != nil {
			return nil, err
		}
		found := compare(views)
		if r.Looks > 0 {
			found = inBoth(r.Hidden, found)
		}
		r.Hidden = found
		r.Views, r.order = map[string]int{}, nil
		for _, v := range views {
			r.Views[v.name] = len(v.tasks)
			r.order = append(r.order, v.name)
		}
		if r.Looks++; len(found) == 0 || r.Looks > len(pauses) {
			return r, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pauses[r.Looks-1]):
		}
	}
}

func (r *report) print(w io.Writer) error {
	fmt.Fprintf(w, "Linux %s\n", r.Release)
	for _, name := range r.order {
		fmt.Fprintf(w, "%7d  %s\n", r.Views[name], name)
	}
	if len(r.Hidden) == 0 {
		_, err := fmt.Fprintln(w, "nothing is hidden: every thread is in all views that it belongs to")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprint(t, "\nPID\tTID\tNAME\tSTATE\tSTARTED\tSEEN IN\tMISSING IN\n")
	for _, f := range r.Hidden {
		fmt.Fprintf(t, "%d\t%d\t%q\t%s\t%s\t%s\t%s\n", f.PID, f.TID, f.Comm, f.State, time.Duration(f.StartNS).Round(time.Millisecond),
			strings.Join(f.Seen, ", "), strings.Join(f.Missing, ", "))
	}
	return t.Flush()
}
