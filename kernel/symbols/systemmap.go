package symbols

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// maxLine bounds a line of a System.map.
const maxLine = 2 * maxName

// ParseSystemMap reads a System.map, the output of nm, or /proc/kallsyms: lines of
// address, type letter and name. slide is added to kernel addresses, those in the
// upper half of the address space; a per-CPU offset stays as it is. Give 0 for
// addresses of the running kernel. Module symbols of /proc/kallsyms, which have a
// fourth field, are kept. The error wraps ErrFormat and names the line.
func ParseSystemMap(r io.Reader, slide uint64) (*Table, error) {
	scan := bufio.NewScanner(r)
	scan.Buffer(make([]byte, 0, maxLine), maxLine)
	var all []Symbol
	for scan.Scan() {
		line := scan.Text()
		if line == "" {
			continue
		}
		f := strings.Fields(line)
		bad := func(why string) error {
			return fmt.Errorf("%w: line %d: %s", ErrFormat, len(all)+1, why)
		}
		if len(f) < 3 || len(f) > 4 || len(f[1]) != 1 {
			return nil, bad("not \"address type name\"")
		}
		addr, err := strconv.ParseUint(f[0], 16, 64)
		if err != nil {
			return nil, bad("address is not a hexadecimal number")
		}
		if len(all) == maxSymbols {
			return nil, bad("too many symbols")
		}
		if addr>>63 != 0 {
			addr += slide
		}
		all = append(all, Symbol{Name: f[2], Addr: addr, Type: f[1][0]})
	}
	if err := scan.Err(); err != nil {
		return nil, fmt.Errorf("%w: line %d: %w", ErrFormat, len(all)+1, err)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: no symbols", ErrFormat)
	}
	return New(all), nil
}
