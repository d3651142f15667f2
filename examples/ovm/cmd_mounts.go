package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/kernel"
)

const longMounts = `mounts lists the mounts that a process sees, as /proc/PID/mountinfo does. The options of
file systems of some types are not known; their lines end with … and have
"super_complete": false.`

func (a *app) mountsCommand() *cobra.Command {
	return a.jsonFlag(a.command("mounts PID", "List the mounts that a process sees", longMounts,
		func(c *cobra.Command, args []string) error {
			return a.process(c.Context(), needRead, args[0], func(_ *guest, t *kernel.Task) error {
				all, err := readMounts(t)
				if err != nil {
					return about(t, err)
				}
				if !a.json {
					return printMounts(a, all)
				}
				out := []mountEntry{}
				for _, m := range all {
					out = append(out, newMountEntry(m))
				}
				return a.printJSON(out)
			})
		}))
}

// readMounts reads the mounts, again if they change meanwhile.
func readMounts(t *kernel.Task) (all []*kernel.MountInfo, err error) {
	for range walkTries {
		all = nil
		for m, merr := range t.MountInfos() {
			if err = merr; err != nil {
				break
			}
			all = append(all, m)
		}
		if err == nil || t.Refresh() != nil {
			break
		}
	}
	return all, err
}

// mountEntry is an element of what mounts --json prints.
type mountEntry struct {
	ID            int32    `json:"id"`
	Parent        int32    `json:"parent"`
	Dev           string   `json:"dev"` // major:minor, decimal as in mountinfo
	Root          string   `json:"root"`
	Point         string   `json:"point"`
	Options       []string `json:"options"`
	Shared        int32    `json:"shared,omitempty"`
	Master        int32    `json:"master,omitempty"`
	PropagateFrom int32    `json:"propagate_from,omitempty"`
	Unbindable    bool     `json:"unbindable,omitempty"`
	FSType        string   `json:"fstype"`
	Source        string   `json:"source"`
	SuperOptions  []string `json:"super_options"`
	SuperComplete bool     `json:"super_complete"`
}

func newMountEntry(m *kernel.MountInfo) mountEntry {
	return mountEntry{
		ID: m.ID, Parent: m.ParentID, Dev: fmt.Sprintf("%d:%d", m.Super.Dev.Major, m.Super.Dev.Minor),
		Root: m.RootName, Point: m.Name, Options: m.Options,
		Shared: m.Shared, Master: m.Propagation.Master, PropagateFrom: m.PropagateFrom, Unbindable: m.Unbindable,
		FSType: m.FSType, Source: m.SourceName, SuperOptions: m.SuperOptions, SuperComplete: m.SuperComplete,
	}
}

func printMounts(a *app, all []*kernel.MountInfo) error {
	for _, m := range all {
		more := ""
		if !m.SuperComplete {
			more = ",…"
		}
		if _, err := fmt.Fprintln(a.stdout, printable(m.String())+more); err != nil {
			return err
		}
	}
	return nil
}
