package support

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

var _ = flag.Bool("update", false, "")

func TestGrid(t *testing.T) {
	doc := filepath.Join(t.TempDir(), "doc.md")
	text := "<!-- x machines: begin -->\n<!-- x machines: end -->\n<!-- x: begin -->\n<!-- x: end -->\n"
	require.NoError(t, os.WriteFile(doc, []byte(text), 0o644))
	g := New(doc, "x", "row", []string{"a b", "c"}, []string{"r", "s t"})
	g.Booted("a b", "6.12.117+deb13-rt-amd64")
	g.Set("a b", "r", t)
	g.Fill("a b", t) // has booted
	require.Empty(t, g.features.Get("s t", "a b"))
	g.Fill("c", t)
	require.Equal(t, cellPassed, g.features.Get("s t", "c"))
	require.NoError(t, flag.Set("update", "true"))
	g.CompareDocs(t)
	require.NoError(t, flag.Set("update", "false"))
	g.Booted("a b", "6.12.120+deb13-rt-amd64")
	g.CompareDocs(t)
	b, err := os.ReadFile(doc)
	require.NoError(t, err)
	require.Contains(t, string(b), "| a b | 6.12.117+deb13-rt-amd64 |\n")
	require.Contains(t, string(b), "| r | ✓ | ✓ |\n")
	require.Contains(t, string(b), "| s t |  | ✓ |\n")
}
