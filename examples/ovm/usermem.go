package main

import (
	"errors"
	"fmt"
	"io"
	"sort"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// userMemory reads the memory of a process as the process itself would see it:
// also pages that it has not touched yet, which are zeros or lie in the page cache.
type userMemory struct {
	mm    *kernel.MM
	vmas  []kernel.VMA
	files map[kernel.Addr]*kernel.PageCache
}

func newUserMemory(t *kernel.Task) (*userMemory, error) {
	mm, err := t.MM()
	if err != nil {
		return nil, err
	}
	vmas, err := mm.VMAList()
	return &userMemory{mm, vmas, map[kernel.Addr]*kernel.PageCache{}}, err
}

// ReadAt fills p from the user address a. It fails for what is not mapped, and for
// pages that only the guest could bring in from disk or swap.
func (u *userMemory) ReadAt(p []byte, a kernel.UserAddr) (n int, err error) {
	for n < len(p) {
		at := a + kernel.UserAddr(n)
		page := p[n:min(len(p), n+int(vmi.PageSize-uint64(at)%vmi.PageSize))]
		_, err := u.mm.ReadAt(page, at)
		var none *paging.NotMappedError
		if errors.As(err, &none) {
			err = u.readAbsent(page, at, none)
		}
		if err != nil {
			return n, err
		}
		n += len(page)
	}
	return n, nil
}

// readAbsent reads a page that the page table does not have.
func (u *userMemory) readAbsent(p []byte, a kernel.UserAddr, none *paging.NotMappedError) error {
	i := sort.Search(len(u.vmas), func(i int) bool { return u.vmas[i].End > a })
	switch {
	case i == len(u.vmas) || a < u.vmas[i].Start:
		return fmt.Errorf("%s: nothing is mapped there", a)
	case none.Entry != 0:
		return fmt.Errorf("%s: page is not in memory: %w", a, none)
	}
	v := &u.vmas[i]
	special, err := u.mm.SpecialName(v)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", a, err)
	case special == "[vdso]":
		return u.readVDSO(p, a-v.Start)
	case special != "":
		return fmt.Errorf("%s: %s is no memory", a, special)
	case v.File == 0:
		clear(p)
		return nil
	}
	cache, err := u.pageCache(v.File)
	if err != nil {
		return fmt.Errorf("%s: %w", a, err)
	}
	off := int64(v.PgOff<<12) + int64(a-v.Start)
	n, err := cache.ReadAt(p, off)
	if errors.Is(err, io.EOF) && n+int(off%vmi.PageSize) > 0 {
		clear(p[n:]) // behind the end of the file, on its last page
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", a, err)
	}
	return nil
}

// readVDSO reads the code that the kernel maps into every process, from the kernel's
// own copy.
func (u *userMemory) readVDSO(p []byte, off kernel.UserAddr) error {
	k := u.mm.Kernel()
	image, err := k.Object("vdso_image", u.mm.VDSOImage)
	if err != nil {
		return err
	}
	data, err := uintField(image, "data")
	if err != nil {
		return err
	}
	_, err = k.ReadAt(p, kernel.Addr(data)+kernel.Addr(off))
	return err
}

func (u *userMemory) pageCache(file kernel.Addr) (*kernel.PageCache, error) {
	if c, ok := u.files[file]; ok {
		return c, nil
	}
	f, err := u.mm.Kernel().FileAt(file)
	if err != nil {
		return nil, err
	}
	c, err := f.Inode.PageCache()
	if err == nil {
		u.files[file] = c
	}
	return c, err
}
