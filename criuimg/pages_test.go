package criuimg

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
)

// TestPagesProperty writes random memory in random pieces and reads it back.
func TestPagesProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		model := map[uint64]byte{} // page -> fill byte
		holes := map[uint64]bool{} // pages of the parent
		var index bytes.Buffer
		var pages memFile
		w := NewPageWriter(&index, &pages, Pagemap, 7)
		at := uint64(rapid.IntRange(0, 1<<20).Draw(t, "start"))
		for range rapid.IntRange(0, 12).Draw(t, "pieces") {
			at += uint64(rapid.SampledFrom([]int{0, 0, 1, 100, 1 << 24}).Draw(t, "gap"))
			n := rapid.SampledFrom([]int{1, 2, 7, 8, 9, 64, 65}).Draw(t, "pages")
			buf := make([]byte, n*PageSize)
			how := rapid.SampledFrom([]string{"write", "reserve", "hole"}).Draw(t, "how")
			for i := range n {
				page := at + uint64(i)
				if how == "hole" {
					holes[page] = true
					continue
				}
				fill := byte(page*7 + 1)
				model[page] = fill
				for j := range PageSize {
					buf[i*PageSize+j] = fill
				}
			}
			switch how {
			case "write":
				require.NoError(t, w.WritePages(at*PageSize, buf))
			case "hole":
				require.NoError(t, w.Hole(at*PageSize, uint64(n)))
			case "reserve":
				off, err := w.Reserve(at*PageSize, uint64(n))
				require.NoError(t, err)
				// Halves in the wrong order, as parallel writers would.
				half := n / 2 * PageSize
				_, err = w.WriteAt(buf[half:], off+int64(half))
				require.NoError(t, err)
				_, err = w.WriteAt(buf[:half], off)
				require.NoError(t, err)
			}
			at += uint64(n)
		}
		require.NoError(t, w.Close())
		require.Equal(t, len(model)*PageSize, len(pages.b))
		require.Equal(t, int64(len(pages.b)), w.Size())

		r, err := NewPageReader(&index, Pagemap, bytes.NewReader(pages.b))
		require.NoError(t, err)
		require.Equal(t, uint32(7), r.PagesID())
		require.Equal(t, w.Size(), r.Size())
		var prev Run
		for i, run := range r.Runs() {
			if i > 0 {
				require.False(t, prev.End() == run.Vaddr && prev.Flags == run.Flags, "neighbours not merged: %v %v", prev, run)
			}
			prev = run
		}
		buf := make([]byte, PageSize)
		for page, fill := range model {
			n, err := r.ReadMem(buf, page*PageSize)
			require.NoError(t, err)
			require.Equal(t, PageSize, n)
			require.Equal(t, fill, buf[0])
			require.Equal(t, fill, buf[PageSize-1])
			if _, ok := model[page+1]; !ok {
				n, err := r.ReadMem(make([]byte, 200), (page+1)*PageSize-100)
				require.ErrorIs(t, err, ErrNoPage)
				require.Equal(t, 100, n)
			}
		}
		for page := range holes {
			_, err := r.ReadMem(buf, page*PageSize)
			require.ErrorIs(t, err, ErrNoPage)
		}
	})
}

// noFile takes writes of any size without keeping them.
type noFile struct{}

func (noFile) WriteAt(p []byte, off int64) (int, error) { return len(p), nil }

func TestPagesLongRun(t *testing.T) {
	var index bytes.Buffer
	w := NewPageWriter(&index, noFile{}, Pagemap, 1)
	const n = 5 << 30 // 20 TiB
	require.NoError(t, w.Hole(0x1000, n))
	require.NoError(t, w.Hole(0x1000+n*PageSize, 3))
	require.NoError(t, w.Close())
	var total uint64
	for m, err := range Entries[proto.Message](bytes.NewReader(index.Bytes()), Pagemap, 0) {
		require.NoError(t, err)
		if e, ok := m.(*pagemap.PagemapEntry); ok {
			require.Equal(t, 0x1000+total*PageSize, e.GetVaddr())
			require.LessOrEqual(t, e.GetNrPages(), uint64(MaxRunPages))
			require.Equal(t, e.GetNrPages(), uint64(e.GetCompatNrPages()))
			total += e.GetNrPages()
		}
	}
	require.Equal(t, uint64(n+3), total)
}

