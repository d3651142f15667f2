// Package support keeps the tables of docs/kernel-support.md: what came of each of a
// test's rows on each machine. Tests of this module only import it.
package support

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Updating says whether tables in the documentation are to be rewritten: the flag
// -update of the test program.
func Updating() bool {
	f := flag.Lookup("update")
	return f != nil && f.Value.String() == "true"
}

// Grid collects what came of each row's test on each machine, and compares it with a
// table in docs/kernel-support.md. Its methods are safe for concurrent use.
type Grid struct {
	doc        string // file of the documentation
	name, kind string // of the table, and of a row
	machines   []string
	rows       []string

	mu       sync.Mutex
	releases map[string]string    // of kernels, by machine
	cells    map[[2]string]string // by machine and row
}

const (
	cellPassed  = "✓"
	cellFailed  = "✗"
	cellSkipped = "–" // the kernel does not have it
)

// New makes an empty grid for the table of that name in a file of the documentation.
// Kind is what its rows are.
func New(doc, name, kind string, machines, rows []string) *Grid {
	return &Grid{
		doc: doc, name: name, kind: kind, machines: machines, rows: rows,
		releases: map[string]string{}, cells: map[[2]string]string{},
	}
}

// Booted stores the release of the kernel on a machine.
func (g *Grid) Booted(machine, release string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.releases[machine] = release
}

// Set stores what a test has come to.
func (g *Grid) Set(machine, row string, t *testing.T) {
	g.mu.Lock()
	defer g.mu.Unlock()
	cell := cellPassed
	switch {
	case t.Failed():
		cell = cellFailed
	case t.Skipped():
		cell = cellSkipped
	}
	g.cells[[2]string{machine, row}] = cell
}

// Fill stores that every row has failed on a machine that did not get so far as to be
// known by its release.
func (g *Grid) Fill(machine string, t *testing.T) {
	g.mu.Lock()
	release := g.releases[machine]
	g.mu.Unlock()
	for _, r := range g.rows {
		if release == "" {
			g.Set(machine, r, t)
		}
	}
}

// CompareDocs compares the grid with the table in the documentation, as far as tests
// have been run; -update writes those cells there.
func (g *Grid) CompareDocs(t *testing.T) {
	b, err := os.ReadFile(g.doc)
	require.NoError(t, err)
	begin, end := fmt.Sprintf("<!-- %s: begin -->\n", g.name), fmt.Sprintf("<!-- %s: end -->\n", g.name)
	before, rest, ok1 := strings.Cut(string(b), begin)
	old, after, ok2 := strings.Cut(rest, end)
	require.True(t, ok1 && ok2, "%s has no markers for %q", g.doc, g.name)
	was := New(g.doc, g.name, g.kind, g.machines, g.rows)
	was.parse(old)
	if Updating() {
		maps.Copy(was.releases, g.releases)
		maps.Copy(was.cells, g.cells)
		require.NoError(t, os.WriteFile(g.doc, []byte(before+begin+was.table()+end+after), 0o644))
		return
	}
	for cell, mark := range g.cells {
		if was.cells[cell] == "" { // not run before: a new row takes no run of all machines
			t.Logf("%s on %s is not in %s: it is %s; -update writes it", cell[1], cell[0], g.doc, mark)
			continue
		}
		assert.Equal(t, was.cells[cell], mark, "%s on %s is not as in %s; -update writes it", cell[1], cell[0], g.doc)
	}
	for name, release := range g.releases {
		switch {
		case was.releases[name] == "" || series(was.releases[name]) == series(release):
		case strings.HasPrefix(name, "sid-"): // moves on all the time
			t.Logf("%s is %s now, in %s %s", name, release, g.doc, was.releases[name])
		default:
			t.Errorf("%s is %s, in %s %q", name, release, g.doc, was.releases[name])
		}
	}
	if all := len(g.machines) * len(g.rows); len(g.cells) == all {
		assert.Len(t, was.cells, all, "cells of the table")
	}
}

// series returns the first two numbers of a release: a stable release of Debian
// changes the others.
func series(release string) string {
	return regexp.MustCompile(`^\d+\.\d+`).FindString(release)
}

// table is the grid as Markdown: machines, then rows by machine.
func (g *Grid) table() string {
	var b strings.Builder
	b.WriteString("| machine | kernel |\n|---|---|\n")
	for _, m := range g.machines {
		fmt.Fprintf(&b, "| %s | %s |\n", m, g.releases[m])
	}
	fmt.Fprintf(&b, "\n| %s |", g.kind)
	for _, m := range g.machines {
		fmt.Fprintf(&b, " %s |", m)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(g.machines)) + "\n")
	for _, r := range g.rows {
		fmt.Fprintf(&b, "| %s |", r)
		for _, m := range g.machines {
			fmt.Fprintf(&b, " %s |", g.cells[[2]string{m, r}])
		}
		b.WriteString("\n")
	}
	return b.String()
}

// parse reads what table has written.
func (g *Grid) parse(text string) {
	var heads []string
	for line := range strings.Lines(text) {
		var f []string
		for c := range strings.SplitSeq(strings.Trim(strings.TrimSpace(line), "|"), "|") {
			f = append(f, strings.TrimSpace(c))
		}
		switch {
		case f[0] == g.kind:
			heads = f
		case len(f) < 2 || f[0] == "machine" || strings.HasPrefix(f[0], "---"):
		case heads == nil:
			g.releases[f[0]] = f[1]
		default:
			for i := 1; i < min(len(f), len(heads)); i++ {
				if f[i] != "" {
					g.cells[[2]string{heads[i], f[0]}] = f[i]
				}
			}
		}
	}
}
