package examples_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/sources"
)

// hiddenReport is what hidden -json prints.
type hiddenReport struct {
	Views  map[string]int
	Looks  int
	Hidden []struct {
		PID, TID      kernel.PID
		Comm          string
		Seen, Missing []string
	}
}

// testHidden hides processes as a rootkit does, and looks for them.
func testHidden(t *testing.T, g *guest) {
	g.spawn(t, testvm.Process{Argv: []string{"unshare", "-pf", "--kill-child", "sleep", "1000000"}})
	sleeper := g.spawn(t, testvm.Process{Argv: []string{"sleep", "1000000"}})

	t.Run("honest", func(t *testing.T) {
		err := testvm.Wait(t.Context(), "the guest to be at rest", func() (bool, error) {
			r, status := runJSON[hiddenReport](t, g, "hidden")
			require.Empty(t, r.Hidden)
			require.Zero(t, status)
			own := 0
			for name := range r.Views {
				if strings.HasPrefix(name, "pids of ") {
					own++
				}
			}
			// Those of the program that counts are gone when it is over.
			threads, err := strconv.Atoi(g.sh(t, "set -- /proc/[0-9]*/task/*; echo $(($# - 1))"))
			return threads == r.Views["tasks"] && threads == r.Views["pids"] && own == 1, err
		})
		require.NoError(t, err)
		out, _ := g.run(t, "hidden")
		require.Contains(t, out, "nothing is hidden")
	})
	t.Run("storm", func(t *testing.T) { testStorm(t, g) })
	t.Run("unlinked", func(t *testing.T) {
		restore := g.hide(t, sleeper, false)
		// It goes by the numbers.
		require.Contains(t, g.sh(t, "echo /proc/[0-9]*"), fmt.Sprintf("/proc/%d ", sleeper))
		g.requireHidden(t, sleeper, "sleep", []string{"pids", "/proc", "children", "cgroups"}, []string{"tasks"})
		restore()
		g.requireNothingHidden(t)
	})
	t.Run("without a number", func(t *testing.T) {
		restore := g.hide(t, sleeper, true)
		require.NotContains(t, g.sh(t, "echo /proc/[0-9]*"), fmt.Sprintf("/proc/%d ", sleeper))
		g.requireHidden(t, sleeper, "sleep", []string{"children", "cgroups"}, []string{"tasks", "pids", "/proc"})
		restore()
		require.Equal(t, "sleep", g.sh(t, fmt.Sprintf("cat /proc/%d/comm", sleeper)))
		g.requireNothingHidden(t)
	})
	t.Run("running", func(t *testing.T) {
		spinner := g.spawn(t, testvm.Process{Argv: []string{"sh", "-c", "while :; do :; done"}})
		restore := g.hide(t, spinner, true)
		g.requireHidden(t, spinner, "sh", []string{"children", "cgroups", "run queues"}, []string{"tasks", "pids", "/proc"})
		restore()
	})
}

// testStorm looks at a guest in which processes and threads start and end all the time.
func testStorm(t *testing.T, g *guest) {
	for range 2 {
		g.spawn(t, testvm.Process{Argv: []string{"sh", "-c", "while :; do (:); (:) & done"}})
	}
	g.spawn(t, testvm.Process{Argv: []string{"python3", "-c", "import threading\nwhile True: threading.Thread(target=int).start()"}})
	time.Sleep(time.Second)
	again := 0
	for range 5 {
		r, status := runJSON[hiddenReport](t, g, "hidden")
		require.Empty(t, r.Hidden)
		require.Zero(t, status)
		if r.Looks > 1 {
			again++
		}
	}
	t.Logf("in %d of 5 runs something was looked at again", again)
}

func (g *guest) requireNothingHidden(t *testing.T) {
	t.Helper()
	r, status := runJSON[hiddenReport](t, g, "hidden")
	require.Empty(t, r.Hidden)
	require.Zero(t, status)
}

func (g *guest) requireHidden(t *testing.T, pid int, comm string, seen, missing []string) {
	t.Helper()
	r, status := runJSON[hiddenReport](t, g, "hidden")
	require.Equal(t, 1, status)
	require.Len(t, r.Hidden, 1)
	h := r.Hidden[0]
	require.Equal(t, kernel.PID(pid), h.PID)
	require.Equal(t, kernel.PID(pid), h.TID)
	require.Equal(t, comm, h.Comm)
	require.Equal(t, seen, h.Seen)
	require.Equal(t, missing, h.Missing)
	out, status := g.run(t, "hidden")
	require.Equal(t, 1, status)
	require.Regexp(t, fmt.Sprintf(`(?m)^%d +%d +%q +[RS] .* %s *$`, pid, pid, comm, strings.Join(missing, ", ")), out)
}

