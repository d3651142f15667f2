package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/segment"
)

// maxHeap bounds how much of QEMU's own memory is searched for the e820 table.
const maxHeap = 1 << 30

// Process is a QEMU reached without its monitor: a [vmi.Image], [vmi.Viewer] and
// [vmi.Sparse]. It knows no registers and cannot pause the guest; writes happen
// beside running processors.
type Process struct {
	memory
	pid int
}

// WritableProcess is a Process that was opened for writing, a [vmi.Writer].
type WritableProcess struct{ *Process }

// PID returns QEMU's process.
func (p *Process) PID() int { return p.pid }

// ReadPhys implements [vmi.Memory]. On anonymous RAM the fault wraps ErrGone when
// QEMU has exited; a shared RAM file stays readable.
func (p *Process) ReadPhys(b []byte, addr vmi.Phys) (int, error) { return p.readPhys(b, addr) }

// WritePhys implements [vmi.Writer].
func (p *WritableProcess) WritePhys(b []byte, addr vmi.Phys) (int, error) {
	return p.writePhys(b, addr)
}

// Close releases the guest.
func (p *Process) Close() error { return p.close() }

// OpenPID opens the guest of the QEMU process whose number is arg, for PCs (q35,
// pc, microvm) and ARM's virt whose RAM is one block. The result is a *WritableProcess if o asks
// for it, else a *Process. Errors: fs.ErrNotExist for no such process,
// fs.ErrPermission, ErrLayout where RAM cannot be told with certainty.
func OpenPID(ctx context.Context, arg string, o *vmi.Options) (vmi.Image, error) {
	pid, err := strconv.Atoi(arg)
	if err != nil || pid <= 0 {
		return nil, fmt.Errorf("pid:%s: not the number of a process", arg)
	}
	p := &Process{pid: pid}
	if err := p.open(ctx, o); err != nil {
		p.close()
		return nil, fmt.Errorf("pid:%d: %w", pid, err)
	}
	o.Log().Debug("guest RAM in the host", "pid", pid, "sources", p.Backing(), "ranges", p.Ranges())
	if o != nil && o.Writable {
		return &WritableProcess{p}, nil
	}
	return p, nil
}

func (p *Process) open(ctx context.Context, o *vmi.Options) error {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
	if err != nil {
		return err
	}
	args := strings.Split(strings.TrimSuffix(string(raw), "\x00"), "\x00")
	if name := filepath.Base(args[0]); !strings.HasPrefix(name, "qemu-") && name != "kvm" {
		return fmt.Errorf("is no QEMU but %q", name)
	}
	m, err := parseCmdline(args)
	if err != nil {
		return fmt.Errorf("%w: %w; use its QMP socket", ErrLayout, err)
	}
	maps, err := readMaps(p.pid)
	if err != nil {
		return err
	}
	ram, err := findRAM(maps, m)
	if err != nil {
		return fmt.Errorf("%w: %w; use its QMP socket", ErrLayout, err)
	}
	blocks, err := p.findBlocks(ctx, maps, ram, m)
	if err != nil {
		return err
	}
	pl := placer{pid: p.pid, maps: maps, writable: o != nil && o.Writable}
	for _, b := range blocks {
		if err := pl.add(b.phys, ram+b.off, b.len); err != nil {
			p.sources = pl.sources
			return err
		}
	}
	p.sources = pl.sources
	p.t, err = segment.New(pl.segs)
	return err
}

// findRAM returns the address of the one mapping, or run of adjoining mappings of
// one kind, that is as large as RAM and of the kind the command line asks for.
func findRAM(maps []mapping, m *machine) (uint64, error) {
	var want object
	if m.backend != "" {
		var ok bool
		if want, ok = m.objects[m.backend]; !ok {
			return 0, fmt.Errorf("no -object for memory-backend %s", m.backend)
		}
		if want.size != m.ram {
			return 0, fmt.Errorf("-m and the size of %s differ", m.backend)
		}
	}
	var found []uint64
	for i := range maps {
		if !ramKind(&maps[i], want) {
			continue
		}
		// QEMU's madvise may have split RAM; a neighbour of the same kind may adjoin.
		j := i + 1
		for j < len(maps) && maps[j-1].end-maps[i].start < m.ram && joins(&maps[j-1], &maps[j]) {
			j++
		}
		if maps[j-1].end-maps[i].start == m.ram {
			found = append(found, maps[i].start)
		}
	}
	if len(found) != 1 {
		return 0, fmt.Errorf("%d mappings of %d MiB look like RAM, not one", len(found), m.ram>>20)
	}
	return found[0], nil
}

