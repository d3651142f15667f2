package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/checkpoint"
	"github.com/ovmigrate/ovmigrate/kernel"
)

const longCheck = `check says what a checkpoint of process PID would not carry as it is, and why: what is
"approximated" the restored process may notice; what is "refused" keeps the process from
being saved, unless --allow-issues is given. The process is not touched. check fails if
anything would be refused.`

func (a *app) checkCommand() *cobra.Command {
	return a.jsonFlag(a.command("check PID", "Show what a checkpoint of a process could not carry", longCheck,
		func(c *cobra.Command, args []string) error {
			return a.process(c.Context(), needRead, args[0], func(g *guest, t *kernel.Task) error {
				issues, err := checkpoint.Check(c.Context(), g.Kernel, t.PID, nil)
				if err != nil {
					return err
				}
				if err := a.printIssues(t, issues); err != nil {
					return err
				}
				for _, i := range issues {
					if i.Severity == checkpoint.Refused {
						return &checkpoint.IssuesError{Issues: issues}
					}
				}
				return nil
			})
		}))
}

func (a *app) printIssues(t *kernel.Task, issues []checkpoint.Issue) error {
	if a.json {
		if issues == nil {
			issues = []checkpoint.Issue{}
		}
		return a.printJSON(issues)
	}
	if len(issues) == 0 {
		_, err := fmt.Fprintf(a.stdout, "%d (%s): everything can be carried\n", t.PID, printable(t.Comm))
		return err
	}
	tab := newTable(a.stdout)
	for _, i := range issues {
		tab.row(i.What, i.Severity, i.Reason)
	}
	return tab.flush()
}
