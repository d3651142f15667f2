package main

import (
	"bufio"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/kernel"
)

func (a *app) dmesgCommand() *cobra.Command {
	return a.jsonFlag(a.command("dmesg", "Print the kernel's log",
		"dmesg prints the messages that the kernel has kept, as dmesg does in the guest. Messages\n"+
			"that were overwritten while they were read are reported on standard error.",
		func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), needRead, func(g *guest) error {
				if a.json {
					return a.dmesgJSON(g.Kernel)
				}
				w := bufio.NewWriter(a.stdout)
				err := a.eachRecord(g.Kernel, func(r kernel.LogRecord) error {
					head := fmt.Sprintf("[%5d.%06d] ", r.Time.Microseconds()/1e6, r.Time.Microseconds()%1e6)
					for i, line := range strings.Split(r.Text, "\n") {
						if i > 0 {
							head = strings.Repeat(" ", len(head))
						}
						if _, err := fmt.Fprintf(w, "%s%s\n", head, printable(line)); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					return err
				}
				return w.Flush()
			})
		}))
}

// logRecord is an element of what dmesg --json prints.
type logRecord struct {
	Seq       uint64 `json:"seq"`
	TimeNS    int64  `json:"time_ns"`
	Level     int    `json:"level"`
	Facility  int    `json:"facility"`
	Continue  bool   `json:"continue"`
	Caller    uint32 `json:"caller"`
	Text      string `json:"text"`
	Subsystem string `json:"subsystem"`
	Device    string `json:"device"`
}

func (a *app) dmesgJSON(k *kernel.Kernel) error {
	all := []logRecord{}
	err := a.eachRecord(k, func(r kernel.LogRecord) error {
		all = append(all, logRecord{
			Seq: r.Seq, TimeNS: r.Time.Nanoseconds(), Level: r.Level, Facility: r.Facility, Continue: r.Continue,
			Caller: r.Caller, Text: r.Text, Subsystem: r.Subsystem, Device: r.Device,
		})
		return nil
	})
	if err != nil {
		return err
	}
	return a.printJSON(all)
}

// eachRecord calls f with every message; what is lost is said on standard error.
func (a *app) eachRecord(k *kernel.Kernel, f func(kernel.LogRecord) error) error {
	for r, err := range k.Log() {
		var lost *kernel.LostRecordError
		if errors.As(err, &lost) {
			fmt.Fprintf(a.stderr, "ovm: %s\n", oneLine(err))
			continue
		}
		if err != nil {
			return err
		}
		if err := f(r); err != nil {
			return err
		}
	}
	return nil
}
