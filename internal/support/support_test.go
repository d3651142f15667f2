package support

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestGrid(t *testing.T) {
	g := New("", "x", "row", []string{"a b", "c"}, []string{"r", "s t"})
	for i, m := range g.machines {
		g.Booted(m, fmt.Sprintf("6.%d.0-x", i))
		for j, r := range g.rows {
			g.cells[[2]string{m, r}] = []string{cellPassed, cellFailed, cellSkipped}[i+j]
		}
	}
	back := New("", "x", "row", nil, nil)
	back.parse(g.table())
	require.Equal(t, g.releases, back.releases)
	require.Equal(t, g.cells, back.cells)
	require.Equal(t, "6.12", series("6.12.117+deb13-rt-amd64"))
}
