package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

// info is written to guest.json and, when the guest is ready, to standard output.
type info struct {
	Suite   string  `json:"suite"`
	PID     int     `json:"pid"`      // of this program
	QEMU    int     `json:"qemu_pid"` // of QEMU
	RAM     string  `json:"ram,omitempty"`
	QMP     string  `json:"qmp"`         // for the library
	QMP2    string  `json:"harness_qmp"` // for scripts
	Agent   string  `json:"agent"`
	Console string  `json:"console"`
	Boot    float64 `json:"boot_seconds"`
}

func socketOf(dir string) string { return filepath.Join(dir, "agent.sock") }

func run(ctx context.Context, args []string) error {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		fmt.Fprint(os.Stderr, usage)
		return exitCode(2)
	}
	suite, args := args[0], args[1:]
	fl := flag.NewFlagSet("guest run SUITE", flag.ExitOnError)
	dir := fl.String("dir", "", "directory for sockets and logs; made if missing")
	mem := fl.String("mem", "512M", "RAM, with suffix K, M or G")
	smp := fl.Int("smp", 1, "virtual processors")
	cpu := fl.String("cpu", "", "QEMU's -cpu (default "+testvm.DefaultCPU+")")
	kernel := fl.String("kernel", "", "boot this kernel of 'guest kernels' instead of the suite's own")
	anon := fl.Bool("anonymous", false, "RAM in QEMU's own memory, not in a file")
	kargs := fl.String("append", "", "kernel arguments")
	daemon := fl.Bool("daemon", false, "return when the guest is ready")
	patience := fl.Duration("timeout", 3*time.Minute, "how long booting may take")
	_ = fl.Parse(args)
	if *dir == "" {
		return fmt.Errorf("run: -dir is needed")
	}
	bytes, err := parseSize(*mem)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(*dir, 0o755); err != nil {
		return err
	}
	abs, err := filepath.Abs(*dir)
	if err != nil {
		return err
	}
	if *daemon {
		return background(abs)
	}
	c := testvm.Config{
		Suite: suite, Kernel: *kernel, Memory: bytes, CPUs: *smp, CPU: *cpu, AnonymousRAM: *anon, KernelArgs: *kargs,
		QEMUArgs: fl.Args(), Dir: abs, Console: filepath.Join(abs, "console.log"),
	}
	return foreground(ctx, c, *patience)
}

func foreground(ctx context.Context, c testvm.Config, patience time.Duration) error {
	l, err := net.Listen("unix", socketOf(c.Dir))
	if err != nil {
		if conn, e := net.Dial("unix", socketOf(c.Dir)); e == nil {
			conn.Close()
			return fmt.Errorf("%s: a guest is running there", c.Dir)
		}
		_ = os.Remove(socketOf(c.Dir)) // left by a guest that was killed
		_ = os.Remove(filepath.Join(c.Dir, "ram"))
		if l, err = net.Listen("unix", socketOf(c.Dir)); err != nil {
			return err
		}
	}
	defer l.Close()
	booting, cancel := context.WithTimeout(ctx, patience)
	vm, err := testvm.Boot(booting, c)
	cancel()
	if err != nil {
		return err
	}
	defer vm.Stop()
	b, err := json.MarshalIndent(info{
		Suite: c.Suite, PID: os.Getpid(), QEMU: vm.PID(), RAM: vm.RAMPath(), QMP: vm.QMPSocket(),
		QMP2: vm.HarnessQMPSocket(), Agent: socketOf(c.Dir), Console: c.Console, Boot: vm.BootTime().Seconds(),
	}, "", "  ")
	if err != nil {
		return err
	}
	state := filepath.Join(c.Dir, "guest.json")
	if err := os.WriteFile(state, append(b, '\n'), 0o644); err != nil {
		return err
	}
	defer os.Remove(state)
	fmt.Printf("%s\nready\n", b)
	go func() { _ = vm.Serve(l) }()
	select {
	case <-ctx.Done():
		return nil
	case <-vm.Exited():
		return fmt.Errorf("the guest has ended; see %s", c.Console)
	}
}

// background starts this program again without -daemon, in its own session, and
// waits until it is ready.
func background(dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var args []string
	for _, a := range os.Args[1:] {
		if a != "-daemon" && a != "--daemon" && a != "-daemon=true" {
			args = append(args, a)
		}
	}
	log, err := os.Create(filepath.Join(dir, "guest.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(self, args...)
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	sc := bufio.NewScanner(out)
	for sc.Scan() {
		if sc.Text() == "ready" {
			return nil
		}
		fmt.Println(sc.Text())
	}
	_ = cmd.Wait()
	b, _ := os.ReadFile(log.Name())
	return fmt.Errorf("%s", strings.TrimPrefix(strings.TrimSpace(string(b)), "guest: "))
}

func stop(_ context.Context, args []string) error {
	fl := flag.NewFlagSet("guest stop", flag.ExitOnError)
	dir := fl.String("dir", "", "directory of the guest")
	_ = fl.Parse(args)
	f, err := os.Open(filepath.Join(*dir, "guest.json"))
	if err != nil {
		return fmt.Errorf("no guest is running there: %w", err)
	}
	b, err := io.ReadAll(f)
	f.Close()
	if err != nil {
		return err
	}
	var i info
	if err := json.Unmarshal(b, &i); err != nil || i.PID <= 1 {
		return fmt.Errorf("%s: not a description of a guest", f.Name())
	}
	if err := syscall.Kill(i.PID, syscall.SIGTERM); err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("guest process %d: %w", i.PID, err)
	}
	for range 500 {
		if syscall.Kill(i.PID, 0) != nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("process %d did not end", i.PID)
}

func parseSize(s string) (int64, error) {
	shift := 0
	digits := s
	if n := len(s); n > 0 {
		if i := strings.IndexByte("KMGkmg", s[n-1]); i >= 0 {
			shift, digits = 10*(i%3+1), s[:n-1]
		}
	}
	n, err := strconv.ParseInt(digits, 10, 32)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("size %q: want a number with K, M or G", s)
	}
	return n << shift, nil
}
