package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/ovmigrate/ovmigrate/checkpoint"
	"github.com/ovmigrate/ovmigrate/criuimg"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/sources"
)

// saver takes the counter out of a guest. All it knows of the guest is its QMP
// socket: not its kernel's version, not the counter's process id.
type saver struct {
	page  *page
	guest string // as vmi.Open takes it
	dir   string // for the images

	opened, listed time.Duration
	processes      int
}

func (s *saver) run(ctx context.Context) (*checkpoint.Result, error) {
	begin := time.Now()
	mem, err := vmi.Open(ctx, s.guest, &vmi.Options{Writable: true})
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	k, err := kernel.Open(ctx, mem, nil)
	if err != nil {
		return nil, err
	}
	s.opened = time.Since(begin)
	s.page.outside("ovm -g $GUEST1 info")
	s.showKernel(k)

	s.page.outside("ovm -g $GUEST1 ps")
	counter, err := s.find(k, "counter")
	if err != nil {
		return nil, err
	}

	s.page.outside("ovm -g $GUEST1 checkpoint %d -D images --leave killed", counter)
	r, err := checkpoint.Save(ctx, k, counter, s.dir, &checkpoint.SaveOptions{Leave: checkpoint.LeaveKilled})
	if err != nil {
		return nil, err
	}
	s.page.say("frozen, saved and killed in %v; the guest was paused for %v to be read", short(r.Total), short(r.Pause))
	for _, issue := range r.Issues {
		s.page.say("%v", issue)
	}

	s.page.outside("ovm verify images")
	return r, s.verify()
}

// showKernel says where the kernel is and how that was found out.
func (s *saver) showKernel(k *kernel.Kernel) {
	g := k.Guest()
	s.page.say("Linux %s, found in %v in %d MiB of memory, without a symbol or debug file:",
		g.Release, short(s.opened), size(k.Memory())>>20)
	for _, step := range g.Found {
		line := step.What + ": " + step.How
		if step.Check != "" {
			line += "; " + step.Check
		}
		s.page.item("%s", line)
	}
}

// find looks for a process by its name among all of the guest.
func (s *saver) find(k *kernel.Kernel, comm string) (kernel.PID, error) {
	begin := time.Now()
	var found []*kernel.Task
	s.processes = 0
	for t, err := range k.Tasks() {
		if err != nil {
			return 0, err
		}
		s.processes++
		if t.Comm == comm {
			found = append(found, t)
		}
	}
	s.listed = time.Since(begin)
	if len(found) != 1 {
		return 0, fmt.Errorf("%d processes of %d are called %q", len(found), s.processes, comm)
	}
	t := found[0]
	argv, err := t.Cmdline()
	if err != nil {
		return 0, err
	}
	s.page.say("%d processes; one of them: pid %d, state %c, %s", s.processes, t.PID, t.StateChar(), strings.ReplaceAll(strings.TrimRight(string(argv), "\x00"), "\x00", " "))
	return t.PID, nil
}

// verify reads the images back and checks that they fit together.
func (s *saver) verify() error {
	set, err := criuimg.OpenDir(s.dir)
	if err != nil {
		return err
	}
	for _, p := range set.Verify() {
		if p.Severity == criuimg.Error {
			return fmt.Errorf("image set: %s: %s", p.File, p.What)
		}
	}
	var names []string
	for _, i := range set.Images() {
		names = append(names, strings.TrimSuffix(i.Name, ".img"))
	}
	s.page.say("no problem found in %s", strings.Join(names, " "))
	return nil
}

func size(m vmi.Memory) (n uint64) {
	for _, r := range m.Ranges() {
		n += r.Len()
	}
	return n
}