// hide takes a process out of the list of processes, and its number away if number is
// set, by writing to the guest's memory. The function that it returns undoes that.
func (g *guest) hide(t *testing.T, pid int, number bool) (restore func()) {
	t.Helper()
	var tasks kernel.Addr
	var slots, numbers [2]kernel.Addr // of the thread and of the process with the number
	g.stopped(t, func(k *kernel.Kernel) error {
		task, err := k.Task(kernel.PID(pid))
		if err != nil {
			return err
		}
		o, err := task.Object()
		require.NoError(t, err)
		at := func(path string) kernel.Addr {
			f, err := o.Field(path)
			require.NoError(t, err)
			return f.Addr()
		}
		tasks = at("tasks")
		if err := unlink(k, tasks); err != nil || !number {
			return err
		}
		for i := range slots {
			slots[i] = at(fmt.Sprintf("thread_pid.tasks[%d].first", i))
			numbers[i], err = k.ReadAddr(slots[i])
			require.NoError(t, err)
			require.NoError(t, writeAddr(k, slots[i], 0))
		}
		return nil
	})
	restore = sync.OnceFunc(func() {
		g.stopped(t, func(k *kernel.Kernel) error {
			head, err := k.Symbol("init_task")
			require.NoError(t, err)
			first, err := k.Object("task_struct", head)
			require.NoError(t, err)
			f, err := first.Field("tasks")
			require.NoError(t, err)
			if err := link(k, f.Addr(), tasks); err != nil || !number {
				return err
			}
			return errors.Join(writeAddr(k, slots[0], numbers[0]), writeAddr(k, slots[1], numbers[1]))
		})
	})
	t.Cleanup(restore)
	return restore
}

// errBusy says that the guest stands still in the middle of a change to a list.
var errBusy = errors.New("the list is being changed")

// neighbours returns what the list_head at a leads to, if that leads back.
func neighbours(k *kernel.Kernel, a kernel.Addr) (next, prev kernel.Addr, err error) {
	var all [4]kernel.Addr
	if all[0], err = k.ReadAddr(a); err != nil {
		return 0, 0, err
	}
	if all[1], err = k.ReadAddr(a + 8); err != nil {
		return 0, 0, err
	}
	if all[2], err = k.ReadAddr(all[0] + 8); err != nil {
		return 0, 0, err
	}
	if all[3], err = k.ReadAddr(all[1]); err != nil {
		return 0, 0, err
	}
	if all[2] != a || all[3] != a {
		return 0, 0, errBusy
	}
	return all[0], all[1], nil
}

// unlink is list_del, which leaves the node's own pointers.
func unlink(k *kernel.Kernel, node kernel.Addr) error {
	next, prev, err := neighbours(k, node)
	if err != nil {
		return err
	}
	return errors.Join(writeAddr(k, prev, next), writeAddr(k, next+8, prev))
}

// link is list_add.
func link(k *kernel.Kernel, head, node kernel.Addr) error {
	next, _, err := neighbours(k, head)
	if err != nil {
		return err
	}
	return errors.Join(writeAddr(k, node, next), writeAddr(k, node+8, head), writeAddr(k, next+8, node), writeAddr(k, head, node))
}

func writeAddr(k *kernel.Kernel, at, v kernel.Addr) error {
	_, err := k.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(v)), at)
	return err
}

// stopped calls f while the guest stands still, until it does so in a good moment.
func (g *guest) stopped(t *testing.T, f func(k *kernel.Kernel) error) {
	t.Helper()
	ctx, cancel := lastingContext(t)
	defer cancel()
	mem, err := vmi.Open(ctx, "qmp:"+g.QMPSocket(), &vmi.Options{Writable: true})
	require.NoError(t, err)
	defer mem.Close()
	k, err := kernel.Open(ctx, mem, nil)
	require.NoError(t, err)
	err = testvm.Wait(ctx, "a good moment", func() (bool, error) {
		resume, err := mem.(vmi.Pauser).Pause(ctx)
		if err != nil {
			return false, err
		}
		defer resume()
		err = f(k)
		if errors.Is(err, errBusy) {
			return false, nil
		}
		return true, err
	})
	require.NoError(t, err)
}
