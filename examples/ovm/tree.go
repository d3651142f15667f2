package main

import (
	"cmp"
	"slices"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// treeOf orders processes, or threads, so that each comes behind its parent, those of
// one parent by number, and threads before the children of their process. The second
// result is what a picture of the tree has before each. One whose parent is not there
// stands for itself; so does one that a guest at odds with itself makes its own ancestor,
// or puts below too many others.
func treeOf(all []process) (ordered []process, branches []string) {
	t := &tree{below: map[kernel.PID][]*process{}, leaders: map[kernel.PID]bool{}, placed: map[*process]bool{}}
	for i := range all {
		if p := &all[i]; p.TID == p.PID {
			t.leaders[p.PID] = true
		}
	}
	var roots []*process
	for i := range all {
		p := &all[i]
		up := p.PPID
		if p.TID != p.PID {
			up = p.PID
		}
		if t.leaders[up] && up != p.TID {
			t.below[up] = append(t.below[up], p)
		} else {
			roots = append(roots, p)
		}
	}
	t.add(roots, "", 0)
	for i := range all {
		t.add([]*process{&all[i]}, "", 0) // what no root leads to
	}
	for _, p := range t.ordered {
		ordered = append(ordered, *p)
	}
	return ordered, t.branches
}

type tree struct {
	below    map[kernel.PID][]*process
	leaders  map[kernel.PID]bool
	placed   map[*process]bool
	ordered  []*process
	branches []string
}

// maxDepth is how many generations are drawn.
const maxDepth = 500

// add adds processes with all that is below them, unless they are there. indent is what
// stands before the lines of their parent's other children.
func (t *tree) add(siblings []*process, indent string, depth int) {
	siblings = slices.DeleteFunc(siblings, func(p *process) bool { return t.placed[p] })
	slices.SortStableFunc(siblings, func(a, b *process) int {
		if at, bt := a.TID != a.PID, b.TID != b.PID; at != bt {
			if at {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.TID, b.TID)
	})
	for i, p := range siblings {
		branch, more := "", ""
		if depth > 0 {
			branch, more = "├─ ", "│  "
			if i == len(siblings)-1 {
				branch, more = "└─ ", "   "
			}
		}
		t.ordered = append(t.ordered, p)
		t.branches = append(t.branches, indent+branch)
		t.placed[p] = true
		if p.TID == p.PID && depth < maxDepth {
			t.add(t.below[p.PID], indent+more, depth+1)
		}
	}
}
