package kcore

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/elfhdr"
	"github.com/ovmigrate/ovmigrate/vmi/internal/elfnote"
)

// core is a file as /proc/kcore begins: a note, then segments, whose bytes follow.
func core(segments ...elf.Prog64) []byte {
	notes := elfnote.Append(nil, "CORE", 1, make([]byte, 336))
	notes = elfnote.Append(notes, "VMCOREINFO", 0, []byte("OSRELEASE=6.1\n"))
	var b bytes.Buffer
	n := len(segments) + 1
	start := uint64(elfhdr.EhdrSize + n*elfhdr.PhdrSize)
	binary.Write(&b, binary.LittleEndian, elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, Type: uint16(elf.ET_CORE), Machine: uint16(elf.EM_X86_64),
		Phoff: elfhdr.EhdrSize, Phentsize: elfhdr.PhdrSize, Phnum: uint16(n),
	})
	binary.Write(&b, binary.LittleEndian, elf.Prog64{Type: uint32(elf.PT_NOTE), Off: start, Filesz: uint64(len(notes))})
	for _, s := range segments {
		s.Type, s.Memsz = uint32(elf.PT_LOAD), s.Filesz
		binary.Write(&b, binary.LittleEndian, s)
	}
	b.Write(notes)
	return b.Bytes()
}

// open reads b as if it were /proc/kcore, and flags as /proc/kpageflags.
func open(b, flags []byte) (*File, error) {
	f := &File{f: bytes.NewReader(b), close: func() error { return nil }}
	if flags != nil {
		f.flags = bytes.NewReader(flags)
	}
	return f, f.parse()
}

func TestRead(t *testing.T) {
	b := core(
		elf.Prog64{Off: 1 << 46, Paddr: ^uint64(0), Filesz: 1 << 45},       // vmalloc
		elf.Prog64{Off: 0x10000, Vaddr: 1 << 63, Paddr: 0, Filesz: 0x4000}, // direct map
		elf.Prog64{Off: 0x11000, Paddr: 0x1000, Filesz: 0x1000},            // kernel image, in it
		elf.Prog64{Off: 0x20000, Paddr: 0x100000, Filesz: 0x2000},
	)
	b = append(b, make([]byte, 0x22000-len(b))...)
	for i := 0x10000; i < 0x11000; i++ {
		b[i] = 1
	}
	b[0x13010] = 3
	flags := make([]byte, 8*0x102)
	binary.NativeEndian.PutUint64(flags[0:], kpfOffline)       // not shown as zeros, so what is there is
	binary.NativeEndian.PutUint64(flags[8*2:], 1<<5)           // a page of zeros
	binary.NativeEndian.PutUint64(flags[8*0x101:], kpfOffline) // given away
	f, err := open(b, flags)
	require.NoError(t, err)
	require.Equal(t, []vmi.Range{{Start: 0, End: 0x4000}, {Start: 0x100000, End: 0x102000}}, f.Ranges())
	require.Equal(t, "OSRELEASE=6.1\n", string(f.VMCoreInfo()))
	p := make([]byte, 0x4000)
	_, err = f.ReadPhys(p, 0)
	require.NoError(t, err)
	require.Equal(t, b[0x10000:0x14000], p)

	var fault *vmi.FaultError
	n, err := f.ReadPhys(p[:0x1800], 0x100800)
	require.Equal(t, 0x800, n)
	require.ErrorAs(t, err, &fault)
	require.EqualValues(t, 0x101000, fault.Addr)
	require.Equal(t, 0x1000, fault.Len)
	require.ErrorIs(t, err, ErrHidden)
	require.ErrorIs(t, err, vmi.ErrExcluded)
	n, err = f.ReadPhys(p[:8], 0x101010)
	require.Zero(t, n)
	require.ErrorIs(t, err, ErrHidden)
	_, err = f.ReadPhys(p, 0x4000)
	require.ErrorAs(t, err, &fault)

	f, err = open(b, nil)
	require.NoError(t, err)
	_, err = f.ReadPhys(p[:8], 0x101010)
	require.NoError(t, err, "without kpageflags nobody can tell")
	f.f = broken{}
	n, err = f.ReadPhys(p, 0)
	require.Equal(t, 0x800, n)
	require.ErrorAs(t, err, &fault)
	require.EqualValues(t, 0x800, fault.Addr)
	require.ErrorIs(t, err, errBroken)
}

type broken struct{}

var errBroken = errors.New("EFAULT")

func (broken) ReadAt(p []byte, _ int64) (int, error) { return min(len(p), 0x800), errBroken }

func TestBad(t *testing.T) {
	good := core(elf.Prog64{Off: 0x1000, Paddr: 0x1000, Filesz: 0x1000})
	for name, b := range map[string][]byte{
		"empty":      nil,
		"cut":        good[:elfhdr.EhdrSize+20],
		"no address": core(elf.Prog64{Off: 0x1000, Filesz: 0x1000}),
		"no RAM":     core(elf.Prog64{Off: 0x1000, Paddr: ^uint64(0), Filesz: 0x1000}),
		"beyond":     core(elf.Prog64{Off: 1 << 63, Paddr: 1, Filesz: 0x1000}),
	} {
		_, err := open(b, nil)
		require.Error(t, err, name)
	}
}

// Only what procfs has is the running kernel: a file of that name is a dump.
func TestSniff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kcore")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.False(t, isKcore(path, false))
	require.False(t, isKcore("/proc", true))
	require.False(t, isKcore("/proc/self/stat", false))
	_, err := Open(t.Context(), "/proc/kcore", &vmi.Options{Writable: true})
	require.ErrorContains(t, err, "cannot be written")
	_, err = Open(t.Context(), path+"x", nil)
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func FuzzParse(f *testing.F) {
	f.Add(core(elf.Prog64{Off: 0x100, Paddr: 0x1000, Filesz: 0x100}), []byte{1, 2, 3})
	f.Add(core(elf.Prog64{Off: 0x100, Paddr: ^uint64(0), Filesz: 1 << 60}, elf.Prog64{Paddr: 1, Filesz: 64}), make([]byte, 64))
	f.Fuzz(func(t *testing.T, b, flags []byte) {
		file, err := open(b, flags)
		if err != nil {
			return
		}
		file.VMCoreInfo()
		p := make([]byte, 64)
		for _, r := range file.Ranges() {
			if n, err := file.ReadPhys(p, r.Start); (n < len(p)) != (err != nil) {
				t.Fatalf("%d bytes, %v", n, err)
			}
		}
	})
}
