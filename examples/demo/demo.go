package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	counts = "/root/counts" // what the counter writes, in both guests
	images = "/root/images" // in guest 2
	some   = 20             // numbers to wait for on either side
)

// demo is the whole story for one suite.
func demo(ctx context.Context, p *page, suite string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tmp, err := os.MkdirTemp("", "ovm-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)

	one, two, err := bootPair(ctx, suite)
	if err != nil {
		return err
	}
	defer one.Stop()
	defer two.Stop()
	if err := p.introduce(ctx, suite, one, two); err != nil {
		return err
	}

	p.inside(one, "/opt/ovm/counter >> %s &", counts)
	if err := one.startCounter(ctx); err != nil {
		return err
	}
	before, err := one.waitCounts(ctx, some)
	if err != nil {
		return err
	}
	p.inside(one, "tail %s", counts)
	p.numbers(before)

	s := &saver{page: p, guest: "qmp:" + one.QMPSocket(), dir: filepath.Join(tmp, "images")}
	r, err := s.run(ctx)
	if err != nil {
		return err
	}

	p.inside(one, "ls -d /proc/%d", r.PID)
	says, err := one.waitGone(ctx, r.PID)
	if err != nil {
		return err
	}
	p.say("%s", says)

	// The file goes along: it is the counter's, not a part of the counter.
	begin := time.Now()
	written, err := handOver(ctx, one, two, s.dir)
	if err != nil {
		return err
	}
	handed := time.Since(begin)
	p.comment("\nThe images and %s, %d numbers by now, are copied to guest 2.", counts, written)

	command, took, err := two.restore(ctx, r)
	p.inside(two, "%s", command)
	if err != nil {
		return err
	}
	after, err := two.waitCounts(ctx, written+some)
	if err != nil {
		return err
	}
	p.inside(two, "tail %s", counts)
	p.numbers(after[max(0, written-4):])

	if err := p.verdict(ctx, after, written, one, two); err != nil {
		return err
	}
	p.times([]step{
		{"find the kernel in guest 1", s.opened},
		{fmt.Sprintf("find the counter among %d processes", s.processes), s.listed},
		{"freeze it", r.Hold},
		{"pause guest 1, to read its structures", r.Pause},
		{fmt.Sprintf("write the images, with %d KiB of memory", r.Bytes>>10), r.Write},
		{"kill it", r.Release},
		{"copy everything to guest 2", handed},
		{"criu restore, as guest 2 measures it", took},
	})
	return nil
}

// verdict says what the numbers and the kernels say; anything wrong is an error.
func (p *page) verdict(ctx context.Context, lines []string, written int, guests ...*machine) error {
	if err := checkCounts(lines); err != nil {
		return err
	}
	p.good("\n1 to %d in one guest, %d to %d in the other: none missing, none repeated.", written, written+1, len(lines))
	for _, m := range guests {
		bad, err := m.Warnings(ctx)
		if err != nil {
			return err
		}
		if len(bad) > 0 {
			p.showLog(ctx, m, bad[0])
			return fmt.Errorf("the kernel of %s complains", m.name)
		}
	}
	p.good("No warning in the kernel log of either guest.")
	return nil
}

// showLog shows the kernel log of a guest from a line on.
func (p *page) showLog(ctx context.Context, m *machine, from string) {
	const most = 40
	log, err := m.Dmesg(ctx)
	if err != nil {
		log = m.Console()
	}
	lines := strings.Split(log[max(0, strings.Index(log, from)):], "\n")
	p.inside(m, "dmesg")
	for _, l := range lines[:min(most, len(lines))] {
		p.say("%s", l)
	}
}
