package checkpoint_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/checkpoint"
)

var kill = checkpoint.SaveOptions{Leave: checkpoint.LeaveKilled}

// The headline: a counter is stopped, saved and killed from outside; stock CRIU in
// another guest restores it and no number is missing or printed twice.
func TestCounterToFile(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			p := bootPair(t, suite)
			const log, images = "/root/counter.log", "/root/images"
			p.src.must(t, "rm", "-f", log)
			pid := p.src.start(t, log, "/opt/ovm/counter", "20")
			before := p.src.waitLines(t, log, 10)
			r, dir := p.src.save(t, pid, kill)
			t.Logf("saved at about %s: hold %v, pause %v, write %v, release %v", before[len(before)-1], r.Hold, r.Pause, r.Write, r.Release)

			p.hand(t, dir, images, log)
			saved := len(p.dst.lines(t, log))
			p.dst.restore(t, images)
			t.Cleanup(func() { p.dst.kill(pid) })
			requireCounts(t, p.dst.waitLines(t, log, saved+20))
			p.src.CheckKernel(t)
			p.dst.CheckKernel(t)
		})
	}
}

// requireCounts checks that lines are 1, 2, 3 and so on.
func requireCounts(t *testing.T, lines []string) {
	t.Helper()
	for i, l := range lines {
		require.Equal(t, strconv.Itoa(i+1)+"\n", l, "line %d", i+1)
	}
}

// Every way to sleep, and running, with one thread and with many; vector registers
// live and a megabyte of random bytes that must add up afterwards.
func TestSleepers(t *testing.T) {
	for _, suite := range suites {
		for _, mode := range []string{"pause", "nanosleep", "read", "futex", "epoll", "poll", "spin"} {
			for _, threads := range []int{0, 1, 8} {
				t.Run(fmt.Sprintf("%s/%s/%d", suite, mode, threads), func(t *testing.T) {
					sleeper(t, suite, mode, threads)
				})
			}
		}
	}
}

func sleeper(t *testing.T, suite, mode string, threads int) {
	p := bootPair(t, suite)
	log := fmt.Sprintf("/root/sleeper-%s-%d.log", mode, threads)
	images := fmt.Sprintf("/root/images-%s-%d", mode, threads)
	p.src.must(t, "rm", "-f", log)
	pid := p.src.start(t, log, "/opt/ovm/sleeper", "-t", strconv.Itoa(threads), mode)
	check := func(m *machine, n int) {
		t.Helper()
		m.must(t, "kill", "-USR1", strconv.Itoa(int(pid)))
		for i, l := range m.waitLines(t, log, n) {
			require.Truef(t, strings.HasPrefix(l, fmt.Sprintf("%d OK", i+1)), "line %d is %q", i+1, l)
		}
	}
	p.src.waitReady(t, pid, threads)
	check(p.src, 1)
	r, dir := p.src.save(t, pid, kill)
	require.Equal(t, threads+1, r.Threads)
	p.hand(t, dir, images, log)
	p.dst.restore(t, images)
	t.Cleanup(func() { p.dst.kill(pid) })
	check(p.dst, 2)
	check(p.dst, 3)
	p.src.CheckKernel(t)
	p.dst.CheckKernel(t)
}
