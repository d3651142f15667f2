// Package doctable keeps tables of test results in documents: each is Markdown between
// two marks, <!-- NAME: begin --> and <!-- NAME: end -->.
package doctable

import (
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"
)

// Table is results by row and column. Set is safe for concurrent use.
type Table struct {
	Corner        string // above the names of the rows
	Columns, Rows []string

	mu    sync.Mutex
	cells map[cell]string
}

type cell struct{ row, column string }

// Set stores what came of a test. An empty text is none.
func (t *Table) Set(row, column, text string) {
	if text == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cells == nil {
		t.cells = make(map[cell]string)
	}
	t.cells[cell{row, column}] = text
}

// Get returns what Set has stored, or "".
func (t *Table) Get(row, column string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.cells[cell{row, column}]
}

// Markdown returns the table as it is in a document. Rows without a cell are left out.
func (t *Table) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| %s | %s |\n|---%s|\n", t.Corner, strings.Join(t.Columns, " | "), strings.Repeat("|---", len(t.Columns)))
	for _, r := range t.Rows {
		line, some := "| "+r+" |", false
		for _, c := range t.Columns {
			text := t.cells[cell{r, c}]
			line += " " + text + " |"
			some = some || text != ""
		}
		if some {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

// parse reads what Markdown has written.
func (t *Table) parse(text string) {
	var columns []string
	for line := range strings.Lines(text) {
		var f []string
		for s := range strings.SplitSeq(strings.Trim(strings.TrimSpace(line), "|"), "|") {
			f = append(f, strings.TrimSpace(s))
		}
		switch {
		case f[0] == t.Corner:
			columns = f
		case strings.HasPrefix(f[0], "---"):
		default:
			for i := 1; i < min(len(f), len(columns)); i++ {
				if f[i] != "" {
					t.Set(f[0], columns[i], f[i])
				}
			}
		}
	}
}

// Difference is a cell that is not as in the document.
type Difference struct{ Row, Column, Document, Now string }

// Compare returns the cells in which same finds t and the table of that name in a
// document to differ. Cells that only one of them has do not.
func (t *Table) Compare(file, name string, same func(document, now string) bool) ([]Difference, error) {
	was, _, err := t.document(file, name)
	if err != nil {
		return nil, err
	}
	var all []Difference
	for _, r := range t.Rows {
		for _, c := range t.Columns {
			document, now := was.cells[cell{r, c}], t.cells[cell{r, c}]
			if document != "" && now != "" && !same(document, now) {
				all = append(all, Difference{r, c, document, now})
			}
		}
	}
	return all, nil
}

// Write writes the cells of t into the table of that name in a document, and leaves the
// others there as they are.
func (t *Table) Write(file, name string) error {
	was, put, err := t.document(file, name)
	if err != nil {
		return err
	}
	maps.Copy(was.cells, t.cells)
	return os.WriteFile(file, []byte(put(was.Markdown())), 0o644)
}

// document returns the table of a document, and what returns the document with another.
func (t *Table) document(file, name string) (was *Table, put func(string) string, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	begin, end := fmt.Sprintf("<!-- %s: begin -->\n", name), fmt.Sprintf("<!-- %s: end -->\n", name)
	before, rest, ok1 := strings.Cut(string(b), begin)
	old, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		return nil, nil, fmt.Errorf("%s has no marks for a table %q", file, name)
	}
	was = &Table{Corner: t.Corner, Columns: t.Columns, Rows: t.Rows, cells: make(map[cell]string)}
	was.parse(old)
	return was, func(table string) string { return before + begin + table + end + after }, nil
}
