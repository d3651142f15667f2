// Command conmem reports the memory of the containers in a Linux guest, from outside
// its virtual machine: what each may use and does use, and which processes have it.
//
//	conmem -g qmp:/run/vm.sock
//
// The kernel knows no containers. What is one, of which engine, is seen by the names of
// control groups and by mounts (see kernel.IdentifyContainer). The memory is what the
// memory controller of cgroup v2 or v1 has counted for the container's control group:
//
//	CURRENT  all memory charged to it: memory.current, or memory.usage_in_bytes
//	MAX      its limit: memory.max, or memory.limit_in_bytes
//	ANON     of that, memory of programs: anon of memory.stat, or total_rss
//	FILE     of that, cached files and shared memory: file of memory.stat, or total_cache
//	RSS      what its processes have resident, pages that they share counted once for each
//
// Counters that the kernel keeps apart by processor are added up now and then only: ANON
// and FILE are those of the last time that was done, at most some seconds ago.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/sources"
)

func main() {
	guest := flag.String("g", "", "the `GUEST`: qmp:SOCKET, pid:PID or a file")
	top := flag.Int("top", 3, "show this many processes of each container")
	asJSON := flag.Bool("json", false, "print JSON")
	flag.Parse()
	if *guest == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "usage: conmem -g GUEST [-top N] [-json]")
		os.Exit(2)
	}
	if err := run(context.Background(), os.Stdout, *guest, *top, *asJSON); err != nil {
		fmt.Fprintln(os.Stderr, "conmem:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, w io.Writer, guest string, top int, asJSON bool) error {
	mem, err := vmi.Open(ctx, guest, nil)
	if err != nil {
		return err
	}
	defer mem.Close()
	k, err := kernel.Open(ctx, mem, nil)
	if err != nil {
		return err
	}
	all, err := containers(k)
	if err != nil {
		return err
	}
	for _, c := range all {
		c.Top = c.Top[:min(len(c.Top), max(top, 0))]
	}
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(all)
	}
	return printContainers(w, k, all)
}

func printContainers(w io.Writer, k *kernel.Kernel, all []*container) error {
	fmt.Fprintf(w, "Linux %s: %d containers\n", k.Release(), len(all))
	if len(all) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprint(t, "\nCONTAINER\tENGINE\tPROCESSES\tCURRENT\tMAX\tANON\tFILE\tRSS\tCGROUP\n")
	for _, c := range all {
		engine := c.Engine
		if engine == "" {
			engine = "unknown"
		}
		current, limit, anon, file := "-", "-", "-", "-"
		if m := c.Memory; m != nil {
			current, limit, anon, file = size(m.Current), "max", size(m.Anon), size(m.File)
			if m.Max != nil {
				limit = size(*m.Max)
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%q\n", shortID(c.ID), engine, c.Processes, current, limit, anon, file, size(c.RSS), c.Cgroup)
		for _, p := range c.Top {
			fmt.Fprintf(t, "  %d %q\t\t\t\t\t\t\t%s\t\n", p.PID, p.Comm, size(p.RSS))
		}
	}
	return t.Flush()
}

// shortID cuts an ID as engines do.
func shortID(id string) string {
	if len(id) == 64 {
		return id[:12]
	}
	return fmt.Sprintf("%q", id)
}

// size writes a number of bytes for people.
func size(n uint64) string {
	f, unit := float64(n)/1024, "KiB"
	for _, next := range []string{"MiB", "GiB", "TiB"} {
		if f < 1024 {
			break
		}
		f, unit = f/1024, next
	}
	return fmt.Sprintf("%.1f %s", f, unit)
}
