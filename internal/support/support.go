// Package support keeps the tables of docs/kernel-support.md: what came of each of a
// test's rows on each machine. Tests of this module only import it.
package support

import (
	"flag"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/doctable"
)

// Updating says whether tables in the documentation are to be rewritten: the flag
// -update of the test program.
func Updating() bool {
	f := flag.Lookup("update")
	return f != nil && f.Value.String() == "true"
}

// Grid collects what came of each row's test on each machine, and compares it with two
// tables in a document: of machines with their kernels, and of rows by machine. Its
// methods are safe for concurrent use.
type Grid struct {
	doc, name          string
	machines, features *doctable.Table
}

// What a cell says.
const (
	cellPassed  = "✓"
	cellFailed  = "✗"
	cellSkipped = "–" // the kernel does not have it
)

// columnKernel is the one of the table of machines.
const columnKernel = "kernel"

// New makes an empty grid for the tables "NAME" and "NAME machines" of a document. Kind
// is what its rows are.
func New(doc, name, kind string, machines, rows []string) *Grid {
	return &Grid{
		doc: doc, name: name,
		machines: &doctable.Table{Corner: "machine", Columns: []string{columnKernel}, Rows: machines},
		features: &doctable.Table{Corner: kind, Columns: machines, Rows: rows},
	}
}

// Booted stores the release of the kernel on a machine.
func (g *Grid) Booted(machine, release string) { g.machines.Set(machine, columnKernel, release) }

// Set stores what a test has come to.
func (g *Grid) Set(machine, row string, t *testing.T) {
	cell := cellPassed
	switch {
	case t.Failed():
		cell = cellFailed
	case t.Skipped():
		cell = cellSkipped
	}
	g.features.Set(row, machine, cell)
}

// Fill stores that every row has failed on a machine that did not get so far as to be
// known by its release.
func (g *Grid) Fill(machine string, t *testing.T) {
	if g.machines.Get(machine, columnKernel) != "" {
		return
	}
	for _, r := range g.features.Rows {
		g.Set(machine, r, t)
	}
}

// CompareDocs compares the grid with the tables in the document, as far as tests have
// been run; -update writes those cells there.
func (g *Grid) CompareDocs(t *testing.T) {
	machines := g.name + " machines"
	if Updating() {
		require.NoError(t, g.machines.Write(g.doc, machines))
		require.NoError(t, g.features.Write(g.doc, g.name))
		return
	}
	differences, err := g.features.Compare(g.doc, g.name, func(was, now string) bool { return was == now })
	require.NoError(t, err)
	for _, d := range differences {
		assert.Equal(t, d.Document, d.Now, "%s on %s is not as in %s; -update writes it", d.Row, d.Column, g.doc)
	}
	differences, err = g.machines.Compare(g.doc, machines, func(was, now string) bool { return series(was) == series(now) })
	require.NoError(t, err)
	for _, d := range differences {
		if strings.HasPrefix(d.Row, "sid-") { // moves on all the time
			t.Logf("%s is %s now, in %s %s", d.Row, d.Now, g.doc, d.Document)
			continue
		}
		t.Errorf("%s is %s, in %s %q", d.Row, d.Now, g.doc, d.Document)
	}
}

// series returns the first two numbers of a release: a stable release of Debian
// changes the others.
func series(release string) string {
	return regexp.MustCompile(`^\d+\.\d+`).FindString(release)
}
