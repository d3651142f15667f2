package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// container is what is said of one container. Sizes are bytes.
type container struct {
	Engine    string    `json:"engine"`
	ID        string    `json:"id"`
	Name      string    `json:"name,omitempty"`
	Pod       string    `json:"pod,omitempty"`
	Hierarchy int       `json:"hierarchy"` // of control groups; 0 is cgroup v2
	Cgroup    string    `json:"cgroup"`    // its group there
	Memory    *memory   `json:"memory"`    // null: no memory controller handles the group
	Processes int       `json:"processes"`
	RSS       uint64    `json:"rss"` // of all processes
	Top       []process `json:"top"` // the largest ones, the largest first
}

type process struct {
	PID  kernel.PID `json:"pid"`
	Comm string     `json:"comm"`
	RSS  uint64     `json:"rss"`
}

// walkTries is how often the guest is looked at that changes meanwhile.
const walkTries = 10

// containers returns the guest's containers, ordered by engine and ID.
func containers(k *kernel.Kernel) (all []*container, err error) {
	for range walkTries {
		if all, err = walkContainers(k); err == nil {
			break
		}
	}
	return all, err
}

func walkContainers(k *kernel.Kernel) ([]*container, error) {
	all := []*container{}
	known := map[[2]string]*container{}
	spaces := map[kernel.Addr]bool{} // processes can share their memory
	for t, err := range k.Tasks() {
		if err != nil {
			return nil, err
		}
		if t.IsKernelThread() {
			continue
		}
		id, ok, err := t.Container()
		if err != nil {
			if t.Refresh() != nil {
				continue // it has ended
			}
			return nil, fmt.Errorf("pid %d: %w", t.PID, err)
		}
		if !ok {
			continue
		}
		c := known[[2]string{id.Engine, id.ID}]
		if c == nil {
			c = &container{Engine: id.Engine, ID: id.ID, Name: id.Name, Pod: id.Pod, Top: []process{}}
			if err := c.addMemory(k, t, id); err != nil {
				return nil, fmt.Errorf("container %s: %w", id.ID, err)
			}
			known[[2]string{id.Engine, id.ID}] = c
			all = append(all, c)
		}
		c.Processes++
		if t.MMAddr == 0 || spaces[t.MMAddr] {
			continue
		}
		spaces[t.MMAddr] = true
		mm, err := k.MMAt(t.MMAddr)
		if err != nil {
			if t.Refresh() != nil {
				continue
			}
			return nil, fmt.Errorf("pid %d: %w", t.PID, err)
		}
		n := uint64(mm.RSS()) * vmi.PageSize
		c.RSS += n
		c.Top = append(c.Top, process{t.PID, t.Comm, n})
	}
	for _, c := range all {
		slices.SortStableFunc(c.Top, func(a, b process) int { return cmp.Compare(b.RSS, a.RSS) })
	}
	slices.SortFunc(all, func(a, b *container) int {
		return cmp.Or(strings.Compare(a.Engine, b.Engine), strings.Compare(a.ID, b.ID))
	})
	return all, nil
}

// addMemory finds the control group of the container that t is in, and what the memory
// controller says of it.
func (c *container) addMemory(k *kernel.Kernel, t *kernel.Task, id kernel.Container) error {
	m, err := memoryMembership(t)
	if err != nil {
		return err
	}
	g, err := groupOf(m, id)
	if err != nil {
		return err
	}
	c.Hierarchy = m.HierarchyID
	if c.Cgroup, err = g.Path(); err != nil {
		return err
	}
	c.Memory, err = readMemory(k, g)
	return err
}

// memoryMembership returns t's place in the hierarchy that has the memory controller:
// one of cgroup v1, or the unified one.
func memoryMembership(t *kernel.Task) (*kernel.CgroupMembership, error) {
	all, err := t.CgroupMemberships()
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		if slices.Contains(m.Controllers, "memory") || m.HierarchyID == 0 {
			return m, nil // v2 is the last
		}
	}
	return nil, errors.New("the process is in no control group")
}

// groupOf returns the topmost group that is the container's: a container may have made
// groups inside its own.
func groupOf(m *kernel.CgroupMembership, id kernel.Container) (*kernel.Cgroup, error) {
	g := m.Cgroup
	for {
		up, err := g.ParentGroup()
		if err != nil || up == nil {
			return g, err
		}
		path, err := up.Path()
		if err != nil {
			return nil, err
		}
		if above, ok := kernel.IdentifyContainer([]string{path}, nil); !ok || above.ID != id.ID {
			return g, nil
		}
		g = up
	}
}
