package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
)

// page is what the reader sees: commands with a prompt, what they say indented.
type page struct {
	w      io.Writer
	colour bool
}

const (
	bold  = "1"
	dim   = "2"
	green = "32"

	margin = 4
	width  = 100
)

// line writes s in a colour, the line feeds before it left alone.
func (p *page) line(colour, s string) {
	text := strings.TrimLeft(s, "\n")
	if p.colour {
		text = "\x1b[" + colour + "m" + text + "\x1b[0m"
	}
	fmt.Fprintln(p.w, s[:len(s)-len(strings.TrimLeft(s, "\n"))]+text)
}

func (p *page) comment(format string, args ...any) { p.line(dim, fmt.Sprintf(format, args...)) }

func (p *page) good(format string, args ...any) { p.line(green, fmt.Sprintf(format, args...)) }

// outside is a command on the host: what the demo just did through the library.
func (p *page) outside(format string, args ...any) {
	p.line(bold, "\nhost$ "+fmt.Sprintf(format, args...))
}

// inside is a command in a guest.
func (p *page) inside(m *machine, format string, args ...any) {
	p.line(bold, "\n"+m.name+"# "+fmt.Sprintf(format, args...))
}

// say is what a command says.
func (p *page) say(format string, args ...any) {
	p.wrap(strings.Repeat(" ", margin), fmt.Sprintf(format, args...))
}

// item is an element of a list.
func (p *page) item(format string, args ...any) {
	p.wrap(strings.Repeat(" ", margin)+"- ", fmt.Sprintf(format, args...))
}

// wrap writes text behind a prefix, on as many lines as it takes.
func (p *page) wrap(prefix, text string) {
	line := prefix
	for i, word := range strings.Fields(text) {
		if i > 0 && len(line)+1+len(word) > width {
			fmt.Fprintln(p.w, line)
			line = strings.Repeat(" ", len(prefix))
		} else if i > 0 {
			line += " "
		}
		line += word
	}
	fmt.Fprintln(p.w, line)
}

// numbers shows lines beside each other.
func (p *page) numbers(lines []string) {
	p.say("%s", strings.Join(lines, " "))
}

// introduce says what there is to begin with.
func (p *page) introduce(ctx context.Context, suite string, one, two *machine) error {
	release, err := two.Exec(ctx, "uname", "-r")
	if err != nil {
		return err
	}
	criu, err := two.Exec(ctx, "sh", "-c", "criu --version | head -n 1")
	if err != nil {
		return err
	}
	p.line(bold, fmt.Sprintf("\n=== %s: Linux %s, CRIU %s ===", suite, strings.TrimSpace(string(release)),
		strings.TrimSpace(strings.TrimPrefix(string(criu), "Version:"))))
	p.comment("Two guests of %d MiB each have booted under QEMU without KVM, in %v and %v.",
		one.Config().Memory>>20, short(one.BootTime()), short(two.BootTime()))
	p.outside("GUEST1=qmp:%s", one.QMPSocket())
	return nil
}

// step is something that took time.
type step struct {
	what string
	took time.Duration
}

func (p *page) times(steps []step) {
	fmt.Fprintln(p.w)
	for _, s := range steps {
		fmt.Fprintf(p.w, "%*s  %s\n", 12, short(s.took), s.what)
	}
}

// short rounds a duration to three digits.
func short(d time.Duration) time.Duration {
	for unit := time.Duration(1); unit <= time.Hour; unit *= 10 {
		if d < 1000*unit {
			return d.Round(unit)
		}
	}
	return d
}
