// Command bench measures the library against its peers, on the same work and on
// the same machine, and prints one table.
//
// Peers are stock CRIU inside the guest, stock CRIU natively on the host, and cp.
// The guests are emulated, so CRIU in them is slow whatever it does: the ratio that
// counts is the one against CRIU on the host, which saves the same program from its
// own kernel at full speed. Runs of ours and of a peer alternate, and the columns
// show median, least and most: other work on the machine shows in the spread.
//
// It needs root, and the guests of 'make guests'.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

type bench struct {
	ctx   context.Context
	table table

	runs    int
	size    int64          // of the large process
	only    *regexp.Regexp // names of parts
	dir     string         // work directory on disk
	shm     string         // work directory in memory
	ovm     string         // programs, built for the occasion
	inside  string
	mem     string
	many    string
	vmlinux string // of bookworm's kernel, for the peers that need it
	native  *native

	last samples // of saving the large process
}

// part is a group of measurements that shares a guest.
type part struct {
	name string
	run  func(*bench, *guest) error
}

func main() {
	runs := flag.Int("n", 15, "runs of what is quick; slow things take fewer")
	size := flag.Int64("size", 1<<30, "bytes of the large process")
	suites := flag.String("suites", "trixie,bookworm", "guests; the first is the one for the large process, and its CRIU runs on the host")
	only := flag.String("only", "", "parts that match this `regexp`: open save signals micro dumps large memory many")
	vmlinux := flag.String("vmlinux", "", "debug `file` of bookworm's kernel, for drgn and crash; see 'make bench-peers'")
	dir := flag.String("dir", os.TempDir(), "work in a new directory below this one; it should be on a disk")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	b := &bench{ctx: ctx, runs: *runs, size: *size, vmlinux: *vmlinux}
	var err error
	if b.only, err = regexp.Compile(*only); err == nil {
		err = b.main(strings.Split(*suites, ","), *dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) main(suites []string, dir string) (err error) {
	begin := time.Now()
	if err := b.prepare(dir); err != nil {
		return err
	}
	defer b.clean()
	for i, suite := range suites {
		parts := []part{{"open", (*bench).open}, {"save", (*bench).saveSmall}, {"signals", (*bench).signals}}
		if i == 0 {
			parts = append(parts, part{"micro", (*bench).micro})
		}
		if suite == "bookworm" { // whose debug file it is
			parts = append(parts, part{"dumps", (*bench).dumps})
		}
		if err := b.runParts(suite, 1<<30, parts); err != nil {
			return err
		}
	}
	if b.only.MatchString("many") {
		if err := b.processes(suites[0]); err != nil {
			return err
		}
	}
	// CRIU in the guest wants room for the process, and for its images.
	large := []part{{"large", (*bench).saveLarge}, {"memory", (*bench).memory}}
	if err := b.runParts(suites[0], 3*b.size+b.size/2, large); err != nil {
		return err
	}
	b.describe(begin)
	b.table.print(os.Stdout)
	return nil
}

func (b *bench) runParts(suite string, ram int64, parts []part) error {
	parts = slices.DeleteFunc(parts, func(p part) bool { return !b.only.MatchString(p.name) })
	if len(parts) == 0 {
		return nil
	}
	g, err := b.boot(testvm.Config{Suite: suite, Memory: ram})
	if err != nil {
		return err
	}
	defer g.close()
	if b.native == nil || b.native.err != nil {
		b.native = newNative(b, g)
	}
	for _, p := range parts {
		fmt.Fprintf(os.Stderr, "bench: %s, %s ...\n", suite, p.name)
		if err := p.run(b, g); err != nil {
			return fmt.Errorf("%s: %s: %w", suite, p.name, err)
		}
	}
	warnings, err := g.Warnings(b.ctx)
	if err == nil && len(warnings) > 0 {
		err = fmt.Errorf("%s: the guest's kernel complains: %s", suite, warnings[0])
	}
	return err
}

// prepare builds the programs that are measured as whole processes.
func (b *bench) prepare(dir string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root: CRIU does, and QEMU's memory")
	}
	if b.dir, err = os.MkdirTemp(dir, "ovm-bench-"); err != nil {
		return err
	}
	if b.shm, err = os.MkdirTemp("/dev/shm", "ovm-bench-"); err != nil {
		return err
	}
	b.ovm, b.inside = filepath.Join(b.dir, "ovm"), filepath.Join(b.dir, "inside")
	b.mem, b.many = filepath.Join(b.dir, "mem"), filepath.Join(b.dir, "many")
	for program, source := range map[string]string{b.mem: memSource, b.many: manySource} {
		if err := os.WriteFile(program+".c", []byte(source), 0o600); err != nil {
			return err
		}
	}
	const module = "github.com/ovmigrate/ovmigrate/"
	for _, argv := range [][]string{
		{"go", "build", "-o", b.ovm, module + "examples/ovm"},
		{"go", "build", "-o", b.inside, module + "internal/bench/inside"},
		{"gcc", "-O2", "-o", b.mem, b.mem + ".c"},
		{"gcc", "-O2", "-o", b.many, b.many + ".c"},
	} {
		c := exec.CommandContext(b.ctx, argv[0], argv[1:]...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			b.clean()
			return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
		}
	}
	return nil
}

func (b *bench) clean() {
	for _, d := range []string{b.dir, b.shm} {
		if d != "" {
			_ = os.RemoveAll(d)
		}
	}
}

// describe says where and how the numbers were taken.
func (b *bench) describe(begin time.Time) {
	var u unix.Utsname
	_ = unix.Uname(&u)
	load, _ := os.ReadFile("/proc/loadavg")
	out, _ := exec.Command("qemu-system-x86_64", "--version").Output()
	qemu, _, _ := strings.Cut(string(out), "\n")
	fmt.Printf("%s, %d CPUs, Linux %s, %s, guests under TCG; %s after %.0f s, load %s\n",
		runtime.GOARCH, runtime.NumCPU(), unix.ByteSliceToString(u.Release[:]), qemu,
		time.Now().UTC().Format(time.DateOnly), time.Since(begin).Seconds(), strings.Join(strings.Fields(string(load))[:1], ""))
	if b.native != nil {
		fmt.Printf("CRIU on the host: %s\n", b.native)
	}
	fmt.Println("ours, peer's: medians; ratio: ours by peer's. CRIU never waits for the disk; ours does where it says fsync.")
	fmt.Println()
}