func TestPagesRefuses(t *testing.T) {
	page := make([]byte, PageSize)
	open := func() *PageWriter { return NewPageWriter(io.Discard, &memFile{}, Pagemap, 1) }
	for name, bad := range map[string]func(w *PageWriter) error{
		"part of a page":  func(w *PageWriter) error { return w.WritePages(0x1000, page[:100]) },
		"unaligned":       func(w *PageWriter) error { return w.WritePages(0x1001, page) },
		"descending":      func(w *PageWriter) error { return errors.Join(w.WritePages(0x2000, page), w.WritePages(0x1000, page)) },
		"overlap":         func(w *PageWriter) error { return errors.Join(w.Hole(0x1000, 2), w.WritePages(0x2000, page)) },
		"zero page twice": func(w *PageWriter) error { return errors.Join(w.WritePages(0, page), w.WritePages(0, page)) },
		"too many":        func(w *PageWriter) error { return w.Hole(0x1000, 1<<60) },
		"not written": func(w *PageWriter) error {
			_, err := w.Reserve(0, 2)
			require.NoError(t, err)
			_, err = w.WriteAt(page, 0)
			require.NoError(t, err)
			return w.Close()
		},
		"after close": func(w *PageWriter) error { return errors.Join(w.Close(), w.WritePages(0, page)) },
		"no pagemap":  func(w *PageWriter) error { return NewPageWriter(io.Discard, &memFile{}, Core, 1).WritePages(0, page) },
	} {
		require.Error(t, bad(open()), name)
	}
	require.NoError(t, open().WritePages(0, page), "address 0 is an address")
}

type fullDisk struct {
	memFile
	left int
}

var errFull = errors.New("no space left")

func (f *fullDisk) WriteAt(p []byte, off int64) (int, error) {
	if len(p) > f.left {
		return 0, errFull
	}
	f.left -= len(p)
	return f.memFile.WriteAt(p, off)
}

func TestPagesDiskFull(t *testing.T) {
	for _, size := range []int{PageSize, 64 * PageSize} { // gathered, direct
		w := NewPageWriter(io.Discard, &fullDisk{left: 2 << 20}, Pagemap, 1)
		var err error
		for at := uint64(0); at < 16<<20 && err == nil; at += uint64(size) {
			err = w.WritePages(at, make([]byte, size))
		}
		require.ErrorIs(t, err, errFull)
		require.ErrorIs(t, w.Close(), errFull)
	}
}

func TestPagesParallel(t *testing.T) {
	var index bytes.Buffer
	var mu sync.Mutex
	var pages memFile
	locked := writerAt(func(p []byte, off int64) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return pages.WriteAt(p, off)
	})
	w := NewPageWriter(&index, locked, Pagemap, 1)
	var wg sync.WaitGroup
	for i := range 200 {
		vaddr := uint64(i) * 4 * PageSize
		off, err := w.Reserve(vaddr, 3)
		require.NoError(t, err)
		wg.Go(func() {
			if _, err := w.WriteAt(bytes.Repeat([]byte{byte(i)}, 3*PageSize), off); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.NoError(t, w.Close())
	r, err := NewPageReader(&index, Pagemap, bytes.NewReader(pages.b))
	require.NoError(t, err)
	require.Len(t, r.Runs(), 200)
	b := make([]byte, 3*PageSize)
	for i := range 200 {
		_, err := r.ReadMem(b, uint64(i)*4*PageSize)
		require.NoError(t, err)
		require.Equal(t, bytes.Repeat([]byte{byte(i)}, 3*PageSize), b)
	}
}

type writerAt func(p []byte, off int64) (int, error)

func (f writerAt) WriteAt(p []byte, off int64) (int, error) { return f(p, off) }

// TestPagesParent reads through a chain of incremental sets.
func TestPagesParent(t *testing.T) {
	child, parent := realSet(t, "4.2.1/counter"), realSet(t, "4.2.1/counter")
	d := damaged{t, child}
	pid := d.leader()
	var first Run
	d.pagemap(func(l []proto.Message) []proto.Message {
		e := l[1].(*pagemap.PagemapEntry)
		first = Run{Vaddr: e.GetVaddr(), Pages: e.GetNrPages()}
		e.Flags = u32(uint32(PageParent))
		return l
	})
	child["pages-1.img"].Data = child["pages-1.img"].Data[first.Pages*PageSize:]
	for n, f := range parent {
		child["parent/"+n] = f
	}
	s, err := Open(child)
	require.NoError(t, err)
	for _, p := range s.Verify() {
		require.NotEqual(t, Error, p.Severity, p)
	}
	r, err := s.Memory(uint32(pid))
	require.NoError(t, err)
	defer r.Close()
	got := make([]byte, PageSize)
	_, err = r.ReadMem(got, first.Vaddr)
	require.NoError(t, err)
	require.Equal(t, parent["pages-1.img"].Data[:PageSize], got)
}