func joins(a, b *mapping) bool {
	return a.end == b.start && a.perms == b.perms && a.dev == b.dev && a.inode == b.inode &&
		(a.inode == 0 || a.off+a.size() == b.off)
}

// ramKind says whether a mapping may be the memory backend want.
func ramKind(m *mapping, want object) bool {
	if !m.writable() || m.off != 0 && !m.anonymous() {
		return false
	}
	name := strings.TrimSuffix(m.path, " (deleted)")
	switch want.typ {
	case "memory-backend-file":
		return m.shared() == want.share && !m.anonymous() &&
			(name == filepath.Clean(want.path) || strings.HasPrefix(name, filepath.Clean(want.path)+"/") || resolves(want.path, name))
	case "memory-backend-memfd":
		return strings.HasPrefix(name, "/memfd:")
	default: // anonymous, or shared memory without a name
		return name == "" || strings.HasPrefix(name, "/dev/zero") || strings.HasPrefix(name, "/memfd:") ||
			strings.HasPrefix(name, "[anon")
	}
}

// resolves says whether path, with its symbolic links followed, is name.
func resolves(path, name string) bool {
	real, err := filepath.EvalSymlinks(path)
	return err == nil && (real == name || strings.HasPrefix(name, real+"/"))
}

// virtRAM is where all RAM of ARM's machine "virt" is, of any version and however much
// it is. Source: QEMU hw/arm/virt.c:base_memmap.
const virtRAM = 1 << 30

// findBlocks returns where RAM is in the guest.
func (p *Process) findBlocks(ctx context.Context, maps []mapping, ram uint64, m *machine) ([]block, error) {
	if m.virt() {
		return []block{{phys: virtRAM, len: m.ram}}, nil
	}
	l, err := p.findLayout(ctx, maps, ram, m)
	if err != nil {
		return nil, err
	}
	return l.blocks(m.ram), nil
}

// findLayout finds the split of RAM around the PCI hole in QEMU's heap: in the
// main one, and if it is not there, in the rest of QEMU's anonymous memory.
func (p *Process) findLayout(ctx context.Context, maps []mapping, ram uint64, m *machine) (layout, error) {
	proc, err := openProcess(p.pid, false)
	if err != nil {
		return layout{}, err
	}
	defer proc.Close()
	found := make(map[layout]int)
	budget := uint64(maxHeap)
	for _, main := range []bool{true, false} {
		for _, hm := range maps {
			inRAM := hm.start < ram+m.ram && ram < hm.end
			if (hm.path == "[heap]") != main || !hm.anonymous() || hm.perms != "rw-p" || inRAM || hm.size() > budget {
				continue
			}
			budget -= hm.size()
			if err := searchE820(ctx, proc, hm.start, hm.end, m.ram, found); err != nil {
				return layout{}, err
			}
		}
		if len(found) > 0 {
			break
		}
	}
	return chooseLayout(found, m)
}

func searchE820(ctx context.Context, proc *process, start, end, ram uint64, found map[layout]int) error {
	buf := make([]byte, 1<<20)
	// Chunks overlap by two entries, so that none is cut.
	for at := start; at < end; at += uint64(len(buf)) - 2*e820Size {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buf[:min(uint64(len(buf)), end-at)]
		if err := proc.read(b, at); err != nil {
			if errors.Is(err, unix.EFAULT) { // unmapped since we read the maps
				return nil
			}
			return err
		}
		findE820(b, ram, found)
	}
	return nil
}

// chooseLayout decides what the entries found in the heap mean. Two entries that
// sum up to RAM cannot be chance. A single one says that all RAM is below 4 GiB,
// which the machine types allow up to a size.
func chooseLayout(found map[layout]int, m *machine) (layout, error) {
	var split []layout
	for l := range found {
		if l.above != 0 {
			split = append(split, l)
		}
	}
	switch {
	case len(split) == 1:
		return split[0], nil
	case len(split) > 1:
		return layout{}, fmt.Errorf("%w: two e820 tables in QEMU's heap; use its QMP socket", ErrLayout)
	case found[layout{below: m.ram}] > 0 && m.ram < 1<<32:
		return layout{below: m.ram}, nil
	}
	return layout{}, fmt.Errorf("%w: no e820 table for %d MiB in QEMU's heap (machine %q); use its QMP socket",
		ErrLayout, m.ram>>20, m.typ)
}
