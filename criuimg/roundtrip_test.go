package criuimg

import (
	"bytes"
	"io"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
)

// recode decodes an image and encodes it again.
func recode(t testing.TB, k *Kind, data []byte) ([]byte, error) {
	d, err := NewDecoder(bytes.NewReader(data), k)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	e := NewEncoder(&out, k)
	for {
		m, err := d.Next()
		if err == io.EOF {
			require.NoError(t, e.Close())
			return out.Bytes(), nil
		}
		if err != nil {
			return nil, err
		}
		require.NoError(t, e.Encode(m))
		if d.PayloadSize() != 0 {
			if err := e.Payload(d.Payload()); err != nil {
				return nil, err
			}
		}
	}
}

func TestRoundTripRealSets(t *testing.T) {
	seen := map[*Kind]bool{}
	eachRealSet(t, func(t *testing.T, _ string, set fstest.MapFS) {
		for name, f := range set {
			k, key, ok := KindOf(name)
			require.True(t, ok, name)
			require.Equal(t, name, k.FileName(key))
			if k.Frame == FrameRaw {
				continue
			}
			seen[k] = true
			got, err := recode(t, k, f.Data)
			require.NoError(t, err, name)
			require.True(t, bytes.Equal(f.Data, got), "%s: decoded and encoded again it differs", name)
		}
	})
	for _, k := range []*Kind{
		Inventory, Pstree, Core, IDs, MM, FS, FDInfo, Files, TTYInfo, Pagemap, PagemapShmem, Seccomp, RemapFpath, GhostFile,
		PipesData, FifoData, SkQueues, MemfdInode, FileLocks, IPCVar, IPCShm, IPCSem, IPCMsg, Utsns, Timens, StatsDump,
	} {
		require.True(t, seen[k], "no real image of kind %s in testdata", k)
	}
}

// TestRewriteMemory reads the memory of real sets and writes it with PageWriter:
// the pages file must be the same, and the pagemap must mean the same.
func TestRewriteMemory(t *testing.T) {
	eachRealSet(t, func(t *testing.T, _ string, set fstest.MapFS) {
		s, err := Open(set)
		require.NoError(t, err)
		for _, f := range s.Images() {
			if f.Kind != Pagemap && f.Kind != PagemapShmem {
				continue
			}
			r, err := s.openPages(f.Kind, f.Key)
			require.NoError(t, err)
			var index bytes.Buffer
			var pages memFile
			w := NewPageWriter(&index, &pages, f.Kind, r.PagesID())
			for _, run := range r.Runs() {
				buf := make([]byte, run.Pages*PageSize)
				n, err := r.ReadMem(buf, run.Vaddr)
				require.NoError(t, err)
				require.Equal(t, len(buf), n)
				require.NoError(t, w.WritePages(run.Vaddr, buf))
			}
			require.NoError(t, r.Close())
			require.NoError(t, w.Close())
			require.True(t, bytes.Equal(set[Pages.FileName(uint64(r.PagesID()))].Data, pages.b), "%s: %d bytes, %d in the set", f.Name, len(pages.b), len(set[Pages.FileName(uint64(r.PagesID()))].Data))

			var total uint64
			for m, err := range Entries[proto.Message](&index, f.Kind, 0) {
				require.NoError(t, err)
				if m, ok := m.(*pagemap.PagemapEntry); ok {
					require.Equal(t, uint64(m.GetCompatNrPages()), m.GetNrPages(), "both generations of CRIU must see the count")
					total += m.GetNrPages()
				}
			}
			require.Equal(t, len(pages.b), int(total)*PageSize)
		}
	})
}

// memFile is an io.WriterAt in memory.
type memFile struct{ b []byte }

func (m *memFile) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(m.b) {
		m.b = append(m.b, make([]byte, need-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}
