package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/signal"
)

// app is what the commands share: where they write to and the flags of all.
type app struct {
	stdout, stderr io.Writer

	guest    string
	verbose  bool
	progress bool
	json     bool

	vmlinux, systemMap string // files of the guest's kernel

	readOnly bool // the command that runs changes nothing in the guest
}

const longHelp = `ovm looks into a running Linux guest from outside its virtual machine. It needs
nothing but the guest's memory: no agent, no symbols, no debug files.

GUEST is one of
  qmp:SOCKET   a live QEMU, by its QMP socket
  pid:PID      a live QEMU, by its process number
  PATH         a file: raw RAM (shared with a live QEMU, too), an ELF core or another
               dump; a snapshot's directory; /proc/kcore for this very machine`

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "ovm",
		Short:         "See, stop, save and move the processes of a Linux guest from outside its VM",
		Long:          longHelp,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("no command given")
			}
			hint := ""
			c.SuggestionsMinimumDistance = 2
			if s := c.SuggestionsFor(args[0]); len(s) > 0 {
				hint = ", did you mean " + strings.Join(s, " or ") + "?"
			}
			return usagef("unknown command %q%s", args[0], hint)
		},
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.CompletionOptions.HiddenDefaultCmd = true

	f := root.PersistentFlags()
	f.StringVarP(&a.guest, "guest", "g", "", "the `GUEST` to look into: qmp:SOCKET, pid:PID or a file")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "say on standard error what is done")
	f.StringVar(&a.vmlinux, "vmlinux", "", "a `FILE` of the guest's kernel with debug information or BTF: vmlinux or vmlinuz")
	f.StringVar(&a.systemMap, "system-map", "", "the System.map `FILE` of the guest's kernel")
	f.BoolVar(&a.progress, "progress", false, "show progress even if standard error is no terminal")

	root.AddCommand(
		a.infoCommand(), a.psCommand(), a.mapsCommand(), a.fdsCommand(), a.memCommand(),
		a.stackCommand(), a.timersCommand(), a.cgroupsCommand(), a.nsCommand(), a.mountsCommand(), a.netCommand(),
		a.modulesCommand(), a.dmesgCommand(),
		a.typeCommand(), a.symCommand(), a.objCommand(),
		a.signalCommand(),
		a.sendCommand("stop", "Stop a process, as SIGSTOP does", signal.Stop),
		a.sendCommand("cont", "Let a stopped process go on, as SIGCONT does", signal.Continue),
		a.sendCommand("kill", "Kill a process, as SIGKILL does", signal.Kill),
		a.checkCommand(), a.checkpointCommand(), a.verifyCommand(), a.migrateCommand(),
		a.convertCommand())
	return root
}

// command returns a subcommand that takes exactly the arguments that use names in
// capitals.
func (a *app) command(use, short, long string, runE func(c *cobra.Command, args []string) error) *cobra.Command {
	names := strings.Fields(use)[1:]
	return &cobra.Command{
		Use:                   use + " [flags]",
		DisableFlagsInUseLine: true,
		Short:                 short,
		Long:                  long,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) < len(names):
				return usagef("%s is missing", strings.Join(names[len(args):], " "))
			case len(args) > len(names):
				return usagef("too many arguments: %s", strings.Join(args[len(names):], " "))
			}
			return nil
		},
		RunE: runE,
	}
}

// jsonFlag adds --json to a command.
func (a *app) jsonFlag(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVar(&a.json, "json", false, "print JSON")
	return c
}

func (a *app) logger() *slog.Logger {
	if !a.verbose {
		return nil
	}
	return slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// isTerminal says whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// parsePID reads a process number of the guest's initial pid namespace.
func parsePID(s string) (kernel.PID, error) {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n <= 0 {
		return 0, usagef("%q is no process number", s)
	}
	return kernel.PID(n), nil
}

// parseSize reads a number of bytes: decimal, 0x…, or with K, M, G behind it.
func parseSize(s string) (uint64, error) {
	shift := 0
	digits := s
	if n := len(s); n > 1 {
		if i := strings.IndexByte("KMG", s[n-1]&^0x20); i >= 0 && !strings.HasPrefix(s, "0x") {
			shift, digits = 10*(i+1), s[:n-1]
		}
	}
	v, err := strconv.ParseUint(digits, 0, 64)
	if err != nil || v > 1<<63>>shift {
		return 0, usagef("%q is no size", s)
	}
	return v << shift, nil
}

// parseAddr reads an address, hexadecimal with or without 0x as /proc shows it.
func parseAddr(s string) (uint64, error) {
	v, err := strconv.ParseUint(strings.TrimPrefix(s, "0x"), 16, 64)
	if err != nil {
		return 0, usagef("%q is no address", s)
	}
	return v, nil
}

// formatSize writes a number of bytes for people.
func formatSize(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	if f == float64(uint64(f)) {
		return fmt.Sprintf("%.0f %s", f, units[i])
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}
