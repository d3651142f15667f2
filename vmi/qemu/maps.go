package qemu

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// mapping is a line of /proc/PID/maps.
type mapping struct {
	start, end uint64
	perms      string // "rw-s"
	off        uint64 // in the file
	dev        uint64 // as in stat.st_dev; 0 with inode 0
	inode      uint64 // 0: anonymous
	path       string // with " (deleted)" if so
}

func (m *mapping) size() uint64                     { return m.end - m.start }
func (m *mapping) shared() bool                     { return strings.HasSuffix(m.perms, "s") }
func (m *mapping) anonymous() bool                  { return m.inode == 0 && !strings.HasPrefix(m.path, "[v") }
func (m *mapping) writable() bool                   { return strings.HasPrefix(m.perms, "rw") }
func (m *mapping) sameFile(st *syscall.Stat_t) bool { return st.Ino == m.inode && st.Dev == m.dev }

// readMaps reads /proc/PID/maps.
func readMaps(pid int) ([]mapping, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMaps(f)
}

func parseMaps(r io.Reader) ([]mapping, error) {
	var out []mapping
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		// 7f00-7f10 rw-s 00000000 00:01 1048    /memfd:ram (deleted)
		line := lines.Text()
		var f [5]string
		rest := line
		for i := range f {
			f[i], rest, _ = strings.Cut(strings.TrimLeft(rest, " "), " ")
		}
		m := mapping{perms: f[1], path: strings.TrimLeft(rest, " ")}
		lo, hi, _ := strings.Cut(f[0], "-")
		major, minor, _ := strings.Cut(f[3], ":")
		var maj, mnr uint64
		for _, v := range []struct {
			text string
			base int
			to   *uint64
		}{{lo, 16, &m.start}, {hi, 16, &m.end}, {f[2], 16, &m.off}, {major, 16, &maj}, {minor, 16, &mnr}, {f[4], 10, &m.inode}} {
			n, err := strconv.ParseUint(v.text, v.base, 64)
			if err != nil {
				return nil, fmt.Errorf("maps line %q: %w", line, err)
			}
			*v.to = n
		}
		if m.end <= m.start || len(m.perms) != 4 {
			return nil, fmt.Errorf("maps line %q: bad range", line)
		}
		m.dev = unix.Mkdev(uint32(maj), uint32(mnr))
		out = append(out, m)
	}
	return out, lines.Err()
}

// cover returns the parts of maps, in order, that hold [lo, hi) without a gap.
func cover(maps []mapping, lo, hi uint64) ([]mapping, error) {
	var out []mapping
	at := lo
	for _, m := range maps {
		if at >= hi {
			break
		}
		if m.end <= at {
			continue
		}
		if m.start > at {
			break
		}
		part := m
		part.off += at - m.start
		part.start, part.end = at, min(m.end, hi)
		out = append(out, part)
		at = part.end
	}
	if at < hi {
		return nil, fmt.Errorf("the process has nothing mapped at %#x", at)
	}
	return out, nil
}

// openMapped opens the file behind a shared mapping of a process. whole is the
// mapping as /proc/PID/maps has it.
func openMapped(pid int, whole *mapping, writable bool) (*os.File, error) {
	flags := os.O_RDONLY
	if writable {
		flags = os.O_RDWR
	}
	proc := fmt.Sprintf("/proc/%d/", pid)
	var names []string
	if filepath.IsAbs(whole.path) && !strings.HasSuffix(whole.path, " (deleted)") {
		// The root of the process first: it may live in another mount namespace.
		names = append(names, proc+"root"+whole.path, whole.path)
	}
	names = append(names, fmt.Sprintf("%smap_files/%x-%x", proc, whole.start, whole.end))
	if fds, err := os.ReadDir(proc + "fd"); err == nil {
		for _, fd := range fds {
			names = append(names, proc+"fd/"+fd.Name())
		}
	}
	var first error
	for _, name := range names {
		var st syscall.Stat_t
		if syscall.Stat(name, &st) != nil || st.Mode&syscall.S_IFMT != syscall.S_IFREG || !whole.sameFile(&st) {
			continue
		}
		f, err := os.OpenFile(name, flags, 0)
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		if fi, err := f.Stat(); err == nil && whole.sameFile(fi.Sys().(*syscall.Stat_t)) {
			return f, nil
		}
		f.Close()
	}
	if first == nil {
		first = fmt.Errorf("%s: cannot be found", whole.path)
	}
	return nil, first
}
