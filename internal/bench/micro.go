package main

import (
	"fmt"
	"time"

	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// micro measures what saving is made of: walking page tables and copying pages.
func (b *bench) micro(g *guest) error {
	const size = 256 << 20
	pid, err := g.start(b.ctx, "/opt/mem", fmt.Sprint(size), "small")
	if err != nil {
		return err
	}
	defer g.kill(pid)
	t, err := g.k.Task(pid)
	if err != nil {
		return err
	}
	mm, err := t.MM()
	if err != nil {
		return err
	}
	var walked, copied, plain samples
	var frames []vmi.Phys
	for range b.runs {
		frames = frames[:0]
		begin := time.Now()
		err := mm.Tables().Walk(0, 1<<47, func(e paging.Entry) bool {
			if e.Present() {
				frames = append(frames, e.Phys())
			}
			return true
		})
		if err != nil {
			return err
		}
		walked = append(walked, float64(len(frames))/time.Since(begin).Seconds())
	}
	from, to := make([]byte, size), make([]byte, size)
	for i := range from {
		from[i] = byte(i)
	}
	for range b.runs {
		begin := time.Now()
		n := 0
		for _, f := range frames {
			if n+vmi.PageSize > size {
				break
			}
			if _, err := g.mem.ReadPhys(to[n:n+vmi.PageSize], f); err != nil {
				return err
			}
			n += vmi.PageSize
		}
		copied = append(copied, float64(n)/time.Since(begin).Seconds())
		begin = time.Now()
		for n := 0; n < size; n += vmi.PageSize {
			copy(to[n:n+vmi.PageSize], from[n:])
		}
		plain = append(plain, size/time.Since(begin).Seconds())
	}
	b.table.add(row{what: fmt.Sprintf("walk page tables: %d entries", len(frames)), ours: walked, unit: millionsPerSecond})
	b.table.add(row{what: "read guest pages, 4 KiB each", ours: copied, peer: "copy in Go's own memory", theirs: plain, unit: gibibytesPerSecond})
	return nil
}
