package checkpoint

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/ovmigrate/ovmigrate/criuimg"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/vmi"
)

const (
	pageSize = vmi.PageSize

	// windowSize is how much address space is planned at once: it bounds the
	// memory a plan takes, whatever the size of the process.
	windowSize = 256 << 20

	// chunkSize is what one write moves at most, and what scattered pages are
	// gathered into.
	chunkSize = 1 << 20

	// jobSize is what a worker is given at a time.
	jobSize = 16 << 20

	// settleRounds is how often pages that moved while they were copied are
	// copied again before giving up.
	settleRounds = 16
)

// run is a stretch of user pages that is contiguous in the process and in
// guest-physical memory.
type run struct {
	va    uint64
	pfn   uint64
	pages uint64
}

// area is a stretch of a process's address space whose pages go into the images.
type area struct {
	start, end uint64
	private    bool // of a file: only pages that were written to belong to the process
	vdso       []uint64
	what       string
}

// pager plans and copies the private pages of one process.
type pager struct {
	k        *kernel.Kernel
	mm       *kernel.MM
	zero     uint64
	hugeZero uint64
	issues   *issues
	copied   func(bytes int64) // progress, may be nil
	bufs     [copyWorkers][]byte
	kept     []keptArea // nil, or what keep has copied of each area
}

func newPager(k *kernel.Kernel, mm *kernel.MM, is *issues) (*pager, error) {
	zero, huge, err := k.ZeroPages()
	if err != nil {
		return nil, err
	}
	return &pager{k: k, mm: mm, zero: zero, hugeZero: huge, issues: is}, nil
}

// errLost says that a page that was to be copied has gone to where it cannot be
// read from outside.
var errLost = errors.New("page left guest memory")

// plan returns the runs of pages in [start, end) of a that must be saved. It
// appends to runs. A page that cannot be had is an error that wraps errLost.
func (p *pager) plan(a *area, start, end uint64, runs []run) ([]run, error) {
	var fail error
	err := p.mm.Tables().Walk(start, end, func(e paging.Entry) bool {
		switch e.Kind {
		case paging.Present, paging.ProtNone, paging.Migration:
		case paging.Marker:
			return true // no page: userfaultfd or poison bookkeeping
		default:
			fail = fmt.Errorf("%w: %s at %#x is %s", errLost, a.what, e.VA, e.Kind)
			return false
		}
		va, pfn, n := clip(e, start, end)
		if e.PFN == p.zero || e.Size > pageSize && p.hugeZero != 0 && e.PFN == p.hugeZero {
			return true
		}
		if a.private {
			page, err := p.k.Page(pfn)
			if err != nil {
				fail = fmt.Errorf("%s at %#x: %w", a.what, va, err)
				return false
			}
			if !page.Anon() {
				return true // the file's own page
			}
		}
		if l := len(runs); l > 0 && runs[l-1].va+runs[l-1].pages*pageSize == va && runs[l-1].pfn+runs[l-1].pages == pfn {
			runs[l-1].pages += n
		} else {
			runs = append(runs, run{va, pfn, n})
		}
		return true
	})
	if fail != nil {
		err = fail
	}
	return runs, err
}

// clip returns the part of e that lies in [start, end).
func clip(e paging.Entry, start, end uint64) (va, pfn, pages uint64) {
	va, pfn = e.VA, e.PFN
	top := e.VA + e.Size
	if va < start {
		pfn += (start - va) / pageSize
		va = start
	}
	return va, pfn, (min(top, end) - va) / pageSize
}

// maxSharing bounds how often the same memory may appear in one address space. KSM
// merges equal pages, so it can; page tables that point into each other could make
// any amount of it.
const maxSharing = 16

