package main

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// wanted is one line of a list.
type wanted struct {
	cnames  string   // "file_lock_core|file_lock"
	members []string // "__state|state", "signal.nr_threads"
	where   string   // "structs.list:3"
}

var (
	nameOK   = regexp.MustCompile(`^\w+(\|\w+)*$`)
	memberOK = regexp.MustCompile(`^[\w.\[\]]+(\|[\w.\[\]]+)*$`)
)

// parseList reads the lines of a list; # starts a comment.
func parseList(r io.Reader, name string) ([]wanted, error) {
	var all []wanted
	s := bufio.NewScanner(r)
	for n := 1; s.Scan(); n++ {
		line, _, _ := strings.Cut(s.Text(), "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		w := wanted{cnames: words[0], members: words[1:], where: fmt.Sprintf("%s:%d", name, n)}
		if !nameOK.MatchString(w.cnames) {
			return nil, fmt.Errorf("%s: %q is no structure's name", w.where, w.cnames)
		}
		if len(w.members) == 0 {
			return nil, fmt.Errorf("%s: no members of %s are named", w.where, w.cnames)
		}
		for _, m := range w.members {
			if !memberOK.MatchString(m) {
				return nil, fmt.Errorf("%s: %q is no member's name", w.where, m)
			}
		}
		all = append(all, w)
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: names no structure", name)
	}
	return all, nil
}

// goName makes "s_type.name" STypeName and "__state|state" State.
func goName(cpath string) string {
	cpath, _, _ = strings.Cut(cpath, "|")
	var b strings.Builder
	upper := true
	for _, r := range cpath {
		if r == '_' || r == '.' || r == '[' || r == ']' {
			upper = true
			continue
		}
		if upper {
			b.WriteString(strings.ToUpper(string(r)))
		} else {
			b.WriteRune(r)
		}
		upper = false
	}
	name := b.String()
	if name == "" || name[0] >= '0' && name[0] <= '9' {
		return "X" + name
	}
	return name
}
