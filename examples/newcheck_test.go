package examples_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// testNewCheck compares the list of cryptographic algorithms with /proc/crypto.
func testNewCheck(t *testing.T, g *guest) {
	want := parseCrypto(g.sh(t, "cat /proc/crypto"))
	require.Greater(t, len(want), 10, "algorithms in the guest")
	out, status := g.run(t, "newcheck")
	require.Zero(t, status)
	var got []string
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		require.Len(t, f, 3, line)
		got = append(got, strings.Join(f, " "))
	}
	require.Equal(t, want, got)
}

// parseCrypto returns name, driver and priority of each algorithm.
func parseCrypto(text string) (all []string) {
	for paragraph := range strings.SplitSeq(text, "\n\n") {
		f := map[string]string{}
		for line := range strings.Lines(paragraph) {
			key, value, _ := strings.Cut(line, ":")
			f[strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
		all = append(all, fmt.Sprint(f["name"], " ", f["driver"], " ", f["priority"]))
	}
	return all
}
