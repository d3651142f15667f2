package ramfile

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/copyout"
	"github.com/ovmigrate/ovmigrate/vmi/internal/newfile"
)

// Write writes all memory of mem to a raw file at path, which appears when it is
// complete. The byte at guest-physical address A is at offset A of the file; what is
// no RAM, and runs of zeros, are holes of it. The file does not say which of the two:
// Layout does, for opening it again. A raw file cannot say either that memory is
// missing: if mem lacks some (vmi.ErrExcluded), that is an error, a *vmi.FaultError.
func Write(ctx context.Context, path string, mem vmi.Memory, o *vmi.DumpOptions) error {
	if o == nil {
		o = &vmi.DumpOptions{}
	}
	ranges := mem.Ranges()
	if len(ranges) == 0 {
		return fmt.Errorf("write %s: the source has no memory", path)
	}
	return newfile.Write(path, func(f *os.File) error {
		err := copyout.Memory(ctx, mem, o.Progress, func(p copyout.Piece) error {
			switch p.Kind {
			case copyout.Absent:
				return fmt.Errorf("raw RAM cannot leave memory out: %w",
					&vmi.FaultError{Addr: p.Start, Len: int(p.Len()), Err: vmi.ErrExcluded})
			case copyout.Data:
				_, err := f.WriteAt(p.Data, int64(p.Start))
				return err
			}
			return nil
		})
		if err != nil {
			return err
		}
		// It may end in zeros that were not written, and raw RAM has whole pages.
		end := ranges[len(ranges)-1].End
		return f.Truncate(int64((end + vmi.PageSize - 1) &^ (vmi.PageSize - 1)))
	})
}

// Layout returns the parameters with which the file that Write makes of such memory
// is opened as that memory: "layout=0x0:0x0:0x80000000,…", or "" where it needs none.
func Layout(ranges []vmi.Range) string {
	if len(ranges) == 1 && ranges[0].Start == 0 && ranges[0].End <= maxIdentity && ranges[0].End%vmi.PageSize == 0 {
		return ""
	}
	var items []string
	for _, r := range ranges {
		items = append(items, fmt.Sprintf("%#x:%#x:%#x", uint64(r.Start), uint64(r.Start), r.Len()))
	}
	return "layout=" + strings.Join(items, ",")
}
