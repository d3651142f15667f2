package testvm

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
)

// initramfsInit is the first program of every guest.
const initramfsInit = "guestfs/initramfs-init"

// initrd is a first root file system being made.
type initrd struct {
	cpioWriter
	image bytes.Buffer
	dirs  map[string]bool
}

// newInitrd begins one that loads modules, files below moddir, in the given order.
func newInitrd(busybox []byte, moddir string, order []string) (*initrd, error) {
	first, err := sources.ReadFile(initramfsInit)
	if err != nil {
		return nil, err
	}
	r := &initrd{dirs: map[string]bool{".": true}}
	r.w = &r.image
	for _, d := range []string{"dev", "proc", "root"} {
		r.mkdir(d)
	}
	r.file("init", modeExec, first)
	r.file("bin/busybox", modeExec, busybox)
	var list strings.Builder
	for _, f := range order {
		data, err := readModule(filepath.Join(moddir, f))
		if err != nil {
			return nil, err
		}
		name := moduleName(f) + ".ko"
		list.WriteString(name + "\n")
		r.file("modules/"+name, modeFile, data)
	}
	r.file("modules/order", modeFile, []byte(list.String()))
	return r, nil
}

func (r *initrd) mkdir(dir string) {
	if !r.dirs[dir] {
		r.mkdir(filepath.Dir(dir))
		r.dirs[dir] = true
		r.add(dir, modeDir, nil)
	}
}

func (r *initrd) file(name string, mode uint32, data []byte) {
	r.mkdir(filepath.Dir(name))
	r.add(name, mode, data)
}

// write ends the file system and stores it.
func (r *initrd) write(path string) error {
	if err := r.close(); err != nil {
		return err
	}
	return os.WriteFile(path, r.image.Bytes(), 0o644)
}

// moduleIndex reads what depmod knows of a module directory.
func moduleIndex(moddir string) (deps, builtin string, err error) {
	d, err := os.ReadFile(filepath.Join(moddir, "modules.dep"))
	if err != nil {
		return "", "", err
	}
	b, err := os.ReadFile(filepath.Join(moddir, "modules.builtin"))
	return string(d), string(b), err
}
