package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// forest draws a tree of processes that are given as pairs of number and parent.
func forest(pairs ...kernel.PID) []string {
	var all []process
	for i := 0; i < len(pairs); i += 2 {
		all = append(all, process{PID: pairs[i], TID: pairs[i], PPID: pairs[i+1]})
	}
	var lines []string
	ordered, branches := treeOf(all)
	for i, p := range ordered {
		lines = append(lines, fmt.Sprint(branches[i], p.TID))
	}
	return lines
}

func TestTreeOf(t *testing.T) {
	require.Empty(t, forest())
	require.Equal(t, []string{
		"1",
		"├─ 5",
		"│  ├─ 6",
		"│  │  └─ 4",
		"│  └─ 8",
		"└─ 7",
		"   └─ 9",
		"2",
		"└─ 3",
		"20",
	}, forest(1, 0, 2, 0, 3, 2, 4, 6, 9, 7, 8, 5, 7, 1, 6, 5, 5, 1, 20, 19))
	// A parent that is a child is no reason to leave anybody out.
	require.Equal(t, []string{"3", "1", "└─ 2", "   └─ 4"}, forest(1, 2, 2, 1, 3, 3, 4, 2))

	var chain []kernel.PID
	for pid := kernel.PID(1); pid <= 2*maxDepth; pid++ {
		chain = append(chain, pid, pid-1)
	}
	require.Len(t, forest(chain...), 2*maxDepth)

	all := []process{{PID: 1, TID: 1}, {PID: 2, TID: 2, PPID: 1}, {PID: 1, TID: 9}, {PID: 2, TID: 3, PPID: 1}, {PID: 8, TID: 7, PPID: 1}}
	ordered, branches := treeOf(all)
	require.Equal(t, []string{"", "", "├─ ", "└─ ", "   └─ "}, branches)
	for i, tid := range []kernel.PID{7, 1, 9, 2, 3} {
		require.Equal(t, tid, ordered[i].TID)
	}
}

// TestTree compares what ps --tree draws with the parents that the guest tells of.
func TestTree(t *testing.T) {
	vm := sharedGuest(t, "trixie")
	_, err := vm.Exec(t.Context(), "sh", "-c", "(sh -c 'sleep 1000 & sleep 1000 & wait' >/dev/null 2>&1 &)")
	require.NoError(t, err)
	out, err := vm.Exec(t.Context(), "sh", "-c", `cd /proc; for p in [0-9]*; do [ -e $p/stat ] && sed 's/(.*)/x/' $p/stat | cut -d' ' -f1,4; done`)
	require.NoError(t, err)
	parents := map[string]string{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		parents[f[0]] = f[1]
	}
	all := ovmJSON[[]process](t, "-g", vm.RAMPath(), "ps", "--tree")
	lines := strings.Split(strings.TrimSuffix(string(ovm(t, "-g", vm.RAMPath(), "ps", "--tree")), "\n"), "\n")
	heads := []rune(lines[0])
	column := len(heads) - len("COMMAND")
	require.Equal(t, "COMMAND", string(heads[column:]))
	require.Len(t, lines, len(all)+1)
	compared, deepest := 0, 0
	var path []string // from the root to the line before
	for i, line := range lines[1:] {
		pid := strings.Fields(line)[0]
		require.Equal(t, fmt.Sprint(all[i].PID), pid, "JSON has the same order")
		depth := 0
		for _, r := range string([]rune(line)[column:]) {
			if !strings.ContainsRune("├│└─ ", r) {
				break
			}
			depth++
		}
		require.Zero(t, depth%3, line)
		path = append(path[:depth/3], pid)
		deepest = max(deepest, depth/3)
		up := "0"
		if depth > 0 {
			up = path[depth/3-1]
		}
		if want, ok := parents[pid]; ok {
			require.Equal(t, want, up, line)
			compared++
		}
	}
	require.Greater(t, compared, 40)
	require.GreaterOrEqual(t, deepest, 2)
}
