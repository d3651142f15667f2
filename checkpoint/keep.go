package checkpoint

import (
	"context"
	"fmt"

	"github.com/ovmigrate/ovmigrate/criuimg"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// keepSize is how much memory a process may have to be copied while the guest is
// paused, in well under a millisecond. Such a process goes on with the guest; its
// images are written afterwards.
const keepSize = 2 << 20

// keptArea is a copy of what an area's pages held.
type keptArea struct {
	runs []run
	data []byte // of all runs, one after the other
}

// keepable says whether all that is to be written can be kept.
func (s *Snapshot) keepable() bool {
	return s.Bytes() <= keepSize && len(s.c.shmem) == 0
}

// keep copies the memory of the process, which must be paused. What is written
// later is the copy.
func (s *Snapshot) keep(ctx context.Context) error {
	p := s.pager
	kept := make([]keptArea, len(s.c.areas))
	for i := range s.c.areas {
		if err := p.keepArea(ctx, &s.c.areas[i], &kept[i]); err != nil {
			return err
		}
	}
	p.kept = kept
	return nil
}

func (p *pager) keepArea(ctx context.Context, a *area, to *keptArea) (err error) {
	for i, pfn := range a.vdso {
		to.runs = append(to.runs, run{a.start + uint64(i)*pageSize, pfn, 1})
	}
	for start := a.start; start < a.end && a.vdso == nil; start += windowSize {
		if err := ctx.Err(); err != nil {
			return err
		}
		if to.runs, err = p.plan(a, start, min(start+windowSize, a.end), to.runs); err != nil {
			return err
		}
	}
	var pages uint64
	for _, r := range to.runs {
		pages += r.pages
	}
	if pages > keepSize/pageSize {
		return fmt.Errorf("%s: more pages than were counted", a.what)
	}
	to.data = make([]byte, pages*pageSize)
	rest := to.data
	for _, r := range to.runs {
		n := r.pages * pageSize
		if _, err := p.k.Memory().ReadPhys(rest[:n], vmi.Phys(r.pfn*pageSize)); err != nil {
			return fmt.Errorf("%s: page at %#x: %w", a.what, r.va, err)
		}
		rest = rest[n:]
	}
	return nil
}

func (p *pager) writeKept(w *criuimg.PageWriter, a *keptArea) error {
	rest := a.data
	for _, r := range a.runs {
		n := r.pages * pageSize
		if err := w.WritePages(r.va, rest[:n]); err != nil {
			return err
		}
		p.progress(int(n))
		rest = rest[n:]
	}
	return nil
}
