package kdump

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/elfnote"
)

// layout says where the sections of a new file are.
type layout struct {
	end          uint64 // page frames are below
	pages        uint64 // page frames that are memory
	sub, bitmaps uint64 // blocks
	ram, dumped  uint64 // offsets of the bitmaps
	descs, data  uint64 // offsets; there is room for the descriptors of all pages

	status     uint32 // how pages are compressed
	uts        uts
	cpus       int
	notes      []byte
	vmcoreinfo vmcoreinfo
}

func newLayout(mem vmi.Memory, pages []pageRange, o *WriteOptions) (*layout, error) {
	flags, ok := map[Compression]uint32{Zlib: flagZlib, Zstd: flagZstd, None: 0}[o.Compression]
	if !ok {
		return nil, fmt.Errorf("no compression has the number %d", o.Compression)
	}
	l := &layout{
		status: flags, vmcoreinfo: o.VMCoreInfo, cpus: max(1, len(o.CPUs)),
		notes: elfnote.AppendDump(nil, o.CPUs, o.VMCoreInfo),
		end:   pages[len(pages)-1].end,
	}
	machine := cmp.Or(o.Machine, machineX86)
	switch {
	case machine != machineX86 && len(o.CPUs) > 0:
		return nil, fmt.Errorf("registers are of x86-64, the machine is %s", machine)
	case len(machine) >= utsLen:
		return nil, errors.New("the name of the machine is too long")
	case len(l.notes) > maxNotes || len(l.vmcoreinfo) > maxVMCoreInfo:
		return nil, errors.New("too many notes")
	}
	l.uts = readUTS(mem, l.vmcoreinfo, machine)
	for _, r := range pages {
		l.pages += r.end - r.start
	}
	const block = vmi.PageSize
	blocks := func(n uint64) uint64 { return (n + block - 1) / block }
	l.sub = blocks(subHeaderSize + uint64(len(l.notes)))
	l.bitmaps = 2 * blocks((l.end+7)/8)
	l.ram = (1 + l.sub) * block
	l.dumped = l.ram + l.bitmaps/2*block
	l.descs = l.ram + l.bitmaps*block
	l.data = l.descs + l.pages*descSize
	return l, nil
}

// headers returns the main header and the sub-header with the notes.
func (l *layout) headers(written uint64) []byte {
	const block = vmi.PageSize
	le := binary.LittleEndian
	b := make([]byte, block+subHeaderSize, block+subHeaderSize+len(l.notes))
	copy(b, signature)
	le.PutUint32(b[atVersion:], maxVersion)
	copy(b[atUTS:], l.uts[:])
	now := time.Now()
	le.PutUint64(b[atTimestamp:], uint64(now.Unix()))
	le.PutUint64(b[atTimestamp+8:], uint64(now.Nanosecond()/1000))
	put32 := func(off int, v uint64) { le.PutUint32(b[off:], uint32(min(v, math.MaxUint32))) }
	le.PutUint32(b[atStatus:], l.status)
	put32(atBlockSize, block)
	put32(atSubBlocks, l.sub)
	put32(atBitmapBlocks, l.bitmaps)
	put32(atMaxMapnr, l.end)
	put32(atTotalRAM, l.pages)
	put32(atWritten, written)
	put32(atNrCPUs, uint64(l.cpus))

	s := b[block:]
	le.PutUint64(s[atPhysBase:], l.vmcoreinfo.physBase())
	le.PutUint64(s[atMaxMapnr64:], l.end)
	if len(l.notes) > 0 {
		const notes = block + subHeaderSize
		le.PutUint64(s[atNotes:], notes)
		le.PutUint64(s[atNotes+8:], uint64(len(l.notes)))
		if n := len(l.vmcoreinfo); n > 0 { // the description of the last note
			le.PutUint64(s[atVMCoreInfo:], uint64(notes+len(l.notes)-(n+3)&^3))
			le.PutUint64(s[atVMCoreInfo+8:], uint64(n))
		}
	}
	return append(b, l.notes...)
}

// bitmapWriter sets bits of a bitmap in a file, in ascending order.
type bitmapWriter struct {
	f     *os.File
	off   uint64
	block uint64
	bits  [vmi.PageSize]byte
}

// set sets n bits from bit at on.
func (w *bitmapWriter) set(at, n uint64) error {
	const perBlock = vmi.PageSize * 8
	for ; n > 0; at, n = at+1, n-1 {
		if at/perBlock != w.block {
			if err := w.flush(); err != nil {
				return err
			}
			w.block = at / perBlock
			clear(w.bits[:])
		}
		for at%8 == 0 && n >= 8 && at%perBlock <= perBlock-16 {
			w.bits[at%perBlock/8] = 0xff
			at, n = at+8, n-8
		}
		if n == 0 {
			return nil
		}
		w.bits[at%perBlock/8] |= 1 << (at % 8)
	}
	return nil
}

func (w *bitmapWriter) flush() error {
	_, err := w.f.WriteAt(w.bits[:], int64(w.off+w.block*vmi.PageSize))
	return err
}
