package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// samples are measurements of one thing; units are the table's business.
type samples []float64

func (s samples) median() float64 {
	if len(s) == 0 {
		return 0
	}
	c := slices.Sorted(slices.Values(s))
	if n := len(c); n%2 == 0 {
		return (c[n/2-1] + c[n/2]) / 2
	}
	return c[len(c)/2]
}

func (s *samples) add(d time.Duration) { *s = append(*s, float64(d)) }

func durations(d []time.Duration) samples {
	var s samples
	for _, v := range d {
		s.add(v)
	}
	return s
}

// unit prints a number of the base unit: nanoseconds, bytes or per second.
type unit func(float64) string

func nanoseconds(v float64) string {
	switch {
	case v < 10e3:
		return fmt.Sprintf("%.2f µs", v/1e3)
	case v < 1e6:
		return fmt.Sprintf("%.0f µs", v/1e3)
	case v < 100e6:
		return fmt.Sprintf("%.1f ms", v/1e6)
	case v < 1e9:
		return fmt.Sprintf("%.0f ms", v/1e6)
	}
	return fmt.Sprintf("%.2f s", v/1e9)
}

func mebibytes(v float64) string { return fmt.Sprintf("%.0f MiB", v/(1<<20)) }

func gibibytesPerSecond(v float64) string { return fmt.Sprintf("%.2f GiB/s", v/(1<<30)) }

func millionsPerSecond(v float64) string { return fmt.Sprintf("%.1f M/s", v/1e6) }

// row is a line of the table.
type row struct {
	what   string
	ours   samples
	peer   string // "" if there is none
	theirs samples
	unit   unit // nil: nanoseconds
	goal   *goal
	note   string // why there is no peer
}

// goal is what a row must reach: ours, or the ratio, below or at limit.
type goal struct {
	text  string
	limit float64
	ratio bool
}

func (r *row) ratio() float64 {
	if len(r.ours) == 0 || len(r.theirs) == 0 {
		return 0
	}
	return r.ours.median() / r.theirs.median()
}

func (r *row) verdict() string {
	if r.goal == nil {
		return ""
	}
	v := r.ours.median()
	if r.goal.ratio {
		v = r.ratio()
	}
	switch {
	case v == 0:
		return "not measured"
	case v > r.goal.limit:
		return "MISSED"
	}
	return "met"
}

// table prints rows in columns. Ratios are of medians, ours by the peer's.
type table struct{ rows []row }

func (t *table) add(r row) { t.rows = append(t.rows, r) }

// print writes the table and returns the number of targets that were missed.
func (t *table) print(w io.Writer) (missed int) {
	lines := [][]string{{"measurement", "ours", "min", "max", "n", "peer", "peer's", "min", "max", "n", "ratio", "target", ""}}
	for _, r := range t.rows {
		u := r.unit
		if u == nil {
			u = nanoseconds
		}
		line := append([]string{r.what}, columns(r.ours, u)...)
		line = append(line, r.peer)
		line = append(line, columns(r.theirs, u)...)
		ratio, target := "", ""
		if r.ratio() > 0 {
			ratio = fmt.Sprintf("%.2f", r.ratio())
		}
		if r.goal != nil {
			target = r.goal.text
		}
		verdict := r.verdict()
		if verdict == "MISSED" {
			missed++
		}
		if r.note != "" && len(r.theirs) == 0 {
			verdict = strings.TrimPrefix(verdict+"; "+r.note, "; ")
		}
		lines = append(lines, append(line, ratio, target, verdict))
	}
	width := make([]int, len(lines[0]))
	for _, l := range lines {
		for i, c := range l {
			width[i] = max(width[i], len([]rune(c)))
		}
	}
	for _, l := range lines {
		var b strings.Builder
		for i, c := range l {
			pad := strings.Repeat(" ", width[i]-len([]rune(c)))
			if i == 0 || i == 5 || i >= 11 {
				b.WriteString(c + pad + "  ")
			} else {
				b.WriteString(pad + c + "  ")
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
	return missed
}

func columns(s samples, u unit) []string {
	if len(s) == 0 {
		return []string{"", "", "", ""}
	}
	return []string{u(s.median()), u(slices.Min(s)), u(slices.Max(s)), fmt.Sprint(len(s))}
}

func atMost(text string, limit float64) *goal { return &goal{text: text, limit: limit} }

func ratioAtMost(text string, limit float64) *goal {
	return &goal{text: text, limit: limit, ratio: true}
}
