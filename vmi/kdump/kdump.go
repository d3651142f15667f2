// Package kdump reads and writes kdump-compressed dumps, the files of makedumpfile
// and of QEMU's dump-guest-memory in its kdump-* formats.
//
// Such a file holds each page of memory compressed by itself, so that any page can be
// read without the others: two bitmaps say which page frames are RAM and which of them
// are in the file, a table has one descriptor for each of the latter. Pages may be
// compressed by zlib, LZO, snappy or zstd. All of this is read:
//
//   - header versions 1 to 6, blocks of 4 to 64 KiB, 64-bit little-endian machines;
//   - the flattened form, which QEMU writes and makedumpfile -F sends through pipes, as
//     it lies: the file is not rearranged;
//   - the parts of makedumpfile --split, the others named after the first:
//     "dump.1?part=dump.2&part=dump.3" (names without a slash are in the first's folder);
//   - filtered dumps: a page that makedumpfile -d left out is a *vmi.FaultError with
//     vmi.ErrExcluded, never zeros; so is a page that an incomplete dump has lost;
//   - registers and VMCOREINFO.
//
// The file is mapped. Of its bitmaps one byte for each MiB of guest memory is kept, and
// at most 16 MiB of decompressed pages. Nothing in a dump is trusted.
package kdump

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/elfnote"
)

// ErrCorrupt is wrapped by errors about a file that is a kdump and contradicts itself.
var ErrCorrupt = errors.New("corrupt kdump")

// ErrSplit is wrapped by Open's error when the file is one part of a split dump and
// the parts that were named do not make up the whole.
var ErrSplit = errors.New("part of a split dump")

func init() {
	vmi.Register(vmi.Source{
		Name: "kdump",
		Sniff: func(head []byte, _ int64) bool {
			for _, magic := range []string{signature, oldSignature, flatSignature} {
				if bytes.HasPrefix(head, []byte(magic)) {
					return true
				}
			}
			return false
		},
		Params: true,
		Open:   Open,
	})
}

// File is a kdump. It is a [vmi.Image], [vmi.CPUs] and [vmi.Notes]; its methods are
// safe for concurrent use.
type File struct {
	parts  []*part // by page frame
	shift  uint    // of a block, which is a page of the guest
	ranges []vmi.Range
	pages  *pageIndex
	cache  *pageCache
	codecs *codecs
	closed atomic.Bool

	machine     string
	notes, info []byte

	excluded, lost error // causes, made once
}

