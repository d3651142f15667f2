package signal_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/doctable"
)

var cycleLoads = []string{"no load", "stress-ng"} // by index

var cycleKernels = []string{"bullseye-cloud", "bookworm-cloud", "trixie-cloud", "sid-generic"}

func cycleRow(kernel string, cpus, load int) string {
	return fmt.Sprintf("%s, %d vCPU, %s", kernel, cpus, cycleLoads[load])
}

// report logs what was found; -update writes it into the table of docs/cycles.md.
func (c *cycler) report(t *testing.T, cpus int) {
	t.Helper()
	tab := &doctable.Table{
		Corner:  "guest",
		Columns: []string{"kernel", "cycles", "failures", "stop, freeze", "continue", "pause for one", "pause for 51", "worst message"},
	}
	for _, k := range cycleKernels {
		for _, n := range []int{1, 2} {
			for load := range cycleLoads {
				tab.Rows = append(tab.Rows, cycleRow(k, n, load))
			}
		}
	}
	log := "nothing"
	if c.worst != nil {
		log = fmt.Sprintf("%d: `%s`", c.worst.Level, strings.ReplaceAll(c.worst.Text, "|", ""))
	}
	for load := range cycleLoads {
		s := &c.stats[load]
		for i, cell := range []string{
			c.k.Release(), fmt.Sprint(c.cycles[load]), fmt.Sprint(c.failures),
			spread(s.stop), spread(s.cont), spread(s.pauseOne), spread(s.pauseAll), log,
		} {
			tab.Set(cycleRow(c.name, cpus, load), tab.Columns[i], cell)
		}
	}
	t.Logf("%d checks of all queues, %d with PSI; %d tasks on them in all\n%s", c.checked, c.psi, c.queued, tab.Markdown())
	if *update {
		require.NoError(t, tab.Write("../docs/cycles.md", "cycles"))
	}
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
