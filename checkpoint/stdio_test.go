package checkpoint_test

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
)

// find returns the process of m that runs argv0 and is newest.
func (m *machine) find(t *testing.T, argv0 string) kernel.PID {
	t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(m.must(t, "pgrep", "-nf", "^"+argv0)))
	require.NoError(t, err)
	return kernel.PID(pid)
}

var number = regexp.MustCompile(`(?m)^(\d+)\r?$`)

// numbers returns the numbers that stand alone on a line.
func numbers(lines []string) []int {
	var all []int
	for _, m := range number.FindAllStringSubmatch(strings.Join(lines, ""), -1) {
		n, _ := strconv.Atoi(m[1])
		all = append(all, n)
	}
	return all
}

// requireGoesOn checks that the numbers in two logs count from 1 with none missing
// or repeated.
func requireGoesOn(t *testing.T, before, after []int) {
	t.Helper()
	require.NotEmpty(t, before)
	require.NotEmpty(t, after)
	for i, n := range append(before, after...) {
		require.Equal(t, i+1, n, "last before %d, first after %d", before[len(before)-1], after[0])
	}
}

// The counter's output goes through a pipe to a process that stays behind.
func TestCounterToPipe(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			p := bootPair(t, suite)
			const log, log2, images = "/root/pipe.log", "/root/pipe2.log", "/root/images-pipe"
			p.src.must(t, "rm", "-f", log)
			p.src.start(t, "", "sh", "-c", "/opt/ovm/counter 20 | cat > "+log)
			p.src.waitLines(t, log, 10)
			pid := p.src.find(t, "/opt/ovm/counter")
			r, dir := p.src.save(t, pid, kill)
			require.Len(t, r.External, 1)
			require.Regexp(t, `^pipe:\[\d+\]$`, r.External[0])
			require.Equal(t, []string{"--shell-job"}, r.RestoreOptions)

			p.hand(t, dir, images)
			p.dst.start(t, "", "sh", "-c", fmt.Sprintf(
				"criu restore --shell-job -d -D %s -v4 -o restore.log --inherit-fd 'fd[9]:%s' 9>&1 >/dev/null | cat > %s", images, r.External[0], log2))
			t.Cleanup(func() { p.dst.kill(pid) })
			after := p.dst.waitLines(t, log2, 20)
			requireGoesOn(t, numbers(p.src.lines(t, log)), numbers(after))
			p.src.CheckKernel(t)
			p.dst.CheckKernel(t)
		})
	}
}

// The counter runs on a terminal, in a session that another process leads.
func TestCounterToPty(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			p := bootPair(t, suite)
			const log, log2, images = "/root/pty.log", "/root/pty2.log", "/root/images-pty"
			p.src.must(t, "rm", "-f", log)
			p.dst.must(t, "rm", "-f", log2)
			p.src.start(t, "", "script", "-qfc", "stty rows 33 cols 99; /opt/ovm/counter 20; true", log)
			p.src.waitLines(t, log, 10)
			pid := p.src.find(t, "/opt/ovm/counter")
			r, dir := p.src.save(t, pid, kill)
			require.Equal(t, []string{"--shell-job"}, r.RestoreOptions)

			p.hand(t, dir, images)
			p.dst.start(t, "", "script", "-qfc", fmt.Sprintf(
				"criu restore %s -D %s -v4 -o restore.log; echo rc $?; stty size", strings.Join(r.RestoreOptions, " "), images), log2)
			t.Cleanup(func() { p.dst.kill(pid) })
			after := p.dst.waitLines(t, log2, 20)
			requireGoesOn(t, numbers(p.src.lines(t, log)), numbers(after))

			p.dst.kill(pid)
			require.NoError(t, testvm.Wait(t.Context(), "the window size, which came along", func() (bool, error) {
				return slices.Contains(p.dst.lines(t, log2), "33 99\r\n"), nil
			}))
			p.src.CheckKernel(t)
			p.dst.CheckKernel(t)
		})
	}
}
