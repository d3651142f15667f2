package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes: part of the contract.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// usageError is a mistake in how ovm was called, not in what it found.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// errSilent is a failure whose reason the command has printed already, as its result.
var errSilent = errors.New("failed")

// run is the program: it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := withSignals(context.Background())
	defer stop()

	a := &app{stdout: stdout, stderr: stderr}
	root := a.rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil || errors.Is(err, syscall.EPIPE) && a.readOnly {
		return exitOK // `ovm ps | head` is not a failure
	}
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
		err = interrupted(err, cause)
	}
	var usage usageError
	switch {
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "ovm: %s (see ovm %s--help)\n", oneLine(err), commandOf(root, args))
		return exitUsage
	case !errors.Is(err, errSilent):
		fmt.Fprintf(stderr, "ovm: %s\n", oneLine(err))
	}
	return exitFailure
}

// signalError is the cause of a context that a signal has cancelled.
type signalError struct{ sig os.Signal }

func (e signalError) Error() string {
	if e.sig == os.Interrupt {
		return "interrupted"
	}
	return "ended by signal: " + e.sig.String()
}

// withSignals returns a context that ends when the user or the system wants the
// program to stop. What a command holds in the guest is let go by its deferred
// calls, so it must not simply die: a second signal does that. A closed pipe is no
// reason to die either: it becomes an error of the write.
func withSignals(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	done := make(chan struct{})
	go func() {
		select {
		case s := <-c:
			cancel(signalError{s})
			signal.Stop(c)
		case <-done:
		}
	}()
	var once sync.Once
	return ctx, func() {
		once.Do(func() {
			signal.Stop(c)
			signal.Stop(pipe)
			close(done)
			cancel(nil)
		})
	}
}

// interrupted puts the signal in place of the bare "context canceled".
func interrupted(err, cause error) error {
	s := strings.TrimSuffix(oneLine(err), context.Canceled.Error())
	if s = strings.TrimRight(s, ": "); s == "" {
		return cause
	}
	return fmt.Errorf("%s: %w", s, cause)
}

// oneLine returns err's message on a single line, whatever it carries along.
func oneLine(err error) string {
	var path *fs.PathError
	msg := err.Error()
	if errors.As(err, &path) && path.Path == "" {
		msg = path.Err.Error()
	}
	lines := strings.FieldsFunc(msg, func(r rune) bool { return r == '\n' || r == '\r' })
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return printable(strings.Join(lines, "; "))
}

// commandOf returns the subcommand that args name, with a space behind it.
func commandOf(root *cobra.Command, args []string) string {
	c, _, err := root.Find(args)
	if err != nil || c == root {
		return ""
	}
	return c.Name() + " "
}
