package kdump_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/kdump"
	"github.com/ovmigrate/ovmigrate/vmi/vmitest"
)

// small is a dump of a few dozen pages.
func small(t testing.TB, c kdump.Compression) []byte { return sized(t, c, 10) }

func sized(t testing.TB, c kdump.Compression, n vmi.Phys) []byte {
	m := vmitest.New(vmi.Range{Start: 0, End: 2 * n * page}, vmi.Range{Start: 4 * n * page, End: 7 * n * page})
	for _, r := range m.Ranges() {
		fill(m, r)
	}
	path := filepath.Join(t.TempDir(), "dump")
	require.NoError(t, kdump.Write(t.Context(), path, m, &kdump.WriteOptions{
		Compression: c, DumpOptions: vmi.DumpOptions{VMCoreInfo: []byte("OSRELEASE=6\n"), CPUs: make([]vmi.CPU, 1)},
	}))
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}

// flattened is b in flattened form, in pieces of some hundred bytes.
func flattened(b []byte) []byte {
	out := make([]byte, 4096)
	copy(out, "makedumpfile")
	out[23], out[31] = 1, 1
	for off := 0; off < len(b); off += 700 {
		p := b[off:min(off+700, len(b))]
		out = binary.BigEndian.AppendUint64(out, uint64(off))
		out = binary.BigEndian.AppendUint64(out, uint64(len(p)))
		out = append(out, p...)
	}
	return append(out, bytes.Repeat([]byte{0xff}, 16)...)
}

// look opens a file and reads what it says it has; it returns Open's error.
func look(t testing.TB, path string) error {
	m, err := vmi.Open(t.Context(), path, nil)
	if err != nil {
		require.NotContains(t, err.Error(), "\n")
		return err
	}
	defer m.Close()
	m.(vmi.CPUs).CPUs(t.Context())
	m.(vmi.Notes).VMCoreInfo()
	b := make([]byte, page)
	reads := 0
	for i, r := range m.Ranges() {
		require.Positive(t, r.Len())
		require.True(t, i == 0 || m.Ranges()[i-1].End < r.Start, "%v", m.Ranges())
		for a := r.Start; a < r.End && reads < 200; a += page {
			reads++
			n, err := m.ReadPhys(b, a)
			if (err == nil) != (n == len(b)) {
				t.Fatalf("%#x: %d, %v", a, n, err)
			}
			var fault *vmi.FaultError
			if err != nil {
				require.ErrorAs(t, err, &fault)
				require.Error(t, fault.Err, "%#x is in Ranges", a)
			}
		}
	}
	return nil
}

func lookBytes(t testing.TB, b []byte) error {
	path := filepath.Join(t.TempDir(), "dump")
	require.NoError(t, os.WriteFile(path, b, 0o600))
	return look(t, path)
}

func TestBadHeaders(t *testing.T) {
	good := small(t, kdump.Zlib)
	require.NoError(t, lookBytes(t, good))
	require.NoError(t, lookBytes(t, flattened(good)))
	const sub = 4096
	for _, tt := range []struct {
		name string
		at   int
		with []byte
		want error
	}{
		{"diskdump", 0, []byte("DISKDUMP"), vmi.ErrFormat},
		{"version 0", 8, []byte{0}, vmi.ErrFormat},
		{"version 7", 8, []byte{7}, vmi.ErrFormat},
		{"block size", 428, []byte{1}, vmi.ErrFormat},
		{"block size 0", 428, []byte{0, 0, 0, 0}, vmi.ErrFormat},
		{"huge block size", 428, []byte{0, 0, 0, 0x40}, vmi.ErrFormat},
		{"no sub-header", 432, []byte{0, 0, 0, 0}, kdump.ErrCorrupt},
		{"negative sub-header", 432, []byte{0, 0, 0, 0x80}, kdump.ErrCorrupt},
		{"huge sub-header", 432, []byte{0, 0, 0, 0x7f}, vmi.ErrTruncated},
		{"no bitmaps", 436, []byte{0, 0, 0, 0}, kdump.ErrCorrupt},
		{"huge bitmaps", 436, []byte{0xff, 0xff, 0xff, 0xff}, vmi.ErrTruncated},
		{"no pages", sub + 96, make([]byte, 8), kdump.ErrCorrupt},
		{"too many pages", sub + 96, []byte{0, 0, 0, 0, 0xff}, kdump.ErrCorrupt},
		{"more pages than bitmap", sub + 96, []byte{0, 0, 0x10}, kdump.ErrCorrupt},
		{"huge notes", sub + 56, []byte{0, 0, 0, 0, 1}, kdump.ErrCorrupt},
		{"notes far away", sub + 48, []byte{0, 0, 0, 0, 0, 0, 0, 0xff}, vmi.ErrTruncated},
		{"huge vmcoreinfo", sub + 40, []byte{0, 0, 0, 0, 1}, kdump.ErrCorrupt},
		{"vmcoreinfo far away", sub + 32, []byte{0, 0, 0, 0, 0, 0, 0, 0x7f}, vmi.ErrTruncated},
		{"no memory", 2 * 4096, make([]byte, 4096), kdump.ErrCorrupt},
		{"a part of nothing", sub + 12, []byte{1}, kdump.ErrSplit},
	} {
		b := bytes.Clone(good)
		copy(b[tt.at:], tt.with)
		require.ErrorIs(t, lookBytes(t, b), tt.want, tt.name)
	}
	for _, n := range []int{0, 7, 8, 463, 4096, 4096 + 50, 8192, 3 * 4096, 4*4096 + 100, len(good) / 2, len(good) - 1} {
		err := lookBytes(t, good[:n])
		require.Error(t, err, "%d bytes", n)
		if n >= 8 {
			require.ErrorIs(t, err, vmi.ErrTruncated, "%d bytes", n)
		}
		if n > 0 {
			require.ErrorIs(t, lookBytes(t, flattened(good)[:4096+n]), vmi.ErrTruncated, "%d bytes", n)
		}
	}
}

