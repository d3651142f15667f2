package locate

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/ovmigrate/ovmigrate/vmi"
)

const (
	scanChunk = 2 << 20 // what a worker takes at a time
	maxHits   = 4096
)

var osRelease = []byte("OSRELEASE=")

// scanInfo returns where VMCOREINFO text begins, in address order. The kernel keeps
// it twice, at the begin of a page (vmcoreinfo_data) and behind the 24-byte header of
// an ELF note that begins a page (vmcoreinfo_note), so that two words of each page
// tell.
func scanInfo(ctx context.Context, mem vmi.Memory, viewer vmi.Viewer) ([]vmi.Phys, error) {
	var chunks []vmi.Range
	for _, r := range dataRanges(mem) {
		for a := (r.Start + vmi.PageSize - 1) &^ (vmi.PageSize - 1); a < r.End; a += scanChunk {
			chunks = append(chunks, vmi.Range{Start: a, End: min(a+scanChunk, r.End)})
		}
	}
	var (
		next atomic.Int64
		mu   sync.Mutex
		hits []vmi.Phys
		wg   sync.WaitGroup
	)
	for range min(runtime.GOMAXPROCS(0), 8, len(chunks)) {
		wg.Go(func() {
			var buf []byte
			for ctx.Err() == nil {
				i := int(next.Add(1) - 1)
				if i >= len(chunks) {
					return
				}
				found := scanRange(mem, viewer, chunks[i], &buf)
				if len(found) > 0 {
					mu.Lock()
					if len(hits) < maxHits {
						hits = append(hits, found...)
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	sort.Slice(hits, func(i, j int) bool { return hits[i] < hits[j] })
	return hits, nil
}

func scanRange(mem vmi.Memory, viewer vmi.Viewer, r vmi.Range, buf *[]byte) (hits []vmi.Phys) {
	n := int(r.Len())
	if viewer != nil {
		if b := viewer.View(r.Start, n); len(b) >= n {
			return scanPages(b[:n], r.Start, nil)
		}
	}
	if len(*buf) < n {
		*buf = make([]byte, scanChunk)
	}
	for at := r.Start; at < r.End; {
		b := (*buf)[:r.End-at]
		got, err := mem.ReadPhys(b, at)
		hits = scanPages(b[:got], at, hits)
		if err == nil {
			break
		}
		// The page that failed is skipped.
		at = (at+vmi.Phys(got))&^(vmi.PageSize-1) + vmi.PageSize
		var fault *vmi.FaultError
		if !errors.As(err, &fault) {
			break
		}
	}
	return hits
}

func scanPages(b []byte, at vmi.Phys, hits []vmi.Phys) []vmi.Phys {
	want := binary.LittleEndian.Uint64(osRelease)
	for p := 0; p+48 <= len(b); p += vmi.PageSize {
		for _, off := range [2]int{0, 24} {
			if binary.LittleEndian.Uint64(b[p+off:]) == want && bytes.HasPrefix(b[p+off:], osRelease) {
				hits = append(hits, at+vmi.Phys(p+off))
			}
		}
	}
	return hits
}

// dataRanges returns the RAM that is worth searching.
func dataRanges(mem vmi.Memory) []vmi.Range {
	if s, ok := mem.(Sparse); ok {
		if r := s.Data(); r != nil {
			return r
		}
	}
	return mem.Ranges()
}
