package checkpoint

import (
	"fmt"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// Severity says what becomes of a piece of state.
type Severity int

// The severities, in order.
const (
	// Approximated: the restored process may notice a difference.
	Approximated Severity = iota
	// Refused: the piece cannot be carried; the process is not saved unless
	// Options.AllowIssues is set, and then without it.
	Refused
)

func (s Severity) String() string {
	if s == Refused {
		return "refused"
	}
	return "approximated"
}

// MarshalText implements encoding.TextMarshaler.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Issue is one piece of a process's state that is not carried as it is.
type Issue struct {
	PID      kernel.PID `json:"pid"`
	What     string     `json:"what"` // "fd 5", "mapping 0x7f…", "timer 2"
	Severity Severity   `json:"severity"`
	Reason   string     `json:"reason"`
}

func (i Issue) String() string {
	return fmt.Sprintf("pid %d: %s: %s: %s", i.PID, i.What, i.Severity, i.Reason)
}

// IssuesError is returned when a process has state that is refused.
type IssuesError struct {
	Issues []Issue // all of them, approximated ones included
}

func (e *IssuesError) Error() string {
	var first *Issue
	n := 0
	for i := range e.Issues {
		if e.Issues[i].Severity == Refused {
			if first == nil {
				first = &e.Issues[i]
			}
			n++
		}
	}
	if first == nil {
		return "process has no refused state"
	}
	if n == 1 {
		return first.String()
	}
	return fmt.Sprintf("%s (and %d more)", first, n-1)
}

// issues collects Issues.
type issues struct {
	pid kernel.PID
	all []Issue
}

func (s *issues) refuse(what, format string, args ...any) {
	s.all = append(s.all, Issue{s.pid, what, Refused, fmt.Sprintf(format, args...)})
}

func (s *issues) approximate(what, format string, args ...any) {
	s.all = append(s.all, Issue{s.pid, what, Approximated, fmt.Sprintf(format, args...)})
}

func refused(all []Issue) bool {
	for _, i := range all {
		if i.Severity == Refused {
			return true
		}
	}
	return false
}
