package testvm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"
)

// ErrNoImage is wrapped by errors about a guest whose image has not been built.
var ErrNoImage = errors.New("guest image is not built; run 'make guests'")

// Image is a built guest.
type Image struct {
	Suite  string
	Kernel string // file: bzImage
	Initrd string // file: compressed or plain cpio
	Disk   string // file: raw ext4 without a partition table; never written to
}

// CacheDir is where images are kept: $OVM_CACHE, or the directory ovmigrate in the
// user's cache directory.
func CacheDir() (string, error) {
	if d := os.Getenv("OVM_CACHE"); d != "" {
		return filepath.Abs(d)
	}
	d, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("cache directory: %w; set OVM_CACHE", err)
	}
	return filepath.Join(d, "ovmigrate"), nil
}

// FindImage returns the image of a suite that fits this program, or an error that
// wraps ErrNoImage.
func FindImage(suite string) (*Image, error) {
	s, err := findSuite(suite)
	if err != nil {
		return nil, err
	}
	dir, err := CacheDir()
	if err != nil {
		return nil, err
	}
	d := s.imageDir(dir)
	if _, err := os.Stat(d); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: %w", suite, ErrNoImage)
		}
		return nil, err
	}
	return &Image{
		Suite: suite, Kernel: filepath.Join(d, "vmlinuz"),
		Initrd: filepath.Join(d, "initrd.img"), Disk: filepath.Join(d, "root.ext4"),
	}, nil
}

func (s Suite) imageDir(cache string) string {
	return filepath.Join(cache, "image-"+s.Name+"-"+s.imageKey())
}

func (s Suite) baseTar(cache string) string {
	return filepath.Join(cache, "base-"+s.Name+"-"+s.baseKey()+".tar")
}

// lock takes the exclusive lock of name in the cache, waiting for another builder.
func lock(cache, name string) (unlock func(), err error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(cache, name+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

// prune removes entries that start with prefix and are older than a day, all but the
// newest few: other checkouts, with other recipes, use the same cache.
func prune(cache, prefix string) {
	const keep = 2
	dayAgo := time.Now().Add(-24 * time.Hour).UnixNano()
	entries, _ := os.ReadDir(cache)
	type old struct {
		path string
		at   int64
	}
	var all []old
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && strings.HasPrefix(e.Name(), prefix) {
			all = append(all, old{filepath.Join(cache, e.Name()), info.ModTime().UnixNano()})
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].at > all[j].at })
	for i := keep; i < len(all); i++ {
		if all[i].at < dayAgo {
			_ = os.RemoveAll(all[i].path)
		}
	}
}

const tmpPrefix = "tmp-"

// sweep removes what a killed build has left; its lock must be held.
func sweep(cache, build string) {
	left, _ := filepath.Glob(filepath.Join(cache, tmpPrefix+build+"-*"))
	for _, d := range left {
		_ = os.RemoveAll(d)
	}
}

// Clean removes all images and kernels, and what they were made from.
func Clean() error {
	cache, err := CacheDir()
	if err != nil {
		return err
	}
	for _, s := range suites {
		if err := clean(cache, s.Name, "image-"+s.Name+"-*", "base-"+s.Name+"-*"); err != nil {
			return err
		}
	}
	for _, k := range kernels {
		if err := clean(cache, k.group(), "kernel-"+k.label()+"*", "kernelbase-"+k.label()+"*"); err != nil {
			return err
		}
	}
	return nil
}

// clean removes what a build, named as in its lock, has left, and files by pattern.
func clean(cache, build string, patterns ...string) error {
	unlock, err := lock(cache, "build-"+build)
	if err != nil {
		return err
	}
	defer unlock()
	sweep(cache, build)
	for _, p := range patterns {
		old, _ := filepath.Glob(filepath.Join(cache, p))
		for _, f := range old {
			if err := os.RemoveAll(f); err != nil {
				return err
			}
		}
	}
	return nil
}
