package kernel

import (
	"bytes"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// maxStrings bounds the argument and environment strings of a process: more than
// the 6 MiB that execve ever accepts, and a process can point elsewhere.
const maxStrings = 16 << 20

// Cmdline returns the command line as /proc/PID/cmdline shows it: the arguments,
// each with its NUL. A process that overwrote its arguments with a longer title
// (setproctitle) gets the title. When pages are not resident, what comes before
// them is returned with an error that wraps *paging.NotMappedError. A process that
// has no command line, as kernel threads, gives an empty result. Source:
// fs/proc/base.c:get_mm_cmdline.
func (t *Task) Cmdline() ([]byte, error) {
	if t.MMAddr == 0 || t.IsKernelThread() {
		return nil, nil
	}
	m, err := t.MM()
	if err != nil {
		return nil, err
	}
	return m.Cmdline()
}

// Cmdline is Task.Cmdline.
func (m *MM) Cmdline() ([]byte, error) {
	if m.EnvEnd == 0 || m.ArgStart >= m.ArgEnd {
		return nil, nil
	}
	var last [1]byte
	if _, err := m.ReadAt(last[:], m.ArgEnd-1); err == nil && last[0] != 0 {
		return m.procTitle()
	}
	return m.readStrings(m.ArgStart, m.ArgEnd)
}

// procTitle is fs/proc/base.c:get_mm_proctitle: one string of at most a page, which
// may go on into the environment if that follows.
func (m *MM) procTitle() ([]byte, error) {
	end := m.ArgEnd
	if m.EnvStart == m.ArgEnd && m.EnvEnd >= m.EnvStart {
		end = m.EnvEnd
	}
	b, err := m.readStrings(m.ArgStart, m.ArgStart+vmi.PageSize)
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b, err = b[:i+1], nil
	}
	if n := uint64(end - m.ArgStart); uint64(len(b)) > n {
		b = b[:n]
	}
	return b, err
}

// Environ returns the environment strings as /proc/PID/environ shows them: each
// with its NUL, as they were at execve but for what the process wrote over them.
// Errors as of Cmdline. Source: fs/proc/base.c:environ_read.
func (t *Task) Environ() ([]byte, error) {
	if t.MMAddr == 0 || t.IsKernelThread() {
		return nil, nil
	}
	m, err := t.MM()
	if err != nil || m.EnvEnd == 0 || m.EnvStart >= m.EnvEnd {
		return nil, err
	}
	return m.readStrings(m.EnvStart, m.EnvEnd)
}

// readStrings reads resident user memory up to end, page by page, so that the
// length that the process claims costs nothing.
func (m *MM) readStrings(start, end UserAddr) ([]byte, error) {
	if end-start > maxStrings {
		end = start + maxStrings
	}
	var out []byte
	var page [vmi.PageSize]byte
	for a := start; a < end; {
		n := min(int(end-a), int(vmi.PageSize-a%vmi.PageSize))
		got, err := m.ReadAt(page[:n], a)
		out = append(out, page[:got]...)
		if err != nil {
			return out, err
		}
		a += UserAddr(n)
	}
	return out, nil
}
