package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/kernel"
)

func (a *app) memCommand() *cobra.Command {
	return a.command("mem PID ADDR LEN", "Write the memory of a process to standard output",
		"mem writes LEN bytes of the user memory of process PID, from ADDR on, to standard\n"+
			"output as they are. ADDR is hexadecimal; LEN may end in K, M or G. Memory that the\n"+
			"process has not touched yet is what it would find there.",
		func(c *cobra.Command, args []string) error {
			addr, err := parseAddr(args[1])
			if err != nil {
				return err
			}
			size, err := parseSize(args[2])
			if err != nil {
				return err
			}
			if addr+size < addr {
				return usagef("%s bytes from %s on go beyond the end of memory", args[2], args[1])
			}
			if isTerminal(a.stdout) {
				return usagef("memory is binary: send standard output to a file or a pipe")
			}
			return a.process(c.Context(), needRead, args[0], func(_ *guest, t *kernel.Task) error {
				return copyMemory(c.Context(), a.stdout, t, kernel.UserAddr(addr), size)
			})
		})
}

// memChunk is how much memory is read at a time.
const memChunk = 1 << 20

func copyMemory(ctx context.Context, w io.Writer, t *kernel.Task, addr kernel.UserAddr, size uint64) error {
	mem, err := newUserMemory(t)
	if err != nil {
		return err
	}
	buf := make([]byte, min(size, memChunk))
	for size > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(size, memChunk)
		// What precedes an unreadable page is written: the reader of a pipe sees
		// how far it went.
		m, err := mem.ReadAt(buf[:n], addr)
		if _, werr := w.Write(buf[:m]); werr != nil {
			return werr
		}
		if err != nil {
			return about(t, err)
		}
		addr += kernel.UserAddr(n)
		size -= n
	}
	return nil
}