// count returns the number of pages of all areas and finds those that are out of
// reach, as Issues.
func (p *pager) count(ctx context.Context, areas []area) (pages uint64, err error) {
	var ram uint64
	for _, r := range p.k.Memory().Ranges() {
		ram += r.Len() / pageSize
	}
	limit := ram * maxSharing
	var runs []run
	for i := range areas {
		a := &areas[i]
		if a.vdso != nil {
			pages += uint64(len(a.vdso))
			continue
		}
		for start := a.start; start < a.end; start += windowSize {
			if err := ctx.Err(); err != nil {
				return 0, err
			}
			runs, err = p.plan(a, start, min(start+windowSize, a.end), runs[:0])
			if errors.Is(err, errLost) {
				p.issues.refuse(a.what, "%v", err)
				break
			}
			if err != nil {
				return 0, err
			}
			for _, r := range runs {
				pages += r.pages
			}
			if pages > limit {
				return 0, fmt.Errorf("%w: page tables map more than %d times the guest's memory", kernel.ErrCorrupt, maxSharing)
			}
		}
	}
	return pages, nil
}

// write copies all areas into w. live says that the guest runs meanwhile: its
// kernel may then move a held process's pages, and each window is compared with
// the page tables again after it was copied.
func (p *pager) write(ctx context.Context, w *criuimg.PageWriter, areas []area, live bool) error {
	var plan window
	for i := range areas {
		a := &areas[i]
		if p.kept != nil {
			if err := p.writeKept(w, &p.kept[i]); err != nil {
				return err
			}
			continue
		}
		if a.vdso != nil {
			if err := p.writeFrames(w, a); err != nil {
				return err
			}
			continue
		}
		for start := a.start; start < a.end; start += windowSize {
			end := min(start+windowSize, a.end)
			if err := p.writeWindow(ctx, w, a, start, end, live, &plan); err != nil {
				return err
			}
		}
	}
	return nil
}

// window is the plan of one window with the file offset of each run.
type window struct {
	runs, again []run
	offs        []int64
}

func (p *pager) writeWindow(ctx context.Context, w *criuimg.PageWriter, a *area, start, end uint64, live bool, plan *window) error {
	var err error
	if plan.runs, err = p.plan(a, start, end, plan.runs[:0]); err != nil {
		return err
	}
	plan.offs = plan.offs[:0]
	for _, r := range plan.runs {
		off, err := w.Reserve(r.va, r.pages)
		if err != nil {
			return err
		}
		plan.offs = append(plan.offs, off)
	}
	if err := p.copyRuns(ctx, w, plan.runs, plan.offs); err != nil {
		return err
	}
	for round := 0; live; round++ {
		if round == settleRounds {
			return fmt.Errorf("%s: pages kept moving while they were copied", a.what)
		}
		if plan.again, err = p.plan(a, start, end, plan.again[:0]); err != nil {
			return err
		}
		moved, err := plan.moved()
		if err != nil {
			return fmt.Errorf("%s: %w", a.what, err)
		}
		if len(moved.runs) == 0 {
			return nil
		}
		if err := p.copyRuns(ctx, w, moved.runs, moved.offs); err != nil {
			return err
		}
		plan.adopt()
	}
	return nil
}

// moved compares the plan with one made after copying and returns the runs whose
// frames changed. A page that was added or is gone is an error: the process is
// held, so its pages only move.
func (w *window) moved() (*window, error) {
	m := &window{}
	if equalRuns(w.runs, w.again) {
		return m, nil
	}
	i, j := 0, 0
	var iOff, jOff uint64 // pages of runs[i], again[j] already compared
	for i < len(w.runs) || j < len(w.again) {
		if i == len(w.runs) || j == len(w.again) {
			return nil, fmt.Errorf("%w", errLost)
		}
		r, q := w.runs[i], w.again[j]
		va := r.va + iOff*pageSize
		if va != q.va+jOff*pageSize {
			return nil, fmt.Errorf("%w: at %#x", errLost, va)
		}
		n := min(r.pages-iOff, q.pages-jOff)
		if r.pfn+iOff != q.pfn+jOff {
			m.runs = append(m.runs, run{va, q.pfn + jOff, n})
			m.offs = append(m.offs, w.offs[i]+int64(iOff)*pageSize)
		}
		if iOff += n; iOff == r.pages {
			i, iOff = i+1, 0
		}
		if jOff += n; jOff == q.pages {
			j, jOff = j+1, 0
		}
	}
	return m, nil
}

// adopt makes the second plan the first, so that the next comparison is against
// what was copied last.
func (w *window) adopt() {
	offs := make([]int64, 0, len(w.again))
	i := 0
	for _, q := range w.again {
		for w.runs[i].va+w.runs[i].pages*pageSize <= q.va {
			i++
		}
		offs = append(offs, w.offs[i]+int64(q.va-w.runs[i].va))
	}
	w.runs, w.again = w.again, w.runs
	w.offs = offs
}

