package qemu

import (
	"errors"
	"fmt"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/hostmap"
	"github.com/ovmigrate/ovmigrate/vmi/internal/segment"
)

var errNotMapped = errors.New("not mapped in the process")

// placer turns addresses of a QEMU process into sources: one for each shared file
// that can be opened, one for all the rest.
type placer struct {
	pid      int
	maps     []mapping
	writable bool

	sources []source
	segs    []segment.Segment
	files   map[[2]uint64]int // device and inode: source, -1 if it cannot be opened
	process *process
	procSrc int
}

// add places n bytes of guest memory at phys that the process has at hva.
func (p *placer) add(phys, hva, n uint64) error {
	parts, err := cover(p.maps, hva, hva+n)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotMapped, err)
	}
	for _, m := range parts {
		src, off := -1, m.off
		if m.shared() && !m.anonymous() {
			src = p.file(&m)
		}
		if src < 0 {
			if src, err = p.proc(); err != nil {
				return err
			}
			off = m.start
			if !m.anonymous() && !m.shared() {
				p.process.private = append(p.process.private, m)
			}
		}
		p.segs = append(p.segs, segment.Segment{Addr: vmi.Phys(phys + m.start - hva), Len: m.size(), Src: src, Off: off})
	}
	return nil
}

// file returns the source for the file behind m, or -1 if RAM has to be reached
// through the process.
func (p *placer) file(m *mapping) int {
	key := [2]uint64{m.dev, m.inode}
	if src, ok := p.files[key]; ok {
		return src
	}
	if p.files == nil {
		p.files = make(map[[2]uint64]int)
	}
	p.files[key] = -1
	whole := m
	for i := range p.maps {
		if p.maps[i].start <= m.start && m.end <= p.maps[i].end {
			whole = &p.maps[i]
		}
	}
	f, err := openMapped(p.pid, whole, p.writable)
	if err != nil {
		return -1
	}
	mapped, err := hostmap.New(f, p.writable)
	if err != nil {
		return -1
	}
	if mapped.Size() < m.off || mapped.Size()-m.off < m.size() {
		mapped.Close()
		return -1
	}
	p.sources = append(p.sources, &sharedFile{mapped, m.path})
	p.files[key] = len(p.sources) - 1
	return p.files[key]
}

func (p *placer) proc() (int, error) {
	if p.process == nil {
		var err error
		if p.process, err = openProcess(p.pid, p.writable); err != nil {
			return 0, err
		}
		p.procSrc = len(p.sources)
		p.sources = append(p.sources, p.process)
	}
	return p.procSrc, nil
}
