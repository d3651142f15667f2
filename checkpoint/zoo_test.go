package checkpoint_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/checkpoint"
	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
)

// compiled are the programs of testdata, by name.
var compiled sync.Map

// compile builds NAME*.c of testdata. Guests have the C library of the build
// machine's release, or a newer one.
func compile(t *testing.T, name string) []byte {
	t.Helper()
	build, _ := compiled.LoadOrStore(name, sync.OnceValues(func() ([]byte, error) {
		sources, err := filepath.Glob("testdata/" + name + "*.c")
		if err != nil {
			return nil, err
		}
		exe := filepath.Join(t.TempDir(), name)
		args := append([]string{"-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", exe}, sources...)
		if out, err := exec.CommandContext(t.Context(), "gcc", args...).CombinedOutput(); err != nil {
			return out, err
		}
		return os.ReadFile(exe)
	}))
	exe, err := build.(func() ([]byte, error))()
	require.NoError(t, err, "%.1000s", exe)
	return exe
}

// zoo starts a zoo in a directory of its own.
func (m *machine) zoo(t *testing.T, dir string, args ...string) kernel.PID {
	t.Helper()
	m.must(t, "rm", "-rf", dir)
	m.must(t, "mkdir", "-p", dir)
	require.NoError(t, m.Put(t.Context(), dir+"/zoo", bytes.NewReader(compile(t, "zoo")), 0o755))
	pid, err := m.StartProcess(t.Context(), testvm.Process{
		Argv: append([]string{dir + "/zoo"}, args...), Dir: dir, Stdout: dir + "/log",
	})
	require.NoError(t, err)
	t.Cleanup(func() { m.kill(kernel.PID(pid)) })
	require.Equal(t, []string{"ready\n"}, m.waitLines(t, dir+"/log", 1))
	return kernel.PID(pid)
}

// checkZoo has the zoo check itself for the nth time.
func (m *machine) checkZoo(t *testing.T, pid kernel.PID, dir string, n int) {
	t.Helper()
	m.must(t, "kill", "-USR1", strconv.Itoa(int(pid)))
	defer func() {
		if t.Failed() {
			out, _ := m.Exec(context.Background(), "sh", "-c", fmt.Sprintf("dmesg | tail -5; cd /proc/%d/task && for i in *; do cat $i/status $i/stack $i/syscall; done", pid))
			t.Logf("the zoo:\n%s", out)
		}
	}()
	line := m.waitLines(t, dir+"/log", n+1)[n]
	require.Equal(t, strconv.Itoa(n)+" OK\n", line)
}

// handTree copies a directory from one guest to the other, modes and all.
func (p *pair) handTree(t *testing.T, dir string) {
	t.Helper()
	p.dst.must(t, "rm", "-rf", dir)
	r, w := io.Pipe()
	go func() { w.CloseWithError(p.src.GetTar(t.Context(), dir, w)) }()
	require.NoError(t, p.dst.PutTar(t.Context(), dir, r))
}

// lost is what a CRIU does not carry: the zoo does not look at it, and an issue with
// that word tells.
var lost = map[string]map[string]string{
	"bookworm": { // CRIU 3.17.1
		"personality": "personality", "coredump_filter": "coredump_filter", "timerslack_ns": "timer slack",
		"NoNewPrivs": "no_new_privs", "CapAmb": "ambient", "membarrier": "membarrier",
	},
	"trixie": { // CRIU 4.1.1
		"personality": "personality", "coredump_filter": "coredump_filter", "timerslack_ns": "timer slack",
	},
}

