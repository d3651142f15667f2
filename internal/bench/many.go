package main

import (
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/vmi"
)

//go:embed programs/many.c
var manySource string

// processes measures walks over a guest of 10,000 processes, with its memory mapped and, as
// far as it can only be copied out of QEMU, by system calls.
func (b *bench) processes(suite string) error {
	const processes = 10_000
	var mapped walked
	for _, anonymous := range []bool{false, true} {
		g, err := b.boot(testvm.Config{Suite: suite, Memory: 3 << 30, AnonymousRAM: anonymous})
		if err != nil {
			return err
		}
		w, err := b.walk(g, processes)
		g.close()
		if err != nil {
			return err
		}
		if !anonymous {
			mapped = w
			b.table.add(row{what: fmt.Sprintf("list %d processes", processes), ours: w.list, goal: atMost("≤ 10 ms", 10e6)})
			continue
		}
		const what = "copied out of QEMU: "
		b.table.add(row{what: what + "list them", ours: w.list, peer: "mapped", theirs: mapped.list})
		b.table.add(row{
			what: what + "walk the page tables of all, an entry", ours: w.pages, peer: "mapped", theirs: mapped.pages,
			goal: ratioAtMost("≤ 5", 5),
		})
	}
	return nil
}

// walked are nanoseconds.
type walked struct{ list, pages samples }

func (b *bench) walk(g *guest, processes int) (w walked, err error) {
	parent, err := g.start(b.ctx, "/opt/many", fmt.Sprint(processes))
	if err != nil {
		return w, err
	}
	if _, err := g.k.Task(parent); err != nil {
		return w, err
	}
	resume, err := g.mem.(vmi.Pauser).Pause(b.ctx)
	if err != nil {
		return w, err
	}
	defer func() { err = errors.Join(err, resume()) }()
	for range b.runs {
		begin := time.Now()
		n, err := countTasks(g.k)
		if err != nil {
			return w, err
		}
		w.list.add(time.Since(begin))
		if n < processes {
			return w, fmt.Errorf("%d processes listed of %d", n, processes)
		}
	}
	for range max(1, b.runs/5) {
		begin := time.Now()
		entries, err := walkAll(g.k)
		if err != nil {
			return w, err
		}
		w.pages = append(w.pages, float64(time.Since(begin))/float64(entries))
	}
	return w, nil
}

// walkAll walks the page tables of all processes and counts what is mapped.
func walkAll(k *kernel.Kernel) (entries int, err error) {
	for t, err := range k.Tasks() {
		if err != nil {
			return 0, err
		}
		mm, err := t.MM()
		if err != nil {
			continue // a thread of the kernel
		}
		err = mm.Tables().Walk(0, 1<<47, func(e paging.Entry) bool {
			if e.Present() {
				entries++
			}
			return true
		})
		if err != nil {
			return 0, err
		}
	}
	return entries, nil
}
