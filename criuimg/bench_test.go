package criuimg

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
)

// benchDir is on tmpfs where there is one: the disk is not what is measured.
func benchDir(b *testing.B) string {
	if dir, err := os.MkdirTemp("/dev/shm", "criuimg-bench-"); err == nil {
		b.Cleanup(func() { os.RemoveAll(dir) })
		return dir
	}
	return b.TempDir()
}

const benchSize = 256 << 20

// BenchmarkPages compares writing memory through PageWriter with writing the
// same bytes to a plain file.
func BenchmarkPages(b *testing.B) {
	buf := make([]byte, 1<<20)
	for i := range buf {
		buf[i] = byte(i >> 4)
	}
	dir := benchDir(b)
	b.Run("plain", func(b *testing.B) {
		b.SetBytes(benchSize)
		for range b.N {
			f, err := os.Create(filepath.Join(dir, "plain"))
			require.NoError(b, err)
			for n := 0; n < benchSize; n += len(buf) {
				_, err := f.Write(buf)
				require.NoError(b, err)
			}
			require.NoError(b, f.Close())
			require.NoError(b, os.Remove(f.Name()))
		}
	})
	for _, piece := range []struct {
		name string
		size int
	}{{"PageWriter-1M", 1 << 20}, {"PageWriter-4K", PageSize}} {
		b.Run(piece.name, func(b *testing.B) {
			b.SetBytes(benchSize)
			b.ReportAllocs()
			for range b.N {
				d, err := CreateWith(filepath.Join(dir, "set"), DirOptions{NoSync: true})
				require.NoError(b, err)
				w, err := d.Pages(Pagemap, 1)
				require.NoError(b, err)
				for n := 0; n < benchSize; n += piece.size {
					at := n % len(buf)
					if err := w.WritePages(uint64(n), buf[at:at+piece.size]); err != nil {
						b.Fatal(err)
					}
				}
				require.NoError(b, w.Close())
				require.NoError(b, d.Abort())
			}
		})
	}
}

// BenchmarkPagemapEntries writes a pagemap without two pages side by side.
func BenchmarkPagemapEntries(b *testing.B) {
	b.ReportAllocs()
	w := NewPageWriter(io.Discard, noFile{}, Pagemap, 1)
	for i := range b.N {
		if _, err := w.Reserve(uint64(i)*2*PageSize, 1); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMinimalSet writes all files of a small process, as a checkpoint of a
// counter does, and commits it.
func BenchmarkMinimalSet(b *testing.B) {
	s, err := Open(realSet(b, "4.2.1/counter"))
	require.NoError(b, err)
	dir := benchDir(b)
	for _, o := range []DirOptions{{NoSync: true}, {}} {
		name := "sync"
		if o.NoSync {
			name = "nosync"
		}
		b.Run(name, func(b *testing.B) {
			for range b.N {
				path := filepath.Join(dir, "set")
				copySet(b, s, path, o)
				require.NoError(b, os.RemoveAll(path))
			}
		})
	}
}

// copySet writes a set again, entry by entry and page by page.
func copySet(t testing.TB, s *Set, path string, o DirOptions) {
	d, err := CreateWith(path, o)
	require.NoError(t, err)
	defer d.Abort()
	for _, f := range s.Images() {
		switch {
		case f.Kind == Pagemap || f.Kind == PagemapShmem:
			r, err := s.openPages(f.Kind, f.Key)
			require.NoError(t, err)
			w, err := d.Pages(f.Kind, f.Key)
			require.NoError(t, err)
			for _, run := range r.Runs() {
				buf := make([]byte, run.Pages*PageSize)
				_, err := r.ReadMem(buf, run.Vaddr)
				require.NoError(t, err)
				require.NoError(t, w.WritePages(run.Vaddr, buf))
			}
			require.NoError(t, w.Close())
			require.NoError(t, r.Close())
		case f.Kind.Frame != FrameRaw:
			r, err := s.Image(f.Kind, f.Key)
			require.NoError(t, err)
			e, err := d.Image(f.Kind, f.Key)
			require.NoError(t, err)
			for {
				m, err := r.Next()
				if err == io.EOF {
					break
				}
				require.NoError(t, err)
				require.NoError(t, e.Encode(m))
				if r.PayloadSize() != 0 {
					require.NoError(t, e.Payload(r.Payload()))
				}
			}
			require.NoError(t, e.Close())
			require.NoError(t, r.Close())
		}
	}
	require.NoError(t, d.Commit())
}

func BenchmarkVerify(b *testing.B) {
	set := realSet(b, "4.2.1/ns")
	for range b.N {
		s, err := Open(set)
		require.NoError(b, err)
		require.Empty(b, s.Verify())
	}
}

func BenchmarkDecodeFiles(b *testing.B) {
	data := realSet(b, "4.2.1/ns")["files.img"].Data
	b.SetBytes(int64(len(data)))
	for range b.N {
		if _, err := recode(b, Files, data); err != nil {
			b.Fatal(err)
		}
	}
}

// TestCopySet: a real set written again with Dir verifies and holds the same.
func TestCopySet(t *testing.T) {
	eachRealSet(t, func(t *testing.T, name string, _ fstest.MapFS) {
		s, err := Open(realSet(t, name))
		require.NoError(t, err)
		path := filepath.Join(t.TempDir(), "set")
		copySet(t, s, path, DirOptions{NoSync: true})
		again, err := OpenDir(path)
		require.NoError(t, err)
		require.Empty(t, again.Verify())
		for _, f := range s.Images() {
			if f.Kind.Frame == FrameRaw || f.Kind == Pagemap || f.Kind == PagemapShmem {
				continue
			}
			got, err := os.ReadFile(filepath.Join(path, f.Name))
			require.NoError(t, err)
			require.True(t, bytes.Equal(realSet(t, name)[f.Name].Data, got), f.Name)
		}
	})
}
