package signal_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var updateCycles = flag.Bool("update-cycles", false, "write what TestCycles finds into docs/cycles.md")

// report logs what was found, and writes it into the table of docs/cycles.md.
func (c *cycler) report(t *testing.T, cpus int) {
	t.Helper()
	log := "nothing"
	if c.worst != nil {
		log = fmt.Sprintf("%d: `%s`", c.worst.Level, strings.ReplaceAll(c.worst.Text, "|", `\|`))
	}
	var rows strings.Builder
	for _, load := range []bool{false, true} {
		s := &c.stats[index(load)]
		fmt.Fprintf(&rows, "| %s | %d | %s | %d | %d | %s | %s | %s | %s | %s |\n", c.k.Release(), cpus, map[bool]string{false: "none", true: "stress-ng"}[load],
			c.cycles[index(load)], c.failures, spread(s.stop), spread(s.cont), spread(s.pauseOne), spread(s.pauseAll), log)
	}
	t.Logf("%d checks of all queues, %d with PSI; %d tasks on them in all\n%s", c.checked, c.psi, c.queued, rows.String())
	if !*updateCycles {
		return
	}
	const file, begin, end = "../docs/cycles.md", "<!-- cycles: begin -->\n", "<!-- cycles: end -->\n"
	doc, err := os.ReadFile(file)
	require.NoError(t, err)
	head, rest, ok1 := strings.Cut(string(doc), begin)
	table, tail, ok2 := strings.Cut(rest, end)
	require.True(t, ok1 && ok2, "%s has no markers", file)
	lines := slices.Collect(strings.Lines(table))
	require.GreaterOrEqual(t, len(lines), 2)
	mine := fmt.Sprintf("| %s | %d |", c.k.Release(), cpus)
	others := slices.DeleteFunc(lines[2:], func(l string) bool { return strings.HasPrefix(l, mine) })
	all := append(others, slices.Collect(strings.Lines(rows.String()))...)
	slices.Sort(all)
	doc = []byte(head + begin + strings.Join(lines[:2], "") + strings.Join(all, "") + end + tail)
	require.NoError(t, os.WriteFile(file, doc, 0o644))
}

// spread is the median and the worst, in milliseconds.
func spread(d []time.Duration) string {
	if len(d) == 0 {
		return "–"
	}
	slices.Sort(d)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return fmt.Sprintf("%.1f / %.1f", ms(d[len(d)/2]), ms(d[len(d)-1]))
}
