package testvm

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// diskSize is that of the guest's root file system; the file is sparse.
const diskSize = "4G"

// tools are the programs that a build runs, with the Debian packages they are in.
var tools = [][2]string{
	{"debootstrap", "debootstrap"},
	{"mke2fs", "e2fsprogs"},
	{"gcc", "gcc"},
	{"tar", "tar"},
	{"xz", "xz-utils"},
	{"unshare", "util-linux"},
	{"go", "golang"},
}

// Build makes the image of a suite unless it is there. It needs root, the tools
// above and, for a release not yet in the cache, a Debian mirror. Progress is
// written to log, a line a step. Several processes may build at once.
func Build(ctx context.Context, suite string, log io.Writer) (*Image, error) {
	s, err := findSuite(suite)
	if err != nil {
		return nil, err
	}
	if img, err := FindImage(suite); err == nil {
		return img, nil
	}
	if err := checkTools(tools); err != nil {
		return nil, err
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	unlock, err := lock(cache, "build-"+suite)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if img, err := FindImage(suite); err == nil {
		return img, nil // somebody else built it while we waited
	}
	if err := checkSpace(cache); err != nil {
		return nil, err
	}
	sweep(cache, suite)
	b := &builder{Suite: s, cache: cache, log: log, start: time.Now()}
	if err := b.base(ctx); err != nil {
		return nil, fmt.Errorf("build guest %s: %w", suite, err)
	}
	if err := b.image(ctx); err != nil {
		return nil, fmt.Errorf("build guest %s: %w", suite, err)
	}
	prune(cache, "image-"+suite+"-")
	prune(cache, "base-"+suite+"-")
	return FindImage(suite)
}

func checkTools(tools [][2]string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("building a guest needs root (debootstrap makes devices and changes root)")
	}
	var missing []string
	for _, t := range tools {
		if _, err := exec.LookPath(t[0]); err != nil {
			missing = append(missing, t[1])
		}
	}
	if missing != nil {
		return fmt.Errorf("building a guest needs these packages: %s; run 'make deps'", strings.Join(missing, " "))
	}
	return nil
}

// checkSpace wants room for both guests, or the kernels, and what is unpacked on the way.
func checkSpace(dir string) error {
	const need = 4 << 30
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return fmt.Errorf("building a guest needs %d GiB in %s, which has %.1f; make room or set OVM_CACHE",
			need>>30, dir, float64(free)/(1<<30))
	}
	return nil
}

type builder struct {
	Suite
	cache string
	log   io.Writer
	start time.Time
}

func (b *builder) say(format string, args ...any) {
	fmt.Fprintf(b.log, "%s: %s (%.0f s)\n", b.Name, fmt.Sprintf(format, args...), time.Since(b.start).Seconds())
}