// One process with nearly all the state that one can have.
func TestZoo(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			p := bootPair(t, suite)
			const dir, images = "/root/zoo", "/root/images-zoo"
			var args []string
			for what := range lost[suite] {
				args = append(args, "-"+what)
			}
			pid := p.src.zoo(t, dir, args...)
			p.src.checkZoo(t, pid, dir, 1)
			p.src.checkZoo(t, pid, dir, 2)

			// A copy is made, and the original does not notice.
			p.src.save(t, pid, checkpoint.SaveOptions{})
			p.src.checkZoo(t, pid, dir, 3)
			// So it is if it is stopped, and is continued later.
			p.src.save(t, pid, checkpoint.SaveOptions{Leave: checkpoint.LeaveStopped})
			require.Equal(t, "T", p.src.state(t, pid))
			p.src.must(t, "kill", "-CONT", strconv.Itoa(int(pid)))
			p.src.checkZoo(t, pid, dir, 4)

			r, last := p.src.save(t, pid, kill)
			requireIssues(t, r.Issues, lost[suite])
			uptime := p.src.uptime(t)
			p.handTree(t, dir)
			p.hand(t, last, images)
			p.dst.requireCrit(t, images)
			p.dst.restore(t, images, r.RestoreOptions...)
			t.Cleanup(func() { p.dst.kill(pid) })
			for n := 5; n < 8; n++ {
				p.dst.checkZoo(t, pid, dir, n)
			}
			p.dst.requireClocks(t, pid, uptime)
			p.src.CheckKernel(t)
			p.dst.CheckKernel(t)
		})
	}
}

// requireIssues checks that nothing is refused, and that everything that is lost
// and nothing else is approximated. want gives a word of the reason for each.
func requireIssues(t *testing.T, issues []checkpoint.Issue, want map[string]string) {
	t.Helper()
	for _, i := range issues {
		t.Logf("issue: %s", i)
		require.Equal(t, checkpoint.Approximated, i.Severity, "%s", i)
	}
	for what, word := range want {
		found := false
		for _, i := range issues {
			found = found || strings.Contains(i.String(), word)
		}
		require.True(t, found, "no issue tells that %s is lost", what)
	}
}

// requireCrit has the distribution's crit decode every image of a set.
func (m *machine) requireCrit(t *testing.T, dir string) {
	t.Helper()
	out := m.must(t, "sh", "-c", "cd "+dir+` && for i in *.img; do
		case $i in pages-*) continue; esac
		crit decode -i $i | python3 -c 'import json, sys; e = json.load(sys.stdin); print(sys.argv[1], len(e["entries"]))' $i || exit
	done`)
	t.Logf("crit decodes:\n%s", out)
	require.GreaterOrEqual(t, strings.Count(out, "\n"), 15)
	// And it notices damage.
	_, err := m.Exec(t.Context(), "sh", "-c", "cd "+dir+" && head -c -1 pstree.img >bad && crit decode -i bad; r=$?; rm bad; exit $r")
	require.Error(t, err)
}

func (m *machine) state(t *testing.T, pid kernel.PID) string {
	t.Helper()
	status := m.must(t, "cat", "/proc/"+strconv.Itoa(int(pid))+"/status")
	return regexp.MustCompile(`(?m)^State:\s+(\S)`).FindStringSubmatch(status)[1]
}

func (m *machine) uptime(t *testing.T) time.Duration {
	t.Helper()
	s, err := strconv.ParseFloat(strings.Fields(m.must(t, "cat", "/proc/uptime"))[0], 64)
	require.NoError(t, err)
	return time.Duration(s * float64(time.Second))
}

// requireClocks checks that the clock of a restored process went on where it was
// when the guest that it came from had run for so long: its namespace says by how
// much it differs from the guest's.
func (m *machine) requireClocks(t *testing.T, pid kernel.PID, saved time.Duration) {
	t.Helper()
	offsets := m.must(t, "cat", "/proc/"+strconv.Itoa(int(pid))+"/timens_offsets")
	o := regexp.MustCompile(`monotonic\s+(-?\d+)`).FindStringSubmatch(offsets)
	require.NotNil(t, o, "%s", offsets)
	sec, err := strconv.Atoi(o[1])
	require.NoError(t, err)
	is := m.uptime(t) + time.Duration(sec)*time.Second
	require.Greater(t, is, saved-5*time.Second)
	require.Less(t, is, saved+m.lifetime(t, pid)+5*time.Second)
}

// lifetime returns how long ago the process was started, by its /proc directory.
func (m *machine) lifetime(t *testing.T, pid kernel.PID) time.Duration {
	t.Helper()
	etime := strings.TrimSpace(m.must(t, "ps", "-o", "etimes=", "-p", strconv.Itoa(int(pid))))
	s, err := strconv.Atoi(etime)
	require.NoError(t, err)
	return time.Duration(s) * time.Second
}