func equalRuns(a, b []run) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// buffer returns the buffer of a worker. Most areas of most processes are small,
// and clearing a large buffer for each would cost more than copying its pages.
func (p *pager) buffer(worker int, size uint64) []byte {
	size = min(size, chunkSize)
	if uint64(len(p.bufs[worker])) < size {
		p.bufs[worker] = make([]byte, size)
	}
	return p.bufs[worker]
}

// copyRuns writes runs to their places in the page file, by several workers if
// there is enough for them.
func (p *pager) copyRuns(ctx context.Context, w *criuimg.PageWriter, runs []run, offs []int64) error {
	var bytes uint64
	for _, r := range runs {
		bytes += r.pages * pageSize
	}
	if bytes <= jobSize {
		return p.copyJob(ctx, w, runs, offs, p.buffer(0, bytes))
	}
	g, ctx := errgroup.WithContext(ctx)
	type job struct{ from, to int } // indices of runs
	jobs := make(chan job)
	for i := range copyWorkers {
		g.Go(func() error {
			buf := p.buffer(i, chunkSize)
			for j := range jobs {
				if err := p.copyJob(ctx, w, runs[j.from:j.to], offs[j.from:j.to], buf); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(jobs)
		for from := 0; from < len(runs); {
			to, bytes := from, uint64(0)
			for to < len(runs) && bytes < jobSize {
				bytes += runs[to].pages * pageSize
				to++
			}
			select {
			case jobs <- job{from, to}:
			case <-ctx.Done():
				return ctx.Err()
			}
			from = to
		}
		return nil
	})
	return g.Wait()
}

// copyWorkers is enough to keep a disk or two cores busy.
const copyWorkers = 2

func (p *pager) copyJob(ctx context.Context, w *criuimg.PageWriter, runs []run, offs []int64, buf []byte) error {
	var held int // bytes gathered in buf, all adjacent in the file
	var heldOff int64
	flush := func() error {
		if held == 0 {
			return nil
		}
		_, err := w.WriteAt(buf[:held], heldOff)
		p.progress(held)
		held = 0
		return err
	}
	for i, r := range runs {
		for done := uint64(0); done < r.pages; {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(int((r.pages-done)*pageSize), chunkSize)
			pa := vmi.Phys((r.pfn + done) * pageSize)
			off := offs[i] + int64(done)*pageSize
			if v := p.view(pa, n); v != nil && n >= directSize {
				if err := flush(); err != nil {
					return err
				}
				if _, err := w.WriteAt(v, off); err != nil {
					return err
				}
				p.progress(n)
			} else {
				if held > 0 && (held+n > len(buf) || heldOff+int64(held) != off) {
					if err := flush(); err != nil {
						return err
					}
				}
				if held == 0 {
					heldOff = off
				}
				if _, err := p.k.Memory().ReadPhys(buf[held:held+n], pa); err != nil {
					return fmt.Errorf("page at %#x: %w", r.va+done*pageSize, err)
				}
				held += n
			}
			done += uint64(n) / pageSize
		}
	}
	return flush()
}

// directSize is from when on a write straight from guest memory beats gathering.
const directSize = 64 << 10

func (p *pager) view(pa vmi.Phys, n int) []byte {
	if v, ok := p.k.Memory().(vmi.Viewer); ok {
		return v.View(pa, n)
	}
	return nil
}

func (p *pager) progress(n int) {
	if p.copied != nil {
		p.copied(int64(n))
	}
}

// writeFrames writes an area whose frames are known beforehand.
func (p *pager) writeFrames(w *criuimg.PageWriter, a *area) error {
	buf := make([]byte, pageSize)
	for i, pfn := range a.vdso {
		if _, err := p.k.Memory().ReadPhys(buf, vmi.Phys(pfn*pageSize)); err != nil {
			return fmt.Errorf("%s: %w", a.what, err)
		}
		if err := w.WritePages(a.start+uint64(i)*pageSize, buf); err != nil {
			return err
		}
	}
	return nil
}
