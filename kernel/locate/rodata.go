package locate

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/ovmigrate/ovmigrate/kernel/symbols"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// byRodata finds kernels by their banner. Read-only data begins on a boundary of a
// large page (include/asm-generic/vmlinux.lds.h:RO_DATA) and the banner, or a
// copy of it, is among the first things in it, for init is linked first: one page of
// each 2 MiB tells. It is for memory that lacks its first MiB, as some dumps do.
func (f *finder) byRodata() ([]*Guest, error) {
	var kernels []*Guest
	raw := space{mem: f.mem, viewer: f.viewer}
	tries := 0
	for _, r := range dataRanges(f.mem) {
		for at := (r.Start + textAlign - 1) &^ (textAlign - 1); at < r.End; at += textAlign {
			if err := f.ctx.Err(); err != nil {
				return nil, err
			}
			b, err := raw.upTo(uint64(at), vmi.PageSize)
			if err != nil {
				continue
			}
			if !bytes.Contains(b, []byte(bannerTag)) {
				continue
			}
			if tries++; tries > maxMapped {
				return kernels, nil
			}
			g, err := f.fromRodata(raw, uint64(at))
			if err != nil {
				f.reject(fmt.Sprintf("banner near %#x", uint64(at)), err)
			} else if !slices.ContainsFunc(kernels, g.same) {
				kernels = append(kernels, g)
			}
		}
	}
	return kernels, nil
}

// fromRodata follows read-only data at the guest-physical address at to the symbol
// table in it.
func (f *finder) fromRodata(raw space, at uint64) (g *Guest, err error) {
	b, err := f.imageBytes(raw, at, at+maxImage)
	if err != nil {
		return nil, err
	}
	err = fmt.Errorf("%w behind it", symbols.ErrFormat)
	symbols.Search(b, at, func(a symbols.Addrs) bool {
		if g, err = f.fromTables(raw, a, at); err != nil {
			f.reject(fmt.Sprintf("symbol table at %#x", a.TokenTable), err)
		}
		return err == nil
	})
	return g, err
}
