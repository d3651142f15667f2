package testvm

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// kernelTools are what building a kernel needs beside the tools of a suite.
var kernelTools = [][2]string{
	{"apt-get", "apt"},
	{"apt-cache", "apt"},
	{"dpkg-deb", "dpkg"},
	{"depmod", "kmod"},
	{"debugfs", "e2fsprogs"},
}

// BuildKernels makes the named kernels ready to boot, unless they are, after the root
// file systems that they boot. What it needs is what Build needs; packages come from
// the Debian mirror that apt on this machine uses, and apt checks their signatures.
// Releases are done one after the other: most of the time goes into downloads.
func BuildKernels(ctx context.Context, names []string, log io.Writer) error {
	var groups [][]Kernel // by what one list of packages serves
	for _, n := range names {
		k, err := findKernel(n)
		if err != nil {
			return err
		}
		if _, err := Build(ctx, k.Suite, log); err != nil {
			return err
		}
		if _, err := FindKernel(n); err == nil {
			continue
		}
		i := slices.IndexFunc(groups, func(g []Kernel) bool { return g[0].group() == k.group() })
		if i < 0 {
			i, groups = len(groups), append(groups, nil)
		}
		groups[i] = append(groups[i], k)
	}
	var errs []error
	for _, g := range groups {
		if err := buildGroup(ctx, g, log); err != nil {
			errs = append(errs, fmt.Errorf("build kernels of %s for %s: %w", g[0].Release, g[0].Arch, err))
		}
	}
	return errors.Join(errs...)
}

// buildGroup builds kernels of one release and architecture.
func buildGroup(ctx context.Context, ks []Kernel, log io.Writer) error {
	if err := checkTools(kernelTools); err != nil {
		return err
	}
	cache, err := CacheDir()
	if err != nil {
		return err
	}
	group := ks[0].group()
	unlock, err := lock(cache, "build-"+group)
	if err != nil {
		return err
	}
	defer unlock()
	if err := checkSpace(cache); err != nil {
		return err
	}
	sweep(cache, group)
	tmp, err := os.MkdirTemp(cache, tmpPrefix+group+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	b := &kernelBuilder{cache: cache, tmp: tmp, log: log, start: time.Now()}
	for _, k := range ks {
		if _, err := k.built(); err == nil {
			continue // somebody else built it while we waited
		}
		if err := b.base(ctx, k); err != nil {
			return fmt.Errorf("%s: %w", k.Name, err)
		}
		if err := b.image(ctx, k); err != nil {
			return fmt.Errorf("%s: %w", k.Name, err)
		}
		prune(cache, "kernel-"+k.label())
		prune(cache, "kernelbase-"+k.label())
	}
	return nil
}

type kernelBuilder struct {
	cache, tmp string
	log        io.Writer
	start      time.Time
	apt        *aptDir // of the release; nil until something has to be downloaded
}

func (b *kernelBuilder) say(k Kernel, format string, args ...any) {
	fmt.Fprintf(b.log, "%s: %s (%.0f s)\n", k.Name, fmt.Sprintf(format, args...), time.Since(b.start).Seconds())
}

// base downloads the packages of a kernel and keeps the kernel and some modules.
func (b *kernelBuilder) base(ctx context.Context, k Kernel) error {
	dst := k.baseDir(b.cache)
	if _, err := os.Stat(dst); err == nil {
		return nil
	}
	if b.apt == nil {
		b.say(k, "list of packages")
		apt, err := newAptDir(ctx, filepath.Join(b.tmp, "apt"), k.Release, k.Arch)
		if err != nil {
			return err
		}
		b.apt = apt
	}
	b.say(k, "download")
	debs, err := b.apt.download(ctx, k.Package)
	if err != nil {
		return err
	}
	b.say(k, "unpack")
	out := filepath.Join(b.tmp, "base-"+k.Name)
	for _, deb := range debs {
		if err := unpackKernel(ctx, deb, out); err != nil {
			return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
		}
		if err := os.Remove(deb); err != nil {
			return err
		}
	}
	moddir, err := moduleDir(out)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(out, "vmlinuz")); err != nil {
		return fmt.Errorf("no kernel in the packages that %s depends on", k.Package)
	}
	if err := runQuiet(exec.CommandContext(ctx, "depmod", "-b", out, filepath.Base(moddir))); err != nil {
		return err
	}
	return os.Rename(out, dst)
}

// moduleDir finds the one module directory below root.
func moduleDir(root string) (string, error) {
	dirs, _ := filepath.Glob(filepath.Join(root, "lib/modules/*"))
	if len(dirs) != 1 {
		return "", fmt.Errorf("want the modules of one kernel, found %d", len(dirs))
	}
	return dirs[0], nil
}

// unpackKernel unpacks what we keep of a package below dir.
func unpackKernel(ctx context.Context, deb, dir string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var errout strings.Builder
	cmd.Stderr = &errout
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := untarKernel(out, dir); err != nil {
		cancel()
		_ = cmd.Wait()
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%w: %s", err, gist(errout.String()))
	}
	return nil
}

