// Command inside measures CRIU where it runs: in a guest, or natively in a root
// directory of its own. It starts a program, saves it several times and ends it.
// Times are taken here, so that they hold neither the way to the guest nor a shell.
//
//	inside [-root DIR] [-n RUNS] [-dir DIR] -- PROGRAM [ARG...]
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// report is what is printed, as JSON.
type report struct {
	Version string          // of CRIU
	Times   []time.Duration // of each save, the warm-up left out
	Bytes   int64           // of the last image set
}

func main() {
	root := flag.String("root", "", "a Debian root directory to enter; needs namespaces of our own")
	runs := flag.Int("n", 3, "counted runs, after one that is not")
	dir := flag.String("dir", "/tmp", "where the images go")
	flag.Parse()
	r, err := run(*root, *dir, *runs, flag.Args())
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(r)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "inside:", err)
		os.Exit(1)
	}
}

func run(root, dir string, runs int, argv []string) (*report, error) {
	if len(argv) == 0 {
		return nil, errors.New("no program given")
	}
	// What we have inherited is nothing that CRIU could find in the program's world.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("close_range: %w", err)
	}
	if root != "" {
		if err := enter(root); err != nil {
			return nil, fmt.Errorf("enter %s: %w", root, err)
		}
	}
	version, err := exec.Command("criu", "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("criu: %w", err)
	}
	line, _, _ := bytes.Cut(version, []byte("\n"))
	r := &report{Version: string(bytes.TrimPrefix(line, []byte("Version: ")))}
	p, err := start(dir, argv)
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = p.Process.Kill()
		_ = p.Wait()
	}()
	for i := -1; i < runs; i++ {
		took, err := r.dump(p.Process.Pid, filepath.Join(dir, "inside-images"))
		if err != nil {
			return nil, err
		}
		if i >= 0 {
			r.Times = append(r.Times, took)
		}
	}
	return r, nil
}

func start(dir string, argv []string) (*exec.Cmd, error) {
	out, err := os.Create(filepath.Join(dir, "inside-output"))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p := exec.Command(argv[0], argv[1:]...)
	p.Stdout, p.Stderr = out, out
	p.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.Start(); err != nil {
		return nil, err
	}
	for range 60_000 {
		if st, err := os.Stat(out.Name()); err == nil && st.Size() > 0 {
			return p, nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	_ = p.Process.Kill()
	return nil, fmt.Errorf("%s did not get ready", argv[0])
}

// dump saves once, into a directory that is new and removed again.
func (r *report) dump(pid int, dir string) (time.Duration, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	c := exec.Command("criu", "dump", "-t", strconv.Itoa(pid), "-D", dir, "--leave-running", "-o", "dump.log")
	begin := time.Now()
	out, err := c.CombinedOutput()
	took := time.Since(begin)
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "dump.log"))
		var why []string
		for line := range bytes.Lines(append(out, log...)) {
			if bytes.Contains(line, []byte("Error")) {
				why = append(why, string(bytes.TrimSpace(line)))
			}
		}
		return 0, fmt.Errorf("criu dump: %w: %s", err, strings.Join(why, "; "))
	}
	r.Bytes = 0
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			r.Bytes += info.Size()
		}
		return err
	})
	return took, err
}

// enter makes root the root of this process's mount namespace: CRIU knows files by
// mounts, and does not know a root that is none. In it, /tmp is memory; the rest is
// the file system that root is on.
func enter(root string) error {
	for _, m := range []struct {
		from, to, kind string
		flags          uintptr
	}{
		{"", "/", "", syscall.MS_REC | syscall.MS_PRIVATE},
		{root, root, "", syscall.MS_BIND},
		{"proc", filepath.Join(root, "proc"), "proc", 0},
		{"sysfs", filepath.Join(root, "sys"), "sysfs", 0},
		{"/dev", filepath.Join(root, "dev"), "", syscall.MS_BIND | syscall.MS_REC},
		{"tmpfs", filepath.Join(root, "tmp"), "tmpfs", 0},
		{"tmpfs", filepath.Join(root, "run"), "tmpfs", 0},
	} {
		if err := syscall.Mount(m.from, m.to, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.to, err)
		}
	}
	old := filepath.Join(root, "mnt")
	if err := syscall.PivotRoot(root, old); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := syscall.Unmount("/mnt", syscall.MNT_DETACH); err != nil {
		return err
	}
	return os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
}
