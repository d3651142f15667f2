package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// copyFile measures cp, with or without waiting for the disk, and removes the copy.
func copyFile(ctx context.Context, from, to string, sync bool) (time.Duration, error) {
	defer os.Remove(to)
	begin := time.Now()
	if out, err := exec.CommandContext(ctx, "cp", "--", from, to).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("cp: %w: %s", err, out)
	}
	if sync {
		f, err := os.Open(to)
		if err != nil {
			return 0, err
		}
		err = f.Sync()
		f.Close()
		if err != nil {
			return 0, err
		}
	}
	return time.Since(begin), nil
}

// memory measures how much memory of its own 'ovm checkpoint' takes for processes of
// different sizes. Guest RAM, which is mapped, does not count.
func (b *bench) memory(g *guest) error {
	for _, size := range []int64{b.size / 16, b.size, 2 * b.size} {
		pid, err := g.start(b.ctx, "/opt/mem", fmt.Sprint(size), "small")
		if err != nil {
			return err
		}
		peak, err := b.peakOfSave(g, strconv.Itoa(int(pid)))
		g.kill(pid)
		if err != nil {
			return err
		}
		b.table.add(row{
			what: fmt.Sprintf("memory of its own that saving %d MiB takes", size>>20), ours: samples{peak},
			unit: mebibytes, goal: atMost("< 128 MiB", 128<<20-1),
		})
	}
	return nil
}

// peakOfSave is peakOf of 'ovm checkpoint'.
func (b *bench) peakOfSave(g *guest, pid string) (float64, error) {
	images := filepath.Join(b.shm, "images")
	defer os.RemoveAll(images)
	var peak float64
	err := g.lend(func() error {
		var err error
		peak, err = peakOf(exec.CommandContext(b.ctx, b.ovm, "-g", "qmp:"+g.QMPSocket(), "checkpoint", pid, "-D", images, "--no-sync"))
		return err
	})
	return peak, err
}

// peakOf runs a command and returns the most anonymous memory that it was seen to have,
// in bytes.
func peakOf(c *exec.Cmd) (peak float64, err error) {
	var out strings.Builder
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		return 0, err
	}
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	for {
		peak = max(peak, anonymous(c.Process.Pid))
		select {
		case err := <-done:
			if err != nil {
				err = fmt.Errorf("%s: %w: %s", c.Args[0], err, out.String())
			}
			return peak, err
		case <-time.After(time.Millisecond):
		}
	}
}

// anonymous returns the resident memory of a process that is no file's, in bytes.
func anonymous(pid int) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "RssAnon:")
	var kb float64
	_, _ = fmt.Sscan(rest, &kb)
	return kb * 1024
}