// An incomplete dump gives what it has, and says of the rest that it lacks it.
func TestIncomplete(t *testing.T) {
	good := small(t, kdump.None)
	good[424] |= 8
	b := good[:len(good)-10*page]
	require.NoError(t, lookBytes(t, b))
	path := filepath.Join(t.TempDir(), "dump")
	require.NoError(t, os.WriteFile(path, b, 0o600))
	m := open(t, path)
	p := make([]byte, page)
	lost := 0
	for _, r := range m.Ranges() {
		for a := r.Start; a < r.End; a += page {
			if _, err := m.ReadPhys(p, a); err != nil {
				require.ErrorIs(t, err, vmi.ErrExcluded)
				require.ErrorContains(t, err, "incomplete")
				lost++
			}
		}
	}
	require.Equal(t, 10, lost)
}

// Whatever single bytes are changed to: an answer, soon, in bounded memory.
func TestBitFlips(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, good := range [][]byte{small(t, kdump.Zlib), small(t, kdump.Zstd), flattened(small(t, kdump.Zlib))} {
		for i := range 200 {
			b := bytes.Clone(good)
			for range 1 + i%3 {
				at := rng.IntN(len(b))
				switch i % 4 {
				case 0:
					at = rng.IntN(464)
				case 1:
					at = 4096 + rng.IntN(104)
				}
				b[at] = byte(rng.Uint32())
			}
			lookBytes(t, b)
		}
	}
}

// Sparse files of many terabytes with headers to match cost their reader nothing: what
// is kept does not grow with what they claim.
func TestHugeClaims(t *testing.T) {
	good := small(t, kdump.Zlib)
	le := binary.LittleEndian
	for name, tt := range map[string]struct {
		pfns uint64
		bits []byte // repeated over the first MiB of the first bitmap
		want error
	}{
		"32 TiB":         {1 << 33, nil, nil},
		"more":           {1<<33 + 1, nil, kdump.ErrCorrupt},
		"alternating":    {1 << 30, []byte{0x55}, kdump.ErrCorrupt},
		"all there":      {1 << 30, []byte{0xff}, nil},
		"nothing at all": {1 << 30, []byte{0}, kdump.ErrCorrupt},
	} {
		blocks := 2 * ((tt.pfns/8 + 4095) / 4096)
		path := filepath.Join(t.TempDir(), "dump")
		f, err := os.Create(path)
		require.NoError(t, err)
		head := bytes.Clone(good[:2*4096])
		le.PutUint32(head[436:], uint32(blocks))
		le.PutUint64(head[4096+96:], tt.pfns)
		_, err = f.Write(head)
		require.NoError(t, err)
		bits := []byte{1}
		if tt.bits != nil {
			bits = bytes.Repeat(tt.bits, 1<<20)
		}
		_, err = f.WriteAt(bits, 2*4096)
		require.NoError(t, err)
		require.NoError(t, f.Truncate(int64(blocks+100)*4096))
		require.NoError(t, f.Close())
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err = look(t, path)
		runtime.ReadMemStats(&after)
		if tt.want == nil {
			require.NoError(t, err, name)
		} else {
			require.ErrorIs(t, err, tt.want, name)
		}
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(48<<20), name)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(sized(f, kdump.Zlib, 1))
	f.Add(sized(f, kdump.Zstd, 1))
	f.Add(flattened(sized(f, kdump.Zlib, 1)))
	f.Fuzz(func(t *testing.T, b []byte) {
		begin := time.Now()
		err := lookBytes(t, b)
		if d := time.Since(begin); d > 5*time.Second {
			t.Fatalf("%v: %v", d, err)
		}
	})
}
