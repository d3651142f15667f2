package main

import (
	"bytes"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// maxCmdline bounds how much of a command line is shown; the kernel lets programs
// have a quarter of their stack limit.
const maxCmdline = 2 << 20

// cmdline returns what /proc/PID/cmdline shows: arguments with a NUL behind each.
// What is not resident is left out. Source: fs/proc/base.c:get_mm_cmdline.
func cmdline(mm *kernel.MM) []byte {
	start, end := mm.ArgStart, mm.ArgEnd
	if start >= end || end-start > maxCmdline {
		return nil
	}
	// A program that has overwritten its arguments by a longer title, as servers
	// do, may have gone on into its environment, up to the first NUL.
	var last [1]byte
	if n, _ := mm.ReadAt(last[:], end-1); n == 1 && last[0] != 0 {
		limit := end
		if mm.EnvStart == end && mm.EnvEnd >= end {
			limit = mm.EnvEnd
		}
		title := readUpTo(mm, start, min(limit-start, 4096))
		if i := bytes.IndexByte(title, 0); i >= 0 {
			title = title[:i+1]
		}
		return title
	}
	return readUpTo(mm, start, end-start)
}

func readUpTo(mm *kernel.MM, a, n kernel.UserAddr) []byte {
	b := make([]byte, n)
	read, _ := mm.ReadAt(b, a)
	return b[:read]
}
