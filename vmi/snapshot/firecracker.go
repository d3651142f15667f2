package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/ramfile"
)

// The upper 48 bits of the number that a state file of Firecracker begins with, or
// nearly so, in all its formats; the lowest 16 are a version. Source:
// src/vmm/src/snapshot/mod.rs:SNAPSHOT_MAGIC_ID.
var magics = map[string][]byte{
	"x86_64":  {0x64, 0x86, 0x84, 0x19, 0x10, 0x07},
	"aarch64": {0xaa, 0xaa, 0x84, 0x19, 0x10, 0x07},
}

const (
	magicWithin = 64 // bytes
	maxEntries  = 64 // of a directory that are looked at
	minMemory   = 1 << 20

	gap32End = 4 << 30
	// minGap32 is where RAM of an x86-64 machine ends at the earliest if it does not
	// all fit below the gap: 3 GiB since Firecracker 1.13, before that 3.25 GiB.
	minGap32 = 3 << 30
	// armStart is where RAM of an arm64 machine begins, which has no gap below
	// 256 GiB. Source: src/vmm/src/arch/aarch64/layout.rs:DRAM_MEM_START.
	armStart  = 2 << 30
	armGap    = 256 << 30
	pairReach = 64 // bytes between two regions in a state file, at most
)

// state is a Firecracker state file.
type state struct {
	arch string
	data []byte
}

// archOf returns the architecture that a state file is of, by its first bytes, or "".
func archOf(head []byte) string {
	for arch, magic := range magics {
		if bytes.Contains(head[:min(len(head), magicWithin)], magic) {
			return arch
		}
	}
	return ""
}

func readState(path string) (*state, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	arch := archOf(b)
	if arch == "" {
		return nil, fmt.Errorf("%s: %w: no state of Firecracker", path, vmi.ErrFormat)
	}
	return &state{arch, b}, nil
}

// findFirecracker returns the memory file and the state file in a directory. The
// error says what is missing or what there are several of.
func findFirecracker(dir string) (memory, vmstate string, err error) {
	d, err := os.Open(dir)
	if err != nil {
		return "", "", err
	}
	defer d.Close()
	entries, err := d.ReadDir(maxEntries + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", "", err
	}
	if len(entries) > maxEntries {
		return "", "", errors.New("is a directory, of more than a snapshot")
	}
	var memories, states []string
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		st, err := os.Stat(path)
		if err != nil || !st.Mode().IsRegular() {
			continue
		}
		head := readHead(path)
		switch {
		case archOf(head) != "":
			states = append(states, path)
		case st.Size() >= minMemory && st.Size()%minMemory == 0 && plain(head):
			memories = append(memories, path)
		}
	}
	switch {
	case len(states) == 0:
		return "", "", errors.New("is a directory, and no snapshot is in it")
	case len(states) > 1:
		return "", "", fmt.Errorf("several snapshots are in it: name the memory file (%s is a state file)", states[0])
	}
	if len(memories) > 1 { // or other files of whole MiB: disks, say
		memories = accounted(memories)
	}
	switch len(memories) {
	case 0:
		return "", "", errors.New("no memory file is beside the snapshot's state file")
	case 1:
		return memories[0], states[0], nil
	}
	return "", "", errors.New("it is not clear which is the memory file: name it")
}

// accounted returns those files for which there is a layout.
func accounted(paths []string) (out []string) {
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		if st, err := f.Stat(); err == nil {
			if _, ok := ramfile.BootLayout(f, uint64(st.Size())); ok {
				out = append(out, path)
			}
		}
		f.Close()
	}
	return out
}

func readHead(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	b := make([]byte, magicWithin)
	n, _ := io.ReadFull(f, b)
	return b[:n]
}

// plain says whether a file may be RAM: no kernel, no compressed or disk image.
func plain(head []byte) bool {
	for _, magic := range []string{"\x7fELF", "QFI\xfb", "\x1f\x8b", "\x28\xb5\x2f\xfd", "EMiL", "AVML"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return false
		}
	}
	return true
}

// layout returns where the size bytes of memory are, or nil if the file does not
// tell. Up to format 8 (Firecracker 1.14) a region is its address and its size, 8
// bytes each, and regions follow each other closely.
func (s *state) layout(size uint64) []ramfile.Block {
	switch {
	case s.arch == "aarch64":
		if size > armGap-armStart {
			return nil
		}
		return []ramfile.Block{{Phys: armStart, Len: size}}
	case size <= minGap32:
		return []ramfile.Block{{Len: size}} // whatever the version
	}
	var below uint64
	pattern := binary.LittleEndian.AppendUint64(nil, gap32End)
	for at := 0; ; at += len(pattern) {
		i := bytes.Index(s.data[at:], pattern)
		if i < 0 {
			break
		}
		at += i
		if at+16 > len(s.data) {
			break
		}
		high := binary.LittleEndian.Uint64(s.data[at+8:])
		if high == 0 || high >= size || (size-high)%minMemory != 0 || size-high > gap32End {
			continue
		}
		low := binary.LittleEndian.AppendUint64(make([]byte, 8), size-high)
		if !bytes.Contains(s.data[max(0, at-pairReach):at], low) {
			continue
		}
		if below != 0 && below != size-high {
			return nil // two that fit
		}
		below = size - high
	}
	if below == 0 {
		return nil
	}
	return ramfile.Below4G(size, below)
}