// Open opens "PATH" or "PATH?part=PATH&part=PATH…" and returns a *File. A dump cannot
// be written to: Options.Writable is an error. Errors: as os.Open; vmi.ErrFormat;
// vmi.ErrTruncated; ErrCorrupt; ErrSplit.
func Open(ctx context.Context, arg string, o *vmi.Options) (vmi.Image, error) {
	path, params, err := vmi.SplitPath(arg)
	if err != nil {
		return nil, err
	}
	if o != nil && o.Writable {
		return nil, fmt.Errorf("open %s: a dump cannot be written to", path)
	}
	names := []string{path}
	for key, values := range params {
		if key != "part" {
			return nil, fmt.Errorf("open %s: no parameter %q; there is part=PATH", path, key)
		}
		for _, name := range values {
			if !strings.ContainsRune(name, filepath.Separator) {
				name = filepath.Join(filepath.Dir(path), name)
			}
			names = append(names, name)
		}
	}
	var parts []*part
	for _, name := range names {
		p, err := openPart(ctx, name)
		if err != nil {
			closeAll(parts)
			return nil, err
		}
		parts = append(parts, p)
	}
	f, err := newFile(ctx, parts)
	if err != nil {
		closeAll(parts)
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return f, nil
}

func newFile(ctx context.Context, parts []*part) (*File, error) {
	h := &parts[0].header
	if err := arrange(parts); err != nil {
		return nil, err
	}
	f := &File{
		parts: parts, shift: h.shift, machine: h.machine, codecs: newCodecs(1 << h.shift), cache: newPageCache(1 << h.shift),
		excluded: vmi.ErrExcluded,
		lost:     fmt.Errorf("%w, which is incomplete", vmi.ErrExcluded),
	}
	if h.dumpLevel != 0 {
		f.excluded = fmt.Errorf("%w (dump level %d)", vmi.ErrExcluded, h.dumpLevel)
	}
	var err error
	if f.pages, f.ranges, err = indexPages(ctx, parts[0]); err != nil {
		return nil, err
	}
	if err := sameBitmaps(ctx, parts); err != nil {
		return nil, err
	}
	for _, p := range parts {
		if err := p.number(f.pages); err != nil {
			return nil, err
		}
	}
	if f.notes, err = parts[0].span(h.notes, maxNotes, "notes"); err != nil {
		return nil, err
	}
	if f.info, err = parts[0].span(h.vmcoreinfo, maxVMCoreInfo, "VMCOREINFO"); err != nil {
		return nil, err
	}
	if len(f.info) == 0 {
		f.info = elfnote.VMCoreInfo(f.notes)
	}
	return f, nil
}

// Ranges implements [vmi.Memory]: what the dump says was RAM, whether it holds the
// pages or not.
func (f *File) Ranges() []vmi.Range { return f.ranges }

// directRead is the length from which a read does not keep its pages: it is a scan or a
// copy of memory, and would push out what others look at.
const directRead = 8 * vmi.PageSize

// ReadPhys implements [vmi.Memory].
func (f *File) ReadPhys(p []byte, addr vmi.Phys) (n int, err error) {
	if f.closed.Load() {
		return 0, &vmi.FaultError{Addr: addr, Len: len(p), Err: fs.ErrClosed}
	}
	if len(p) >= 2*parallelRead {
		return f.readParallel(p, addr)
	}
	size := 1 << f.shift
	keep := len(p) < directRead
	for n < len(p) {
		pfn, in := uint64(addr)>>f.shift, int(uint64(addr)&uint64(size-1))
		to := p[n : n+min(len(p)-n, size-in)]
		if !f.cache.read(pfn, in, to) {
			if err := f.readPage(pfn, in, to, keep); err != nil {
				return n, &vmi.FaultError{Addr: addr, Len: len(p) - n, Err: f.cause(pfn, err)}
			}
		}
		n, addr = n+len(to), addr+vmi.Phys(len(to))
	}
	return n, nil
}

// parallelRead is the least that is worth a goroutine of its own: some hundred pages
// take as many dozens of microseconds.
const parallelRead = 256 << 10

// readParallel is ReadPhys with a part of p for each processor.
func (f *File) readParallel(p []byte, addr vmi.Phys) (n int, err error) {
	pieces := min(runtime.GOMAXPROCS(0), len(p)/parallelRead)
	size := (len(p)/pieces + vmi.PageSize) &^ (vmi.PageSize - 1)
	type result struct {
		n   int
		err error
	}
	results := make([]result, (len(p)+size-1)/size)
	var wg sync.WaitGroup
	for i := range results {
		piece := p[i*size : min((i+1)*size, len(p))]
		wg.Go(func() {
			r := &results[i]
			for r.n < len(piece) && r.err == nil {
				k := min(parallelRead, len(piece)-r.n)
				var n int
				n, r.err = f.ReadPhys(piece[r.n:r.n+k], addr+vmi.Phys(i*size+r.n))
				r.n += n
			}
		})
	}
	wg.Wait()
	for _, r := range results {
		n += r.n
		if r.err != nil {
			var fault *vmi.FaultError
			if errors.As(r.err, &fault) {
				fault.Len = len(p) - n
			}
			return n, r.err
		}
	}
	return n, nil
}

// readPage reads from a page that is not in the cache.
func (f *File) readPage(pfn uint64, in int, to []byte, keep bool) error {
	part, rank, err := f.locate(pfn)
	if err != nil {
		return err
	}
	if !keep && len(to) == 1<<f.shift {
		return part.page(rank, to, f.codecs)
	}
	buf := f.cache.buffer()
	if err := part.page(rank, *buf, f.codecs); err != nil {
		f.cache.release(buf)
		return err
	}
	copy(to, (*buf)[in:])
	f.cache.add(pfn, buf)
	return nil
}

// errNotHere says that the dump does not hold a page.
var errNotHere = errors.New("page not in the dump")

// cause turns the reason why a page cannot be read into that of a fault.
func (f *File) cause(pfn uint64, err error) error {
	switch {
	case errors.Is(err, errLost):
		return f.lost
	case !errors.Is(err, errNotHere):
		return err
	case containsPage(f.ranges, vmi.Phys(pfn<<f.shift)):
		return f.excluded
	default:
		return nil
	}
}

// locate returns the part that holds a page, and the number of its descriptor there.
func (f *File) locate(pfn uint64) (*part, uint64, error) {
	rank, ok, err := f.pages.find(pfn)
	if err != nil {
		return nil, 0, err
	}
	if !ok {
		return nil, 0, errNotHere
	}
	for _, p := range f.parts {
		if pfn < p.end {
			return p, rank - p.firstRank, nil
		}
	}
	return nil, 0, errNotHere
}

// CPUs implements [vmi.CPUs]. Dumps of QEMU, and those that makedumpfile made of them,
// have all registers but EFER; those of a kernel that crashed only the general ones.
// Without any the error is vmi.ErrNoCPUs.
func (f *File) CPUs(context.Context) ([]vmi.CPU, error) {
	if f.machine != "" && f.machine != machineX86 {
		return nil, fmt.Errorf("%w of x86-64 (%s)", vmi.ErrNoCPUs, f.machine)
	}
	cpus := elfnote.CPUs(f.notes)
	if len(cpus) == 0 {
		return nil, vmi.ErrNoCPUs
	}
	return cpus, nil
}

// Machine returns the guest's architecture as uname -m has it, or "" if the dump does
// not say.
func (f *File) Machine() string { return f.machine }

// VMCoreInfo implements [vmi.Notes].
func (f *File) VMCoreInfo() []byte { return f.info }

// Close unmaps the file.
func (f *File) Close() error {
	if f.closed.Swap(true) {
		return nil
	}
	return closeAll(f.parts)
}

func closeAll(parts []*part) (err error) {
	for _, p := range parts {
		err = errors.Join(err, p.in.m.Close())
	}
	return err
}

// openFile is os.Open for regular files: others block, or have no content to map.
func openFile(path string) (*os.File, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("open %s: not a regular file", path)
	}
	return os.Open(path)
}
