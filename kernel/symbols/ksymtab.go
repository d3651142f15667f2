package symbols

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// exportSeeds are symbols that every kernel exports to modules, one in each of the
// tables __ksymtab and __ksymtab_gpl.
var exportSeeds = []string{"init_task", "init_pid_ns"}

const (
	exportSize  = 12 // struct kernel_symbol with relative references: value, name, namespace
	maxExports  = 1 << 16
	leastExport = 256 // symbols that a kernel exports
)

var errExports = errors.New("no table of exported symbols")

// Exported finds the symbols that the kernel exports to modules, functions and
// variables, by content in region, the kernel image at address base. A kernel without
// CONFIG_KALLSYMS_ALL has functions only in its kallsyms; the variables that it
// exports are here. Source: include/linux/export.h, CONFIG_HAVE_ARCH_PREL32_RELOCATIONS.
//
// The error wraps ErrFormat.
func Exported(region []byte, base uint64) ([]Symbol, error) {
	seen := map[int]bool{}
	var all []Symbol
	for _, seed := range exportSeeds {
		for _, at := range referring(region, seed) {
			if !seen[at] {
				all = appendExports(all, region, base, at, seen)
			}
		}
	}
	if len(all) < leastExport {
		return nil, fmt.Errorf("%w: %w (%d names)", ErrFormat, errExports, len(all))
	}
	return all, nil
}

// referring returns the offsets of entries whose name is seed.
func referring(region []byte, seed string) (entries []int) {
	const most = 16 // times that the string is in memory
	var names []int
	text := append([]byte(seed), 0)
	for at := 0; len(names) < most; {
		i := bytes.Index(region[at:], text)
		if i < 0 {
			break
		}
		names = append(names, at+i)
		at += i + 1
	}
	for at := 4; at+8 <= len(region); at += 4 {
		to := at + int(int32(binary.LittleEndian.Uint32(region[at:])))
		for _, n := range names {
			if to == n {
				entries = append(entries, at-4)
			}
		}
	}
	return entries
}

// appendExports appends the entries around the one at offset at, as far as they make
// sense, unless they are so few that it was chance. seen notes those that were visited.
func appendExports(all []Symbol, region []byte, base uint64, at int, seen map[int]bool) []Symbol {
	const chance = 64
	first := len(all)
	for _, step := range []int{exportSize, -exportSize} {
		for e := at; len(all) < maxExports; e += step {
			s, ok := export(region, base, e)
			if !ok {
				break
			}
			if !seen[e] {
				seen[e] = true
				all = append(all, s)
			}
		}
	}
	if len(all)-first < chance {
		return all[:first]
	}
	return all
}

// export reads the entry at offset at. The linker lets a name be the end of another.
func export(region []byte, base uint64, at int) (Symbol, bool) {
	if at < 0 || at+exportSize > len(region) {
		return Symbol{}, false
	}
	value := at + int(int32(binary.LittleEndian.Uint32(region[at:])))
	name := at + 4 + int(int32(binary.LittleEndian.Uint32(region[at+4:])))
	if value < 0 || value >= len(region) || name < 0 || name >= len(region) {
		return Symbol{}, false
	}
	b := region[name:min(name+maxName, len(region))]
	n := bytes.IndexByte(b, 0)
	if n <= 0 {
		return Symbol{}, false
	}
	for _, c := range b[:n] {
		if c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return Symbol{}, false
		}
	}
	return Symbol{Name: string(b[:n]), Addr: base + uint64(value), Type: 'D'}, true
}

// With returns a table of t's symbols and of those in more whose names t has not.
// Names that both have must be at the same addresses, but for a few that are not
// unique: else the error wraps ErrFormat.
func (t *Table) With(more []Symbol) (*Table, error) {
	all := make([]Symbol, 0, t.Len()+len(more))
	known := make(map[string]uint64, t.Len())
	for s := range t.All() {
		all = append(all, s)
		if _, ok := known[s.Name]; !ok {
			known[s.Name] = s.Addr
		}
	}
	same, other := 0, 0
	for _, s := range more {
		switch a, ok := known[s.Name]; {
		case !ok:
			all = append(all, s)
		case a == s.Addr:
			same++
		default:
			other++
		}
	}
	if same < leastExport || other > same/16 {
		return nil, fmt.Errorf("%w: %d exported symbols are at the addresses in kallsyms, %d are not", ErrFormat, same, other)
	}
	return New(all), nil
}
