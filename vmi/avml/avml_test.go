package avml

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/klauspost/compress/snappy"
	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// record makes a range of memory as avml does: its data, 64 KiB at a time, each
// compressed if that saves an eighth, as Snappy's framing format and the snap crate
// have it. That a reader and a writer by the same hand agree shows less than a dump
// by avml itself would, which Debian does not have.
func record(start uint64, data []byte) []byte {
	var frames []byte
	frames = append(frames, "\xff\x06\x00\x00sNaPpY"...)
	for rest := data; len(rest) > 0; {
		part := rest[:min(len(rest), 65536)]
		rest = rest[len(part):]
		typ, body := byte(1), part
		if c := snappy.Encode(nil, part); len(c) < len(part)-len(part)/8 {
			typ, body = 0, c
		}
		frames = append(frames, chunkOf(typ, part, body)...)
	}
	return wrap(start, uint64(len(data)), frames)
}

// chunkOf is a chunk of the framing format that stands for part.
func chunkOf(typ byte, part, body []byte) []byte {
	c := crc32.Checksum(part, crc32.MakeTable(crc32.Castagnoli))
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(body)+4)<<8|uint32(typ))
	b = binary.LittleEndian.AppendUint32(b, (c>>15|c<<17)+0xa282ead8)
	return append(b, body...)
}

// wrap puts header and trailer around the chunks of n bytes at start.
func wrap(start, n uint64, frames []byte) []byte {
	le := binary.LittleEndian
	b := append([]byte("AVML"), 2, 0, 0, 0)
	b = le.AppendUint64(b, start)
	b = le.AppendUint64(b, start+n-1)
	b = le.AppendUint64(b, 0)
	return le.AppendUint64(append(b, frames...), uint64(len(frames)))
}

// content is memory of which a part compresses.
func content(n int, seed uint64) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(seed, 0))
	for i := range b {
		if i/5000%3 == 0 || i >= 100000 && i < 170000 {
			b[i] = byte(rng.Uint32())
		}
	}
	return b
}

func openBytes(t testing.TB, b []byte) (vmi.Image, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dump")
	require.NoError(t, os.WriteFile(path, b, 0o600))
	m, err := vmi.Open(t.Context(), path, nil)
	if err == nil {
		t.Cleanup(func() { m.Close() })
	}
	return m, err
}

func TestRead(t *testing.T) {
	low, mid, high := content(300000, 1), content(4096, 2), content(1<<20, 3)
	b := append(record(1<<32, high), record(0x1000, low)...)
	b = append(b, record(0x1000+300000, mid)...) // goes on where the one before ends
	m, err := openBytes(t, b)
	require.NoError(t, err)
	end := vmi.Phys(0x1000 + 300000 + 4096)
	require.Equal(t, []vmi.Range{{Start: 0x1000, End: end}, {Start: 1 << 32, End: 1<<32 + 1<<20}}, m.Ranges())
	all := append(bytes.Clone(low), mid...)
	got := make([]byte, len(all))
	_, err = m.ReadPhys(got, 0x1000)
	require.NoError(t, err)
	require.True(t, bytes.Equal(all, got))

	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 1))
			for range 300 {
				at, n := rng.IntN(1<<20), rng.IntN(5000)
				p := make([]byte, n)
				n, err := m.ReadPhys(p, vmi.Phys(1<<32+at))
				if want := high[at:min(at+len(p), 1<<20)]; !bytes.Equal(want, p[:n]) || (err == nil) != (n == len(p)) {
					t.Errorf("%d bytes at %#x: %d, %v", len(p), at, n, err)
					return
				}
			}
		})
	}
	wg.Wait()

	p := make([]byte, 16)
	n, err := m.ReadPhys(p, end-8)
	require.Equal(t, 8, n)
	var fault *vmi.FaultError
	require.ErrorAs(t, err, &fault)
	require.Equal(t, vmi.FaultError{Addr: end, Len: 8}, *fault)
	for _, a := range []vmi.Phys{0, 0xfff, 1<<32 - 1, 1<<32 + 1<<20, ^vmi.Phys(0)} {
		n, err := m.ReadPhys(p[:1], a)
		require.Zero(t, n)
		require.ErrorAs(t, err, &fault)
	}
	require.NoError(t, m.Close())
	_, err = m.ReadPhys(make([]byte, 1<<19), 1<<32)
	require.ErrorIs(t, err, fs.ErrClosed)
}

