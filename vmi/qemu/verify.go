package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/ovmigrate/ovmigrate/vmi"
)

const (
	samplesPerSegment = 4
	sampleSize        = 64 // bytes compared at each place
	sampleTries       = 5  // a running guest may change a place between two looks
)

// verify compares bytes that we read with those that QEMU's monitor reads at the
// same guest-physical addresses: at both ends of each stretch of RAM and in a few
// places that are not empty.
func (g *Guest) verify(ctx context.Context) error {
	eg, ctx := errgroup.WithContext(ctx) // questions in one go: QEMU may be slow to look up
	for _, at := range samplePlaces(g.Ranges(), g.Data()) {
		place, ok := g.busyLine(at)
		if !ok || (place >= legacyStart && place < legacyEnd) {
			continue
		}
		eg.Go(func() error {
			same, err := g.compare(ctx, place)
			if err == nil && !same {
				err = fmt.Errorf("%w: %#x in QEMU's monitor is not what we read there", ErrLayout, uint64(place))
			}
			return err
		})
	}
	return eg.Wait()
}

// samplePlaces returns page addresses worth a look.
func samplePlaces(ranges, data []vmi.Range) []vmi.Phys {
	var out []vmi.Phys
	for _, r := range ranges {
		out = append(out, r.Start, r.End-vmi.PageSize)
		var inside []vmi.Range
		for _, d := range data {
			if d.Start >= r.Start && d.Start < r.End {
				inside = append(inside, d)
			}
		}
		n := min(samplesPerSegment, len(inside))
		for i := range n {
			d := inside[i*len(inside)/n]
			out = append(out, d.Start+vmi.Phys(d.Len()/2)&^(vmi.PageSize-1))
		}
	}
	return out
}

// busyLine returns the first place in the page at addr that is not all zeros, or
// the start of the page.
func (g *Guest) busyLine(addr vmi.Phys) (vmi.Phys, bool) {
	var page [vmi.PageSize]byte
	if _, err := g.readPhys(page[:], addr); err != nil {
		return 0, false
	}
	var zero [sampleSize]byte
	for off := 0; off < len(page); off += sampleSize {
		if !bytes.Equal(page[off:off+sampleSize], zero[:]) {
			return addr + vmi.Phys(off), true
		}
	}
	return addr, true
}

func (g *Guest) compare(ctx context.Context, at vmi.Phys) (bool, error) {
	var ours, again [sampleSize]byte
	for range sampleTries {
		if _, err := g.readPhys(ours[:], at); err != nil {
			return false, err
		}
		text, err := g.qmp.HMP(ctx, fmt.Sprintf("xp /%dxg %#x", sampleSize/8, uint64(at)))
		if err != nil {
			return false, err
		}
		theirs, err := parseXP(text)
		if err != nil {
			return false, err
		}
		if bytes.Equal(ours[:], theirs) {
			return true, nil
		}
		if _, err := g.readPhys(again[:], at); err != nil {
			return false, err
		}
		if again != ours {
			continue // in motion
		}
	}
	return again != ours, nil // never at rest: no evidence against us
}

// parseXP parses "0000000000001000: 0x0123456789abcdef 0x…" lines.
func parseXP(text string) ([]byte, error) {
	var out []byte
	for line := range strings.Lines(text) {
		_, words, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		for _, w := range strings.Fields(words) {
			n, err := strconv.ParseUint(strings.TrimPrefix(w, "0x"), 16, 64)
			if err != nil {
				return nil, fmt.Errorf("xp: QEMU says %.100q", line)
			}
			out = binary.LittleEndian.AppendUint64(out, n)
		}
	}
	return out, nil
}
