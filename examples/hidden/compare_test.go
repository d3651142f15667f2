package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel"
)

func threads(pids ...kernel.PID) map[kernel.Addr]*kernel.Task {
	all := map[kernel.Addr]*kernel.Task{}
	for _, pid := range pids {
		t := &kernel.Task{Addr: kernel.Addr(pid) << 12}
		t.PID, t.TGID, t.BootTime = pid, pid, uint64(pid)*1000
		all[t.Addr] = t
	}
	return all
}

func everyone(*kernel.Task) bool { return true }

func TestCompare(t *testing.T) {
	odd := func(t *kernel.Task) bool { return t.PID%2 == 1 }
	found := compare([]view{
		{"all", threads(1, 2, 3, 4), everyone},
		{"odd", threads(1, 5), odd},
		{"some", threads(2), nil},
	})
	require.Len(t, found, 2)
	require.Equal(t, kernel.PID(3), found[0].PID)
	require.Equal(t, []string{"all"}, found[0].Seen)
	require.Equal(t, []string{"odd"}, found[0].Missing)
	require.Equal(t, kernel.PID(5), found[1].PID)
	require.Equal(t, []string{"odd"}, found[1].Seen)
	require.Equal(t, []string{"all"}, found[1].Missing)

	// What runs is nowhere else.
	found = compare([]view{{"all", threads(1), everyone}, {"running", threads(2), nil}})
	require.Len(t, found, 1)
	require.Equal(t, []string{"running"}, found[0].Seen)
}

// Only what is missing both times, in the same place, is believed.
func TestInBoth(t *testing.T) {
	f := func(pid kernel.PID, start uint64, missing ...string) finding {
		return finding{TID: pid, StartNS: start, Missing: missing}
	}
	earlier := []finding{f(1, 10, "a", "b"), f(2, 10, "a"), f(3, 10, "a"), f(4, 10, "a")}
	later := []finding{f(1, 10, "b", "c"), f(2, 11, "a"), f(3, 10, "b"), f(5, 10, "a")}
	require.Equal(t, []finding{f(1, 10, "b")}, inBoth(earlier, later))
	require.Empty(t, inBoth(nil, later))
	require.Empty(t, inBoth(earlier, nil))
}
