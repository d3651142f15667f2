package kernel_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

const supportDoc = "../docs/kernel-support.md"

// documented finds a table that tests write, with its surrounding marks.
func documented(t *testing.T, doc, name string) (before, table, after string) {
	t.Helper()
	begin, end := fmt.Sprintf("<!-- %s: begin -->\n", name), fmt.Sprintf("<!-- %s: end -->", name)
	before, rest, ok := strings.Cut(doc, begin)
	require.True(t, ok, "%s has no %q", supportDoc, begin)
	table, after, ok = strings.Cut(rest, end)
	require.True(t, ok, "%s has no %q", supportDoc, end)
	return before + begin, table, end + after
}

// compareDocs compares the table with the one in the documentation, as far as the
// matrix has been run; -update writes a whole one there.
func (m *matrix) compareDocs(t *testing.T) {
	doc, err := os.ReadFile(supportDoc)
	require.NoError(t, err)
	before, old, after := documented(t, string(doc), "matrix")
	whole := len(m.cells) == len(machines())*len(features)
	if *update {
		require.True(t, whole, "-update needs the whole matrix; ran %d of %d", len(m.cells), len(machines())*len(features))
		require.NoError(t, os.WriteFile(supportDoc, []byte(before+m.table()+after), 0o644))
		return
	}
	was := parseMatrix(old)
	for cell, mark := range m.cells {
		assert.Equal(t, was.cells[cell], mark, "%s on %s, in %s; -args -update after a whole run", cell[1], cell[0], supportDoc)
	}
	for name, release := range m.releases {
		switch {
		case series(was.releases[name]) == series(release):
		case strings.HasPrefix(name, "sid-"): // moves on all the time
			t.Logf("%s is %s now; the table has %s", name, release, was.releases[name])
		default:
			t.Errorf("%s is %s; the table has %q", name, release, was.releases[name])
		}
	}
	if whole {
		assert.Len(t, was.cells, len(m.cells), "cells of the table")
	}
}

// series returns the first two numbers of a release: a stable release of Debian
// changes the others.
func series(release string) string {
	return regexp.MustCompile(`^\d+\.\d+`).FindString(release)
}

// table is the matrix as Markdown: machines, then features by machine.
func (m *matrix) table() string {
	var b strings.Builder
	b.WriteString("| kernel | release |\n|---|---|\n")
	for _, c := range machines() {
		fmt.Fprintf(&b, "| %s | %s |\n", c.name, m.releases[c.name])
	}
	b.WriteString("\n| feature |")
	for _, c := range machines() {
		fmt.Fprintf(&b, " %s |", c.name)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(machines())) + "\n")
	for _, f := range features {
		fmt.Fprintf(&b, "| %s |", f.name)
		for _, c := range machines() {
			fmt.Fprintf(&b, " %s |", m.cells[[2]string{c.name, f.name}])
		}
		b.WriteString("\n")
	}
	return b.String()
}

// parseMatrix reads what table has written.
func parseMatrix(text string) *matrix {
	m := &matrix{releases: map[string]string{}, cells: map[[2]string]string{}}
	var heads []string
	for line := range strings.Lines(text) {
		var f []string
		for c := range strings.SplitSeq(strings.Trim(strings.TrimSpace(line), "|"), "|") {
			f = append(f, strings.TrimSpace(c))
		}
		switch {
		case f[0] == "feature":
			heads = f
		case len(f) < 2 || f[0] == "kernel" || strings.HasPrefix(f[0], "---"):
		case heads == nil:
			m.releases[f[0]] = f[1]
		default:
			for i := 1; i < min(len(f), len(heads)); i++ {
				m.cells[[2]string{heads[i], f[0]}] = f[i]
			}
		}
	}
	return m
}

func TestMatrixTable(t *testing.T) {
	m := &matrix{releases: map[string]string{}, cells: map[[2]string]string{}}
	for i, c := range machines() {
		m.releases[c.name] = fmt.Sprintf("6.%d.0-x", i)
		for j, f := range features {
			m.cells[[2]string{c.name, f.name}] = []string{cellPassed, cellFailed, cellSkipped}[(i+j)%3]
		}
	}
	back := parseMatrix(m.table())
	require.Equal(t, m.releases, back.releases)
	require.Equal(t, m.cells, back.cells)
	require.Equal(t, "6.12", series("6.12.117+deb13-rt-amd64"))
	require.NotEmpty(t, testvm.Kernels())
}
