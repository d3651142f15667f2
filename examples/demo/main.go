// Command demo moves a running process from one virtual machine to another, from
// outside both, and shows each step.
//
// It boots two Debian guests and starts a program in the first that counts. The
// program is then found in the first guest's memory, frozen, saved as a CRIU image
// set and killed, all from the host; stock CRIU restores it in the second guest,
// where it counts on. The demo fails unless every number was written exactly once.
//
//	demo [-suite bookworm|trixie]
//
// save.go is the part that uses the library; everything else boots guests and looks
// at them from inside, to see whether it is true.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

// patience is how long one suite may take; it takes about 20 s.
const patience = 10 * time.Minute

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program: it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	fl := flag.NewFlagSet("demo", flag.ContinueOnError)
	fl.SetOutput(stderr)
	suite := fl.String("suite", "", "only this pair of guests: "+strings.Join(testvm.Suites(), " or "))
	if err := fl.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	suites := testvm.Suites()
	if *suite != "" {
		if !slices.Contains(suites, *suite) {
			fmt.Fprintf(stderr, "demo: -suite %s: there are %s\n", *suite, strings.Join(suites, " and "))
			return 2
		}
		suites = []string{*suite}
	}

	// On a signal the context ends, every step returns, and what it made is removed.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	p := &page{w: stdout, colour: hasColour(stdout)}
	for _, s := range suites {
		if err := demo(ctx, p, s); err != nil {
			if ctx.Err() != nil {
				err = errors.New("interrupted; the guests are gone")
			}
			fmt.Fprintf(stderr, "demo: %s: %v\n", s, err)
			return 1
		}
	}
	return 0
}

// hasColour says whether w is a terminal that shows colours.
func hasColour(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}
