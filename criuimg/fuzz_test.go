package criuimg

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"sort"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
)

// FuzzEntries: an image of any kind decodes to entries, or to entries and one
// *FormatError; what decodes encodes to the same meaning.
func FuzzEntries(f *testing.F) {
	sets, err := realSets()
	require.NoError(f, err)
	index := map[*Kind]uint8{}
	for i, k := range kinds {
		index[k] = uint8(i)
	}
	for _, set := range sets {
		for name, file := range set {
			if k, _, _ := KindOf(name); k.Frame != FrameRaw && len(file.Data) < 4096 {
				f.Add(index[k], file.Data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, data []byte) {
		k := kinds[int(kind)%len(kinds)]
		if k.Frame == FrameRaw {
			_, err := NewDecoder(bytes.NewReader(data), k)
			require.Error(t, err)
			return
		}
		for m, err := range Entries[proto.Message](bytes.NewReader(data), k, 0) {
			if err != nil {
				var fe *FormatError
				require.ErrorAs(t, err, &fe)
				require.LessOrEqual(t, fe.Offset, int64(len(data)))
				require.Nil(t, m)
			} else {
				require.NotNil(t, m)
			}
		}
		once, err := recode(t, k, data)
		if err != nil {
			return
		}
		twice, err := recode(t, k, once)
		require.NoError(t, err)
		require.True(t, bytes.Equal(once, twice), "not stable")
		require.NoError(t, WriteJSON(io.Discard, bytes.NewReader(data), k))
	})
}

// FuzzVerify: a set with one image replaced never makes Open, Verify, Version or
// the page readers panic, hang or take memory out of proportion.
func FuzzVerify(f *testing.F) {
	set := realSet(f, "4.2.1/ns")
	var names []string
	for name := range set {
		names = append(names, name)
	}
	sort.Strings(names)
	for i, name := range names {
		f.Add(uint16(i), set[name].Data[:min(len(set[name].Data), 4096)])
	}
	f.Fuzz(func(t *testing.T, which uint16, data []byte) {
		spoiled := fstest.MapFS{}
		for n, file := range set {
			spoiled[n] = file
		}
		spoiled[names[int(which)%len(names)]] = &fstest.MapFile{Data: data}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s, err := Open(spoiled)
		if err != nil {
			return
		}
		for _, p := range s.Verify() {
			require.NotEmpty(t, p.File)
			require.NotEmpty(t, p.What)
		}
		s.Version()
		for _, pid := range s.Keys(Pagemap) {
			r, err := s.Memory(uint32(pid))
			if err != nil {
				continue
			}
			buf := make([]byte, PageSize)
			for _, run := range r.Runs() {
				if _, err := r.ReadMem(buf, run.Vaddr); err != nil && !errors.Is(err, ErrNoPage) && !errors.Is(err, ErrTruncated) {
					t.Fatal(err)
				}
				break
			}
			require.NoError(t, r.Close())
		}
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 64<<20+200*uint64(len(data)) {
			t.Fatalf("%d bytes allocated for an image of %d", got, len(data))
		}
	})
}