// base runs debootstrap, in namespaces so that neither its mounts nor its processes
// outlive it, and keeps the result as a tar file.
func (b *builder) base(ctx context.Context) error {
	dst := b.baseTar(b.cache)
	if _, err := os.Stat(dst); err == nil {
		return nil
	}
	tmp, err := os.MkdirTemp(b.cache, tmpPrefix+b.Name+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	b.say("debootstrap")
	root := filepath.Join(tmp, "root")
	if b.Arch != "" {
		if err := b.foreignBase(ctx, tmp, root); err != nil {
			return err
		}
		return os.Rename(filepath.Join(tmp, "base.tar"), dst)
	}
	script := `set -e
debootstrap --variant=minbase --include="$3" "$1" "$2"
umount "$2/sys" "$2/proc" 2>/dev/null || true
cd "$2"
rm -rf boot/initrd* var/cache/apt/*.bin var/cache/apt/archives/*.deb var/lib/apt/lists/* \
	usr/share/doc usr/share/man usr/share/locale usr/share/info var/log/bootstrap.log debootstrap
tar --one-file-system -cf ../base.tar .`
	err = b.run(ctx, "unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh",
		b.Name, root, strings.Join(b.Packages, ","))
	if err != nil {
		return fmt.Errorf("debootstrap by %w", err)
	}
	return os.Rename(filepath.Join(tmp, "base.tar"), dst)
}

func (b *builder) image(ctx context.Context) error {
	tmp, err := os.MkdirTemp(b.cache, tmpPrefix+b.Name+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	b.say("unpack")
	root, out, src := filepath.Join(tmp, "root"), filepath.Join(tmp, "out"), filepath.Join(tmp, "src")
	for _, d := range []string{root, out, src} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := b.run(ctx, "tar", "-C", root, "-xf", b.baseTar(b.cache)); err != nil {
		return err
	}
	b.say("programs")
	if err := b.install(ctx, root, src); err != nil {
		return err
	}
	if err := b.boot(root, out); err != nil {
		return err
	}
	b.say("disk")
	disk := filepath.Join(out, "root.ext4")
	// No lazy initialisation: a kernel thread would write to the disk of every guest.
	if err := b.run(ctx, "mke2fs", "-q", "-t", "ext4", "-L", "ovm-"+b.Name, "-m", "0", "-d", root,
		"-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0", "-J", "size=16", disk, diskSize); err != nil {
		return err
	}
	if err := os.Chmod(disk, 0o444); err != nil {
		return err
	}
	if err := os.Rename(out, b.imageDir(b.cache)); err != nil {
		return err
	}
	b.say("built %s", b.imageDir(b.cache))
	return nil
}

// install puts our own files into the guest's root.
func (b *builder) install(ctx context.Context, root, src string) error {
	if err := unpackSources(src); err != nil {
		return err
	}
	opt := filepath.Join(root, "opt/ovm")
	if err := os.MkdirAll(opt, 0o755); err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w",
		"-o", filepath.Join(opt, "agent"), "./internal/testvm/agent")
	build.Dir = src
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+b.arch(), "GOFLAGS=-mod=mod", "GOWORK=off")
	if err := runQuiet(build); err != nil {
		return err
	}
	programs, err := filepath.Glob(filepath.Join(src, "internal/testvm/programs/*.c"))
	if err != nil {
		return err
	}
	if b.Arch != "" {
		programs = nil // no compiler for it
		for _, d := range foreignDirs {
			if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
				return err
			}
		}
	}
	for _, c := range programs {
		exe := filepath.Join(opt, strings.TrimSuffix(filepath.Base(c), ".c"))
		if err := b.run(ctx, "gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", exe, c); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		from, to string
		mode     fs.FileMode
	}{
		{"inittab", "etc/inittab", 0o644},
		{"rcS", "opt/ovm/rcS", 0o755},
		{"run-agent", "opt/ovm/run-agent", 0o755},
		{"busy.sh", "opt/ovm/busy.sh", 0o755},
	} {
		data, err := sources.ReadFile("guestfs/" + f.from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(root, f.to), data, f.mode); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/hostname"), []byte(b.Name+"\n"), 0o644); err != nil {
		return err
	}
	init := filepath.Join(root, "usr/sbin/init")
	_ = os.Remove(init)
	return os.Symlink("/usr/bin/busybox", init)
}

// unpackSources writes the embedded files as a module of their own, so that the
// agent is built from exactly what the image key was computed from.
func unpackSources(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module github.com/ovmigrate/ovmigrate\n\ngo 1.26\n"), 0o644); err != nil {
		return err
	}
	return fs.WalkDir(sources, ".", func(name string, d fs.DirEntry, err error) error {
		dst := filepath.Join(dir, "internal/testvm", name)
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return os.MkdirAll(dst, 0o755)
		case !inImage(name):
			return nil
		}
		data, err := sources.ReadFile(name)
		if err != nil {
			return err
		}
		return os.WriteFile(dst, data, 0o644)
	})
}

// boot copies the kernel and writes the first root file system.
func (b *builder) boot(root, out string) error {
	kernels, _ := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if len(kernels) != 1 {
		return fmt.Errorf("want one kernel in /boot, found %d", len(kernels))
	}
	release := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	if err := copyFile(kernels[0], filepath.Join(out, "vmlinuz")); err != nil {
		return err
	}
	moddir := filepath.Join(root, "lib/modules", release)
	deps, builtin, err := moduleIndex(moddir)
	if err != nil {
		return err
	}
	order, err := loadOrder(deps, builtin, b.Modules)
	if err != nil {
		return err
	}
	busybox, err := os.ReadFile(filepath.Join(root, "usr/bin/busybox"))
	if err != nil {
		return err
	}
	r, err := newInitrd(busybox, moddir, order)
	if err != nil {
		return err
	}
	return r.write(filepath.Join(out, "initrd.img"))
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}

func (b *builder) run(ctx context.Context, name string, args ...string) error {
	return runQuiet(exec.CommandContext(ctx, name, args...))
}

// runQuiet runs cmd; the end of its output goes into the error, nowhere else.
func runQuiet(cmd *exec.Cmd) error {
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // whose death it is
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, gist(string(out)))
	}
	return nil
}

// gist is the one line of a program's output that most likely says what failed.
func gist(out string) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for _, l := range lines {
		if strings.HasPrefix(l, "E: ") { // apt and debootstrap
			return l
		}
	}
	return lines[len(lines)-1]
}
