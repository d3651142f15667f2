package locate

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// running tells which of several complete kernels runs. A reboot does not clear
// memory: the kernel before it is all there, page tables included.
//
// The processors' CR3 decides where the source has registers: every process shares
// the kernel's upper page tables. In a dump without registers the wall clock in the
// kernels' timekeepers does: the one that stopped first is gone.
func (f *finder) running(kernels []*Guest) (*Guest, error) {
	if g := f.byCR3(kernels); g != nil {
		g.step("of several kernels", "CR3 of the processors", "it leads to this kernel's page tables")
		return g, nil
	}
	if g := f.byClock(kernels); g != nil {
		g.step("of several kernels", "wall clock", fmt.Sprintf("its clock is the latest of %d", len(kernels)))
		return g, nil
	}
	var names []string
	for _, k := range kernels {
		at, _ := k.ImagePhys(k.VirtBase)
		names = append(names, fmt.Sprintf("%s at %#x", k.Release, uint64(at)))
	}
	return nil, fmt.Errorf("%w: %s", ErrAmbiguous, strings.Join(names, ", "))
}

func (f *finder) byCR3(kernels []*Guest) *Guest {
	src, ok := f.mem.(vmi.CPUs)
	if !ok {
		return nil
	}
	cpus, err := src.CPUs(f.ctx)
	if err != nil {
		f.log.Debug("no registers", "reason", err)
		return nil
	}
	var found *Guest
	for _, g := range kernels {
		want, ok := f.topOf(g.Root)
		if !ok {
			continue
		}
		for _, c := range cpus {
			root := vmi.Phys(c.CR3 &^ g.EncMask &^ (vmi.PageSize - 1))
			// With page-table isolation a processor in user mode has the
			// process's second table, one page behind the kernel's.
			for _, r := range []vmi.Phys{root, root &^ vmi.PageSize} {
				if got, ok := f.topOf(r); ok && got == want {
					if found != nil && found != g {
						return nil
					}
					found = g
				}
			}
		}
	}
	return found
}

// byClock compares the time of day in the kernels' timekeepers, tkr_mono.base_real:
// among the first words of tk_core it is the largest that can be a number of
// nanoseconds since 1970.
func (f *finder) byClock(kernels []*Guest) *Guest {
	const (
		words = 48
		least = 1_000_000_000_000_000_000 // 2001
		most  = 4_000_000_000_000_000_000 // 2096
	)
	var best *Guest
	var latest uint64
	var same int // kernels with the latest time
	for _, g := range kernels {
		addr, ok := g.Symbols.Lookup("tk_core")
		if !ok {
			return nil
		}
		b, err := f.image(g).read(addr, words*8)
		if err != nil {
			return nil
		}
		var now uint64
		for i := range words {
			if v := binary.LittleEndian.Uint64(b[8*i:]); v >= least && v < most {
				now = max(now, v)
			}
		}
		if now == 0 {
			return nil
		}
		switch {
		case now > latest:
			best, latest, same = g, now, 1
		case now == latest:
			same++
		}
	}
	if same != 1 {
		return nil
	}
	return best
}
