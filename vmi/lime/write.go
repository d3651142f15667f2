package lime

import (
	"context"
	"encoding/binary"
	"errors"
	"os"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/copyout"
	"github.com/ovmigrate/ovmigrate/vmi/internal/newfile"
)

// Write writes all memory of mem to a LiME file at path, which appears when it is
// complete. Memory that mem lacks (vmi.ErrExcluded) is in no range of the file; runs
// of zeros are holes of it. The format has no place for notes and registers.
func Write(ctx context.Context, path string, mem vmi.Memory, o *vmi.DumpOptions) error {
	if o == nil {
		o = &vmi.DumpOptions{}
	}
	return newfile.Write(path, func(f *os.File) error {
		w := writer{f: f}
		if err := copyout.Memory(ctx, mem, o.Progress, w.piece); err != nil {
			return err
		}
		return w.finish()
	})
}

// writer writes ranges, whose headers it knows when they end.
type writer struct {
	f     *os.File
	open  vmi.Range // the range that is being written
	at    int64     // offset of its header
	pos   int64     // end of the file
	count int
}

func (w *writer) piece(p copyout.Piece) error {
	if p.Kind == copyout.Absent {
		return nil
	}
	if w.open.Len() == 0 || w.open.End != p.Start {
		if err := w.end(); err != nil {
			return err
		}
		w.open = vmi.Range{Start: p.Start, End: p.Start}
		w.at = w.pos
		w.pos += headerSize
		w.count++
	}
	if p.Kind == copyout.Data {
		if _, err := w.f.WriteAt(p.Data, w.pos); err != nil {
			return err
		}
	}
	w.pos += int64(p.Len())
	w.open.End = p.End
	return nil
}

// end writes the header of the range that ends here.
func (w *writer) end() error {
	if w.open.Len() == 0 {
		return nil
	}
	h := make([]byte, 0, headerSize)
	le := binary.LittleEndian
	h = append(h, magic...)
	h = le.AppendUint32(h, version)
	h = le.AppendUint64(h, uint64(w.open.Start))
	h = le.AppendUint64(h, uint64(w.open.End-1))
	h = le.AppendUint64(h, 0)
	_, err := w.f.WriteAt(h, w.at)
	return err
}

func (w *writer) finish() error {
	if err := w.end(); err != nil {
		return err
	}
	if w.count == 0 {
		return errors.New("the source has no memory that could be written")
	}
	return w.f.Truncate(w.pos) // it may end in zeros that were not written
}