// A bit that flipped is found by the sum, and what lies in other chunks is readable.
func TestDamage(t *testing.T) {
	data := content(200000, 4)
	b := record(0, data)
	b[len(b)-8-3] ^= 0x10
	m, err := openBytes(t, b)
	require.NoError(t, err)
	p := make([]byte, 200000)
	n, err := m.ReadPhys(p, 0)
	require.Equal(t, 196608, n)
	require.ErrorIs(t, err, ErrCorrupt)
	require.True(t, bytes.Equal(data[:n], p[:n]))
}

func TestBadFiles(t *testing.T) {
	good := record(0x1000, content(150000, 5))
	edit := func(at int, with ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], with)
		return b
	}
	tiny := func(n int) []byte {
		var b []byte
		for range n {
			b = append(b, chunkOf(1, []byte{7}, []byte{7})...)
		}
		return wrap(0, uint64(n), b)
	}
	for name, tt := range map[string]struct {
		b    []byte
		want error
	}{
		"cut in header":      {good[:20], vmi.ErrTruncated},
		"cut in chunk":       {good[:len(good)/2], vmi.ErrTruncated},
		"cut in trailer":     {good[:len(good)-3], vmi.ErrTruncated},
		"rest":               {append(bytes.Clone(good), "rest"...), vmi.ErrTruncated},
		"something behind":   {append(bytes.Clone(good), make([]byte, 64)...), vmi.ErrFormat},
		"version":            {edit(4, 3), vmi.ErrFormat},
		"reversed":           {edit(16, 0, 0), vmi.ErrFormat},
		"too high":           {edit(23, 0x80), vmi.ErrFormat},
		"too short":          {edit(16, 0xff, 0x1f, 0), vmi.ErrFormat},
		"identifier":         {edit(36, 'S'), vmi.ErrFormat},
		"type of chunk":      {edit(42, 0x10), vmi.ErrFormat},
		"too large a chunk":  {edit(45, 0xff), vmi.ErrTruncated},
		"trailer":            {edit(len(good)-8, 1), vmi.ErrFormat},
		"twice":              {append(bytes.Clone(good), good...), vmi.ErrFormat},
		"tiny chunks":        {tiny(100), vmi.ErrFormat},
		"chunks of nothing":  {wrap(0, 4096, bytes.Repeat([]byte{0xfe, 0, 0, 0}, 1000)), vmi.ErrFormat},
		"what is not so":     {wrap(0, 65536, chunkOf(0, nil, []byte{0x80, 0x80, 4})), vmi.ErrFormat},
		"more than 64 KiB":   {wrap(0, 1<<20, chunkOf(0, nil, append([]byte{0x80, 0x80, 0x40}, make([]byte, 60000)...))), vmi.ErrFormat},
		"a length unending":  {wrap(0, 1<<20, chunkOf(0, nil, bytes.Repeat([]byte{0xff}, 100))), vmi.ErrFormat},
		"LiME range in AVML": {append(bytes.Clone(good), append([]byte("EMiL\x01"), make([]byte, 27)...)...), vmi.ErrFormat},
	} {
		_, err := openBytes(t, tt.b)
		require.ErrorIs(t, err, tt.want, name)
		require.NotContains(t, err.Error(), "\n", name)
	}
	path := filepath.Join(t.TempDir(), "dump")
	require.NoError(t, os.WriteFile(path, good, 0o600))
	_, err := vmi.Open(t.Context(), path, &vmi.Options{Writable: true})
	require.ErrorContains(t, err, "cannot be written")
}

func FuzzOpen(f *testing.F) {
	f.Add(record(0x1000, content(9000, 1)))
	f.Add(append(record(0, make([]byte, 70000)), record(1<<32, content(100, 2))...))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := openBytes(t, b)
		if err != nil {
			return
		}
		p := make([]byte, 64)
		last := vmi.Phys(0)
		for _, r := range m.Ranges() {
			if r.Len() == 0 || r.Start < last {
				t.Fatalf("ranges %v", m.Ranges())
			}
			last = r.End
			for _, a := range []vmi.Phys{r.Start, r.End - 1} {
				if n, err := m.ReadPhys(p, a); n < len(p) && err == nil {
					t.Fatalf("%d bytes at %#x", n, uint64(a))
				}
			}
		}
	})
}

func BenchmarkRead(b *testing.B) {
	m, err := openBytes(b, record(0, content(8<<20, 1)))
	require.NoError(b, err)
	for name, stride := range map[string]int{"8B near": 8, "8B far": 7919 * 64} {
		b.Run(name, func(b *testing.B) {
			var p [8]byte
			for i := 0; b.Loop(); i++ {
				if _, err := m.ReadPhys(p[:], vmi.Phys(i*stride)%(8<<20-8)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