func untarKernel(r io.Reader, dir string) error {
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			_, err = io.Copy(io.Discard, r) // the padding at the end
			return err
		}
		if err != nil {
			return err
		}
		to := kernelFile(h.Name)
		if to == "" || h.Typeflag != tar.TypeReg {
			continue
		}
		to = filepath.Join(dir, to)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		f, err := os.Create(to)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, tr)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
}

// kernelFile says where a file of a kernel's package is kept, "" for nowhere. Debian
// has had the kernel in /boot and modules in /lib, and has both in /usr/lib/modules.
func kernelFile(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	name = strings.TrimPrefix(name, "usr/")
	dir, file := path.Split(name)
	if dir == "boot/" {
		kind, _, _ := strings.Cut(file, "-")
		if kind == "vmlinuz" || kind == "config" {
			return kind
		}
		return ""
	}
	p := strings.SplitN(name, "/", 5) // lib modules RELEASE kernel ...
	switch {
	case len(p) < 4 || p[0] != "lib" || p[1] != "modules":
		return ""
	case len(p) == 4 && (file == "vmlinuz" || file == "config"):
		return file
	case len(p) == 4 && strings.HasPrefix(file, "modules."):
		return name
	case len(p) == 5 && p[3] == "kernel" && slices.ContainsFunc(keptModules, func(kept string) bool {
		if whole, siblings := strings.CutSuffix(kept, "/*"); siblings {
			return path.Dir(p[4]) == whole
		}
		return strings.HasPrefix(p[4], kept+"/")
	}):
		return name
	}
	return ""
}

// image makes what a guest boots from: the kernel and a first root file system that
// carries the modules, since the disk has only those of its suite's own kernel.
func (b *kernelBuilder) image(ctx context.Context, k Kernel) error {
	b.say(k, "initramfs")
	base := k.baseDir(b.cache)
	moddir, err := moduleDir(base)
	if err != nil {
		return err
	}
	deps, builtin, err := moduleIndex(moddir)
	if err != nil {
		return err
	}
	has := func(m string) bool { _, err := loadOrder(deps, builtin, []string{m}); return err == nil }
	must := slices.DeleteFunc(slices.Clone(bootModules), func(m string) bool { return strings.Contains(m, "crc32c") && !has(m) })
	order, err := loadOrder(deps, builtin, must)
	if err != nil {
		return err
	}
	img, err := FindImage(k.Suite)
	if err != nil {
		return err
	}
	busybox, err := exec.CommandContext(ctx, "debugfs", "-R", "cat /usr/bin/busybox", img.Disk).Output()
	if err != nil || len(busybox) == 0 {
		return fmt.Errorf("busybox of %s: %w", img.Disk, errors.Join(err, io.ErrUnexpectedEOF))
	}
	r, err := newInitrd(busybox, moddir, order)
	if err != nil {
		return err
	}
	files, err := loadOrder(deps, builtin, slices.DeleteFunc(slices.Concat(bootModules, guestModules), func(m string) bool { return !has(m) }))
	if err != nil {
		return err
	}
	tree := filepath.Join(b.tmp, "tree-"+k.Name)
	if err := b.moduleTree(ctx, r, tree, moddir, files); err != nil {
		return err
	}
	out := filepath.Join(b.tmp, "image-"+k.Name)
	if err := os.Mkdir(out, 0o755); err != nil {
		return err
	}
	for _, f := range []string{"vmlinuz", "config"} {
		if err := copyFile(filepath.Join(base, f), filepath.Join(out, f)); err != nil {
			return err
		}
	}
	if err := r.write(filepath.Join(out, "initrd.img")); err != nil {
		return err
	}
	dst, err := k.dir(b.cache)
	if err != nil {
		return err
	}
	if err := os.Rename(out, dst); err != nil {
		return err
	}
	b.say(k, "built %s, %d modules", dst, len(files))
	return nil
}

// moduleTree adds a directory of modules, files below moddir, that modprobe can use.
func (b *kernelBuilder) moduleTree(ctx context.Context, r *initrd, tree, moddir string, files []string) error {
	release := filepath.Base(moddir)
	to := filepath.Join(tree, "lib/modules", release)
	for _, f := range append([]string{"modules.order", "modules.builtin", "modules.builtin.modinfo"}, files...) {
		if err := os.MkdirAll(filepath.Join(to, filepath.Dir(f)), 0o755); err != nil {
			return err
		}
		if err := copyFile(filepath.Join(moddir, f), filepath.Join(to, f)); err != nil {
			return err
		}
	}
	if err := runQuiet(exec.CommandContext(ctx, "depmod", "-b", tree, release)); err != nil {
		return err
	}
	return filepath.WalkDir(tree, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(tree, p)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(p)
		r.file(name, modeFile, data)
		return err
	})
}
