package debugfile

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel/types"
)

const program = `
#include <stddef.h>
struct thing { int a; unsigned b : 3; char name[8]; } a_thing;
int __per_cpu_start;
__attribute__((section(".rodata"))) const char banner[] = "Linux version 9.9.9 (me) (cc) #1\n";
int _start(struct thing *t) { return t->a + __per_cpu_start + banner[0]; }
`

// build links program with the given flags and returns the file.
func build(t testing.TB, flags ...string) string {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skipf("no C compiler: %v", err)
	}
	dir := t.TempDir()
	src, bin := filepath.Join(dir, "p.c"), filepath.Join(dir, "p")
	require.NoError(t, os.WriteFile(src, []byte(program), 0o600))
	args := append([]string{"-nostdlib", "-static", "-Wl,--build-id=sha1", "-o", bin, src}, flags...)
	out, err := exec.Command(gcc, args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return bin
}

func TestOpenELF(t *testing.T) {
	for _, flags := range [][]string{{"-g"}, {"-gdwarf-4"}, {"-g", "-gz=zlib"}, {"-g", "-gz=zlib-gnu"}} {
		f, err := Open(build(t, flags...))
		require.NoError(t, err)
		require.Equal(t, Vmlinux, f.Kind)
		require.Len(t, f.BuildID, 20)
		require.Equal(t, "Linux version 9.9.9 (me) (cc) #1", f.Banner)
		syms, err := f.Symbols()
		require.NoError(t, err)
		addr, ok := syms.Lookup("a_thing")
		require.True(t, ok)
		src, err := f.Types()
		require.NoError(t, err, flags)
		thing, err := src.Struct("thing")
		require.NoError(t, err)
		require.Equal(t, 16, thing.Size)
		at, typ, err := src.(*types.DWARF).Variable("a_thing")
		require.NoError(t, err)
		require.Equal(t, addr, at)
		require.Same(t, thing, typ)
		require.NoError(t, f.Close())
		require.NoError(t, f.Close())
	}
	f, err := Open(build(t, "-s"))
	require.NoError(t, err)
	defer f.Close()
	_, err = f.Types()
	require.ErrorIs(t, err, ErrNothing)
	_, err = f.Symbols()
	require.ErrorIs(t, err, ErrNothing)
}

// bootImage wraps a kernel as arch/x86/boot does.
func bootImage(compressed []byte) []byte {
	const sects = 1
	b := make([]byte, (sects+1)*512)
	b[setupSects] = sects
	copy(b[bootMagic:], "HdrS")
	binary.LittleEndian.PutUint32(b[payloadOffset:], 16)
	binary.LittleEndian.PutUint32(b[payloadLength:], uint32(len(compressed)))
	return append(append(b, make([]byte, 16)...), compressed...)
}

func TestOpenBootImage(t *testing.T) {
	elfFile, err := os.ReadFile(build(t, "-s"))
	require.NoError(t, err)
	var gz, lz bytes.Buffer
	w := gzip.NewWriter(&gz)
	_, err = w.Write(elfFile)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	l := lz4.NewWriter(&lz)
	require.NoError(t, l.Apply(lz4.LegacyOption(true)))
	_, err = l.Write(elfFile)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	z, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	size := binary.LittleEndian.AppendUint32(nil, uint32(len(elfFile))) // behind all but gzip

	path := filepath.Join(t.TempDir(), "vmlinuz")
	for name, body := range map[string][]byte{
		"gzip": gz.Bytes(), "zstd": append(z.EncodeAll(elfFile, nil), size...), "lz4": append(lz.Bytes(), size...),
	} {
		require.NoError(t, os.WriteFile(path, bootImage(body), 0o600))
		f, err := Open(path)
		require.NoError(t, err, name)
		require.Equal(t, Vmlinuz, f.Kind)
		require.Len(t, f.BuildID, 20, name)
		f.Close()
	}
	for name, body := range map[string][]byte{"xz": []byte("\xfd7zXZ\x00..."), "unknown": []byte("????????"), "cut": gz.Bytes()[:20]} {
		require.NoError(t, os.WriteFile(path, bootImage(body), 0o600))
		_, err := Open(path)
		require.ErrorIs(t, err, ErrFormat, name)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"empty": "", "text": "hello\nworld\n", "ELF header": "\x7fELF\x02\x01\x01", "zeros": strings.Repeat("\x00", 4096),
	} {
		path := filepath.Join(dir, "file")
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		_, err := Open(path)
		require.ErrorIs(t, err, ErrFormat, name)
	}
	_, err := Open(dir)
	require.ErrorIs(t, err, ErrFormat)
	_, err = Open(filepath.Join(dir, "missing"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

// FuzzOpen opens damaged files and reads all types and symbols in them.
func FuzzOpen(f *testing.F) {
	for _, flags := range [][]string{{"-g"}, {"-gdwarf-4"}, {"-g", "-gz=zlib"}} {
		b, err := os.ReadFile(build(f, flags...))
		require.NoError(f, err)
		f.Add(b, []byte{})
	}
	f.Fuzz(func(t *testing.T, b, changes []byte) {
		b = bytes.Clone(b)
		for ; len(changes) >= 4 && len(b) > 0; changes = changes[4:] {
			b[int(binary.LittleEndian.Uint32(changes)>>8)%len(b)] = changes[0]
		}
		file := &File{Path: "fuzzed"}
		if file.open(b) != nil || file.elf == nil {
			return
		}
		_, _ = file.readSymbols()
		file.syms = file.readSymbols
		src, err := file.readTypes()
		if err != nil {
			return
		}
		if d, ok := src.(*types.DWARF); ok {
			for _, name := range d.Names() {
				typ, err := d.Struct(name)
				if err != nil {
					continue
				}
				_, _ = typ.SizeOf()
				_, _ = typ.Lookup("a.b[1]")
				for i := range typ.Members {
					if mt, err := typ.Members[i].Type(); err == nil {
						_ = mt.String()
						_, _ = mt.SizeOf()
					}
				}
			}
		}
	})
}
