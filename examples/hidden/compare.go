package main

import (
	"cmp"
	"slices"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// view is one way to find threads.
type view struct {
	name  string
	tasks map[kernel.Addr]*kernel.Task
	// wants says whether the kernel has the thread in this view. Nil: the view has
	// only some, and it is no news if one is missing.
	wants func(t *kernel.Task) bool
}

// finding is a thread that is in a view and missing in another.
type finding struct {
	PID     kernel.PID  `json:"pid"`
	TID     kernel.PID  `json:"tid"`
	Comm    string      `json:"comm"`
	State   string      `json:"state"`
	StartNS uint64      `json:"start_ns"` // since the guest booted
	Seen    []string    `json:"seen"`
	Missing []string    `json:"missing"`
	Addr    kernel.Addr `json:"-"`
}

// compare returns the threads that are missing in some view, by number.
func compare(views []view) []finding {
	all := map[kernel.Addr]*kernel.Task{}
	for _, v := range views {
		for a, t := range v.tasks {
			all[a] = t
		}
	}
	var found []finding
	for a, t := range all {
		f := finding{
			PID: t.TGID, TID: t.PID, Comm: t.Comm, State: string(t.StateChar()), StartNS: t.BootTime, Addr: a,
			Seen: []string{}, Missing: []string{},
		}
		for _, v := range views {
			if v.tasks[a] != nil {
				f.Seen = append(f.Seen, v.name)
			} else if v.wants != nil && v.wants(t) {
				f.Missing = append(f.Missing, v.name)
			}
		}
		if len(f.Missing) > 0 {
			found = append(found, f)
		}
	}
	slices.SortFunc(found, func(a, b finding) int { return cmp.Compare(a.TID, b.TID) })
	return found
}

// inBoth returns what is in the later findings and was in the earlier ones, with the
// views in which it was missing both times. The same memory is another thread if it
// began at another time.
func inBoth(earlier, later []finding) []finding {
	both := []finding{}
	for _, f := range later {
		i := slices.IndexFunc(earlier, func(e finding) bool {
			return e.Addr == f.Addr && e.TID == f.TID && e.StartNS == f.StartNS
		})
		if i < 0 {
			continue
		}
		f.Missing = slices.DeleteFunc(f.Missing, func(v string) bool { return !slices.Contains(earlier[i].Missing, v) })
		if len(f.Missing) > 0 {
			both = append(both, f)
		}
	}
	return both
}
