package kdump

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"testing"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// lzoPage is a block of a directory, compressed by liblzo for makedumpfile -l.
const lzoPage = "0024770300000c0001022e000000050300000c0002022e2e000078030000dc0f1402362e312e302d35302d636c" +
	"6f75642d616d643634000020000000000000000000000000000000aa04000b0000000000000c0000deb1af01ec110000"

// directory is what lzoPage decompresses to, put together by hand.
func directory() []byte {
	b := make([]byte, vmi.PageSize)
	at := 0
	for _, e := range []struct {
		inode uint32
		len   uint16
		name  string
	}{{0x377, 12, "."}, {0x305, 12, ".."}, {0x378, 0xfdc, "6.1.0-50-cloud-amd64"}} {
		binary.LittleEndian.PutUint32(b[at:], e.inode)
		binary.LittleEndian.PutUint16(b[at+4:], e.len)
		b[at+6], b[at+7] = byte(len(e.name)), 2
		copy(b[at+8:], e.name)
		at += int(e.len)
	}
	copy(b[at:], "\x00\x00\x00\x00\x0c\x00\x00\xde\xb1\xaf\x01\xec")
	return b
}

func deflate(b []byte) []byte {
	var out bytes.Buffer
	w := zlib.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func zstandard(b []byte) []byte {
	e, _ := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	return e.EncodeAll(b, nil)
}

func TestCodecs(t *testing.T) {
	want := directory()
	lzo, err := hex.DecodeString(lzoPage)
	require.NoError(t, err)
	long := make([]byte, 1<<20) // a bomb: little data, many pages
	for _, tt := range []struct {
		name  string
		flags uint32
		data  []byte
		long  []byte
	}{
		{"zlib", flagZlib, deflate(want), deflate(long)},
		{"lzo", flagLZO, lzo, nil},
		{"snappy", flagSnappy, snappy.Encode(nil, want), binary.AppendUvarint(nil, 1<<32-1)},
		{"zstd", flagZstd, zstandard(want), zstandard(long)},
		{"none", 0, want, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCodecs(vmi.PageSize)
			read := func(data []byte) ([]byte, error) {
				m := mapBytes(t, append([]byte("xx"), data...))
				defer m.Close()
				b := make([]byte, vmi.PageSize)
				return b, c.page(&input{m: m, size: m.Size()}, desc{2, uint32(len(data)), tt.flags}, b)
			}
			got, err := read(tt.data)
			require.NoError(t, err)
			require.Equal(t, want, got)
			for n := range min(len(tt.data), 200) {
				if n == 0 {
					continue
				}
				_, err := read(tt.data[:len(tt.data)-n])
				require.ErrorIs(t, err, ErrCorrupt, "cut by %d", n)
				require.NotContains(t, err.Error(), "\n")
			}
			if tt.long != nil {
				_, err := read(tt.long)
				require.ErrorIs(t, err, ErrCorrupt)
			}
			if tt.flags == flagZlib || tt.flags == flagZstd { // those that have a checksum
				for i := range len(tt.data) {
					bad := bytes.Clone(tt.data)
					bad[i] ^= 0x10
					if got, err := read(bad); err == nil {
						require.Equal(t, want, got, "byte %d", i)
					}
				}
			}
			got, err = read(tt.data)
			require.NoError(t, err, "after errors")
			require.Equal(t, want, got)
		})
	}
	m := mapBytes(t, make([]byte, 9000))
	defer m.Close()
	in := &input{m: m, size: m.Size()}
	b := make([]byte, vmi.PageSize)
	for _, d := range []desc{{0, 0, 0}, {0, 4097, 0}, {0, 100, 0}, {0, 100, 3}, {0, 100, 0x40}, {0, 1<<32 - 1, flagZlib}} {
		require.ErrorIs(t, newCodecs(vmi.PageSize).page(in, d, b), ErrCorrupt, "%+v", d)
	}
	require.ErrorIs(t, newCodecs(vmi.PageSize).page(in, desc{^uint64(0) - 3, 4096, 0}, b), vmi.ErrTruncated)
}

func BenchmarkCodecs(b *testing.B) {
	lzo, _ := hex.DecodeString(lzoPage)
	page := make([]byte, vmi.PageSize)
	for name, x := range map[string]desc{
		"zlib": {0, 0, flagZlib}, "snappy": {0, 0, flagSnappy}, "zstd": {0, 0, flagZstd}, "lzo": {0, 0, flagLZO},
	} {
		data := map[string][]byte{"zlib": deflate(directory()), "snappy": snappy.Encode(nil, directory()), "zstd": zstandard(directory()), "lzo": lzo}[name]
		b.Run(name, func(b *testing.B) {
			c := newCodecs(vmi.PageSize)
			s := c.scratch.Get().(*scratch)
			b.SetBytes(vmi.PageSize)
			b.ReportAllocs()
			for b.Loop() {
				if err := c.decompress(s, x.flags, data, page); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
