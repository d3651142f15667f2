// Package snapshot opens the memory in snapshots of Firecracker and Cloud Hypervisor:
// a directory, or the memory file in it. The memory file is raw RAM, one region after
// the other; what lies beside it says where in the machine each of them is.
//
// Cloud Hypervisor (since version 39) writes "memory-ranges" and "state.json", which
// lists the ranges.
//
// Firecracker writes a memory file and a state file, under names that its user
// chooses. The state file has no stable format: up to version 1.14 the regions can be
// found in it, since then they cannot. But Firecracker also leaves the memory map that
// it boots the guest with in the guest's memory, and so does Cloud Hypervisor; see
// [ramfile.BootLayout]. Where both are there they must agree, and each must account
// for every byte of the memory file. Where neither is, the caller has to give a
// layout, as for raw RAM: "DIR/mem?below4g=3G" (Firecracker before 1.13: 3328M).
//
// Memory that a snapshot leaves out (a difference snapshot of Firecracker, files
// shared with the guest that Cloud Hypervisor does not copy) is not there. A
// difference snapshot alone is not the guest's memory and cannot be told from a full
// one: merge it first (snapshot-editor edit-memory rebase).
package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/ramfile"
)

// ErrLayout is wrapped by Open's error when nothing in the snapshot says where in the
// machine its memory is, or when two things contradict each other.
var ErrLayout = errors.New("snapshot does not say where in the machine its memory is")

func init() {
	vmi.Register(vmi.Source{
		Name:      "VMM snapshot",
		SniffPath: sniff,
		Params:    true,
		Open:      Open,
	})
}

const (
	chMemory = "memory-ranges" // Cloud Hypervisor's names
	chState  = "state.json"
)

// sniff says whether path is a snapshot: a directory with one, or Cloud Hypervisor's
// memory file in it. A memory file of Firecracker has no name of its own, and is
// opened as raw RAM, which tells its layout.
func sniff(path string, dir bool) bool {
	if !dir {
		return filepath.Base(path) == chMemory && isFile(filepath.Join(filepath.Dir(path), chState))
	}
	if isFile(filepath.Join(path, chMemory)) && isFile(filepath.Join(path, chState)) {
		return true
	}
	_, _, err := findFirecracker(path)
	return err == nil
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

// Open opens the snapshot at path, a directory or a memory file. With parameters, as
// package ramfile has them, it believes those alone. The result is what ramfile.Open
// returns. Errors: as os.Open; ErrLayout; vmi.ErrTruncated for a memory file that is
// shorter than the snapshot says.
func Open(ctx context.Context, arg string, o *vmi.Options) (vmi.Image, error) {
	path, params, err := vmi.SplitPath(arg)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	memory, state := path, ""
	switch {
	case !st.IsDir():
		state = filepath.Join(filepath.Dir(path), chState)
	case isFile(filepath.Join(path, chMemory)):
		memory, state = filepath.Join(path, chMemory), filepath.Join(path, chState)
	default:
		if memory, state, err = findFirecracker(path); err != nil {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
	}
	if len(params) > 0 {
		return ramfile.Open(ctx, memory+arg[len(path):], o)
	}
	return open(memory, state, o)
}

// open opens a memory file by what its state file says.
func open(memory, state string, o *vmi.Options) (vmi.Image, error) {
	flags := os.O_RDONLY
	if o != nil && o.Writable {
		flags = os.O_RDWR
	}
	f, err := os.OpenFile(memory, flags, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	var layout []ramfile.Block
	if filepath.Base(state) == chState {
		layout, err = cloudHypervisor(state)
	} else {
		layout, err = firecracker(f, uint64(st.Size()), state)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open %s: %w; add ?below4g=SIZE or ?layout=PHYS:OFFSET:LENGTH,…", memory, err)
	}
	o.Log().Debug("snapshot", "memory", memory, "state", state, "layout", fmt.Sprintf("%#x", layout))
	return ramfile.New(f, layout, o)
}

// firecracker returns the layout of a memory file of size bytes.
func firecracker(f *os.File, size uint64, state string) ([]ramfile.Block, error) {
	s, err := readState(state)
	if err != nil {
		return nil, err
	}
	told := s.layout(size)
	found, ok := ramfile.BootLayout(f, size)
	switch {
	case told == nil && !ok:
		return nil, ErrLayout
	case told == nil:
		return found, nil
	case ok && !slices.Equal(told, found):
		return nil, fmt.Errorf("%w: by its state file %#x, by the memory map in it %#x", ErrLayout, told, found)
	}
	return told, nil
}
