package doctable

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "doc.md")
	require.NoError(t, os.WriteFile(file, []byte("a\n<!-- x: begin -->\n<!-- x: end -->\nb\n"), 0o644))
	one := &Table{Corner: "row", Columns: []string{"c", "d"}, Rows: []string{"r", "s t", "u"}}
	one.Set("s t", "c", "1")
	one.Set("r", "d", "2 3")
	require.NoError(t, one.Write(file, "x"))
	two := &Table{Corner: "row", Columns: []string{"c", "d"}, Rows: []string{"r", "s t", "u"}}
	two.Set("r", "c", "4")
	two.Set("r", "d", "5")
	two.Set("s t", "c", "") // was not run
	require.ErrorContains(t, two.Write(file, "y"), `"y"`)
	equal := func(a, b string) bool { return a == b }
	d, err := two.Compare(file, "x", equal)
	require.NoError(t, err)
	require.Equal(t, []Difference{{"r", "d", "2 3", "5"}}, d)
	require.NoError(t, two.Write(file, "x"))
	d, err = two.Compare(file, "x", equal)
	require.NoError(t, err)
	require.Empty(t, d)
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "a\n<!-- x: begin -->\n| row | c | d |\n|---|---|---|\n| r | 4 | 5 |\n| s t | 1 |  |\n<!-- x: end -->\nb\n", string(b))
}
