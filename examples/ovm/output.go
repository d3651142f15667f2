package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"
)

// printJSON writes v, indented, with a newline behind it.
func (a *app) printJSON(v any) error {
	w := bufio.NewWriter(a.stdout)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return err
	}
	return w.Flush()
}

// table writes rows of cells in columns.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer, heads ...any) *table {
	t := &table{tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)}
	if len(heads) > 0 {
		t.row(heads...)
	}
	return t
}

func (t *table) row(cells ...any) {
	for i, c := range cells {
		if i > 0 {
			io.WriteString(t.w, "\t")
		}
		io.WriteString(t.w, printable(fmt.Sprint(c)))
	}
	io.WriteString(t.w, "\n")
}

// flush writes the table; errors of the rows before it show here.
func (t *table) flush() error { return t.w.Flush() }

// printable returns s with everything escaped that could play tricks on a
// terminal: names of files and processes are whatever the guest likes.
func printable(s string) string {
	clean := func(r rune) bool { return r != utf8.RuneError && unicode.IsPrint(r) }
	if strings.IndexFunc(s, func(r rune) bool { return !clean(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if clean(r) {
			b.WriteString(s[i : i+n])
		} else {
			for _, c := range []byte(s[i : i+n]) {
				q := strconv.Quote(string([]byte{c}))
				b.WriteString(q[1 : len(q)-1])
			}
		}
		i += n
	}
	return b.String()
}

// hex is a number that JSON shows as a string like "0x7f00": addresses do not
// survive the floating-point numbers that many JSON readers use.
type hex uint64

func (h hex) String() string { return fmt.Sprintf("%#x", uint64(h)) }

// MarshalText makes h a JSON string.
func (h hex) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (h *hex) UnmarshalText(b []byte) error {
	v, err := strconv.ParseUint(string(b), 0, 64)
	*h = hex(v)
	return err
}
