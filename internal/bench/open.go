package main

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// open measures finding the kernel in a guest's memory and listing its tasks.
func (b *bench) open(g *guest) error {
	var opened, listed, both samples
	tasks := 0
	for range b.runs {
		begin := time.Now()
		mem, err := vmi.Open(b.ctx, g.RAMPath(), nil)
		if err != nil {
			return err
		}
		k, err := kernel.Open(b.ctx, mem, nil)
		if err != nil {
			return err
		}
		middle := time.Now()
		n, err := countTasks(k)
		end := time.Now()
		mem.Close()
		if err != nil {
			return err
		}
		tasks = n
		opened.add(middle.Sub(begin))
		listed.add(end.Sub(middle) / time.Duration(n))
		both.add(end.Sub(begin))
	}
	// Warm: the second listing with an open kernel.
	var again samples
	for range b.runs {
		begin := time.Now()
		n, err := countTasks(g.k)
		if err != nil {
			return err
		}
		again.add(time.Since(begin) / time.Duration(n))
	}
	process, err := b.process(b.runs, func() {}, b.ovm, "-g", g.RAMPath(), "ps")
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%s, %d MiB: ", g.name(), g.Config().Memory>>20)
	b.table.add(row{what: what + "open the RAM file, no symbols", ours: opened})
	b.table.add(row{what: fmt.Sprintf("%sopen it and list %d tasks", what, tasks), ours: both, goal: atMost("≤ 50 ms", 50e6)})
	b.table.add(row{what: what + "list: first time, a task", ours: listed})
	b.table.add(row{what: what + "list: open kernel, a task", ours: again, goal: atMost("≤ 2 µs", 2e3)})
	b.table.add(row{
		what: what + "'ovm ps', the whole process", ours: process, goal: atMost("≤ 50 ms", 50e6),
		peer: "drgn, crash", note: "they need the kernel's debug file, some 600 MB",
	})
	return nil
}

// countTasks lists the tasks of a guest that may change meanwhile.
func countTasks(k *kernel.Kernel) (n int, err error) {
	for range 10 {
		n, err = 0, nil
		for _, err = range k.Tasks() {
			if err != nil {
				break
			}
			n++
		}
		if err == nil {
			break
		}
	}
	return n, err
}

// process measures whole processes, after one that is not counted, and calls after
// when each has ended.
func (b *bench) process(runs int, after func(), argv ...string) (samples, error) {
	var s samples
	for i := -1; i < runs; i++ {
		ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
		c := exec.CommandContext(ctx, argv[0], argv[1:]...)
		c.Stdout = io.Discard
		begin := time.Now()
		err := c.Run()
		took := time.Since(begin)
		cancel()
		after()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", argv[0], err)
		}
		if i >= 0 {
			s.add(took)
		}
	}
	return s, nil
}
