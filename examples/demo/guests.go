package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ovmigrate/ovmigrate/checkpoint"
	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
)

// machine is one of the two guests, seen from inside: the library uses none of this.
type machine struct {
	*testvm.VM
	name string
}

// bootPair boots both guests of a suite. If one fails, the other is stopped.
func bootPair(ctx context.Context, suite string) (one, two *machine, err error) {
	one, two = &machine{name: "guest 1"}, &machine{name: "guest 2"}
	g, gctx := errgroup.WithContext(ctx)
	for _, m := range []*machine{one, two} {
		g.Go(func() (err error) {
			m.VM, err = testvm.Boot(gctx, testvm.Config{Suite: suite})
			return err
		})
	}
	if err = g.Wait(); err != nil {
		for _, m := range []*machine{one, two} {
			if m.VM != nil {
				err = errors.Join(err, m.Stop())
			}
		}
	}
	return one, two, err
}

// startCounter starts the counter. A process keeps its number when it is restored,
// so it gets one that the other guest has not reached.
func (m *machine) startCounter(ctx context.Context) error {
	if _, err := m.Exec(ctx, "sh", "-c", "echo 5000 > /proc/sys/kernel/ns_last_pid"); err != nil {
		return err
	}
	_, err := m.StartProcess(ctx, testvm.Process{Argv: []string{"/opt/ovm/counter"}, Stdout: counts, Dir: "/root"})
	return err
}

// readCounts returns the complete lines that the counter has written.
func (m *machine) readCounts(ctx context.Context) ([]string, error) {
	var b bytes.Buffer
	if err := m.Get(ctx, counts, &b); err != nil {
		return nil, err
	}
	return slices.Collect(strings.Lines(b.String()[:bytes.LastIndexByte(b.Bytes(), '\n')+1])), nil
}

// waitCounts waits until there are n of them.
func (m *machine) waitCounts(ctx context.Context, n int) (lines []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = testvm.Wait(ctx, fmt.Sprintf("the number %d in %s", n, m.name), func() (bool, error) {
		lines, err = m.readCounts(ctx)
		return len(lines) >= n, err
	})
	return lines, err
}

// checkCounts returns an error unless lines are 1, 2, 3 and so on.
func checkCounts(lines []string) error {
	for i, l := range lines {
		if want := strconv.Itoa(i + 1); strings.TrimSuffix(l, "\n") != want {
			return fmt.Errorf("line %d of the counts is %q, not %q", i+1, l, want)
		}
	}
	return nil
}

// waitGone waits until the guest itself no longer knows a process, and returns what
// its ls says.
func (m *machine) waitGone(ctx context.Context, pid kernel.PID) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var says bytes.Buffer
	err := testvm.Wait(ctx, fmt.Sprintf("process %d to be gone from %s", pid, m.name), func() (bool, error) {
		says.Reset()
		r, err := m.Run(ctx, testvm.Cmd{Argv: []string{"ls", "-d", fmt.Sprintf("/proc/%d", pid)}, Stderr: &says})
		return r.Code != 0, err
	})
	return strings.TrimSpace(says.String()), err
}

// handOver copies the images, and the counter's file from guest to guest. It returns
// how many numbers are in that.
func handOver(ctx context.Context, from, to *machine, dir string) (int, error) {
	lines, err := from.readCounts(ctx)
	if err != nil {
		return 0, err
	}
	if err := to.Put(ctx, counts, strings.NewReader(strings.Join(lines, "")), 0o644); err != nil {
		return 0, err
	}
	if _, err := to.Exec(ctx, "mkdir", images); err != nil {
		return 0, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return 0, err
		}
		if err := to.Put(ctx, filepath.Join(images, e.Name()), bytes.NewReader(b), 0o600); err != nil {
			return 0, err
		}
	}
	return len(lines), nil
}

// restore runs the guest's own CRIU. It returns the command, and how long that took
// by the guest's clock.
func (m *machine) restore(ctx context.Context, r *checkpoint.Result) (string, time.Duration, error) {
	argv := append([]string{"criu", "restore", "-d", "-D", images}, r.RestoreOptions...)
	command := strings.Join(argv, " ")
	timed := append([]string{"sh", "-c", `
a=$(cut -d' ' -f1 /proc/uptime); "$@" || exit; b=$(cut -d' ' -f1 /proc/uptime)
echo $a $b`, "sh"}, append(argv, "-o", "restore.log")...)
	out, err := m.Exec(ctx, timed...)
	if err != nil {
		// Without it, the error above still tells that it failed.
		why, _ := m.Exec(ctx, "grep", "Error", images+"/restore.log")
		return command, 0, fmt.Errorf("%w\n%s", err, why)
	}
	var a, b float64
	if _, err := fmt.Sscan(string(out), &a, &b); err != nil {
		return command, 0, fmt.Errorf("time of restore: %w", err)
	}
	return command, time.Duration((b - a) * float64(time.Second)), nil
}
