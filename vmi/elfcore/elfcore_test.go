package elfcore

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/internal/bareqemu"
	"github.com/ovmigrate/ovmigrate/vmi/internal/elfhdr"
	"github.com/ovmigrate/ovmigrate/vmi/qmp"
)

// core writes an ELF core: the headers in front, then data, whose first byte is
// offset 0 of the progs' off.
func core(progs []elfhdr.Prog, data []byte) []byte {
	var b bytes.Buffer
	le := binary.LittleEndian
	xnum := len(progs) >= elfhdr.PNXNum
	h := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1},
		Type:  uint16(elf.ET_CORE), Machine: uint16(elf.EM_X86_64), Version: 1,
		Phoff: elfhdr.EhdrSize, Ehsize: elfhdr.EhdrSize, Phentsize: elfhdr.PhdrSize, Phnum: uint16(len(progs)),
	}
	start := uint64(elfhdr.EhdrSize + elfhdr.PhdrSize*len(progs))
	if xnum {
		h.Phnum, h.Shoff, h.Shnum, h.Shentsize = elfhdr.PNXNum, start, 1, elfhdr.ShdrSize
		start += elfhdr.ShdrSize
	}
	binary.Write(&b, le, h)
	for _, p := range progs {
		binary.Write(&b, le, elf.Prog64{Type: uint32(p.Type), Off: start + p.Off, Paddr: p.Phys, Filesz: p.Filesz, Memsz: p.Memsz})
	}
	if xnum {
		binary.Write(&b, le, elf.Section64{Info: uint32(len(progs))})
	}
	b.Write(data)
	return b.Bytes()
}

func note(name string, typ uint32, desc []byte) []byte {
	pad := func(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }
	var b []byte
	for _, n := range []uint32{uint32(len(name) + 1), uint32(len(desc)), typ} {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	b = append(b, pad([]byte(name+"\x00"))...)
	return append(b, pad(desc)...)
}

func openBytes(t testing.TB, b []byte) (vmi.Image, error) {
	path := filepath.Join(t.TempDir(), "core")
	require.NoError(t, os.WriteFile(path, b, 0o600))
	m, err := vmi.Open(context.Background(), path, nil)
	if err == nil {
		t.Cleanup(func() { m.Close() })
	}
	return m, err
}

func load(phys, off, n uint64) elfhdr.Prog {
	return elfhdr.Prog{Type: elf.PT_LOAD, Phys: phys, Off: off, Filesz: n, Memsz: n}
}

func data(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7 / 256)
	}
	return b
}

func TestOverlapsAndHoles(t *testing.T) {
	d := data(0x8000)
	m, err := openBytes(t, core([]elfhdr.Prog{
		load(0x4000, 0x3000, 0x2000), // twice, as with paging
		load(0x1000, 0, 0x2000),
		load(0x2000, 0x1000, 0x2000), // goes on where the first ends
		load(0x4000, 0x3000, 0x1000),
		load(^uint64(0), 0x6000, 0x1000), // no RAM
		{Type: elf.PT_LOAD, Phys: 0x8000, Off: 0x7000, Filesz: 0x800, Memsz: 0x1000}, // left out in part
		{Type: elf.PT_LOAD, Phys: 0xa000, Memsz: 0x1000},                             // left out
	}, d))
	require.NoError(t, err)
	require.Equal(t, []vmi.Range{{Start: 0x1000, End: 0x6000}, {Start: 0x8000, End: 0x8800}}, m.Ranges())
	got := make([]byte, 0x5000)
	_, err = m.ReadPhys(got, 0x1000)
	require.NoError(t, err)
	require.Equal(t, d[:0x5000], got)
	require.Equal(t, d[:0x5000], m.(vmi.Viewer).View(0x1000, 0x5000), "joined in the file, so one view")
	n, err := m.ReadPhys(got[:0x1000], 0x8000)
	require.Equal(t, 0x800, n)
	var fault *vmi.FaultError
	require.ErrorAs(t, err, &fault)
	require.EqualValues(t, 0x8800, fault.Addr)
	_, err = m.ReadPhys(got[:1], 0xa000)
	require.ErrorAs(t, err, &fault)
	_, isWriter := m.(vmi.Writer)
	require.False(t, isWriter)
	_, err = m.(vmi.CPUs).CPUs(t.Context())
	require.ErrorIs(t, err, ErrNoCPUs)
	require.Nil(t, m.(vmi.Notes).VMCoreInfo())
	require.NoError(t, m.Close())
	_, err = m.ReadPhys(got, 0x1000)
	require.ErrorIs(t, err, fs.ErrClosed)
}

func TestManySegments(t *testing.T) {
	const n = 70000
	var progs []elfhdr.Prog
	for i := range uint64(n) {
		progs = append(progs, load(i*0x2000, i*16, 16))
	}
	d := make([]byte, n*16)
	for i := range n {
		binary.LittleEndian.PutUint64(d[i*16:], uint64(i))
	}
	m, err := openBytes(t, core(progs, d))
	require.NoError(t, err)
	require.Len(t, m.Ranges(), n)
	for _, i := range []uint64{0, 1, 65535, n - 1} {
		var p [8]byte
		_, err := m.ReadPhys(p[:], vmi.Phys(i*0x2000))
		require.NoError(t, err)
		require.Equal(t, i, binary.LittleEndian.Uint64(p[:]))
	}
}

func TestNotes(t *testing.T) {
	status := make([]byte, 336)
	for i := range 27 {
		binary.LittleEndian.PutUint64(status[112+8*i:], uint64(0x100+i))
	}
	notes := append(note("CORE", 1, status), note("VMCOREINFO", 0, []byte("OSRELEASE=6.1.0\n"))...)
	m, err := openBytes(t, core([]elfhdr.Prog{load(0, 0, 0x1000), {Type: elf.PT_NOTE, Off: 0x1000, Filesz: uint64(len(notes))}},
		append(data(0x1000), notes...)))
	require.NoError(t, err)
	require.Equal(t, "OSRELEASE=6.1.0\n", string(m.(vmi.Notes).VMCoreInfo()))
	cpus, err := m.(vmi.CPUs).CPUs(t.Context())
	require.NoError(t, err)
	require.Len(t, cpus, 1)
	c := cpus[0]
	require.EqualValues(t, 0x110, c.RIP)
	require.EqualValues(t, 0x113, c.GPR[4], "rsp")
	require.EqualValues(t, 0x10a, c.GPR[0], "rax")
	require.EqualValues(t, 0x100, c.GPR[15], "r15")
	require.EqualValues(t, 0x115, c.FSBase)
	require.Zero(t, c.Known)
}

func TestBadFiles(t *testing.T) {
	good := core([]elfhdr.Prog{load(0, 0, 0x1000), {Type: elf.PT_NOTE, Off: 0x1000, Filesz: 100}}, data(0x2000))
	edit := func(at int, with ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], with)
		return b
	}
	for _, tt := range []struct {
		name string
		b    []byte
		want error
	}{
		{"cut in memory", good[:elfhdr.EhdrSize+2*elfhdr.PhdrSize+0x800], ErrTruncated},
		{"cut in notes", good[:elfhdr.EhdrSize+2*elfhdr.PhdrSize+0x1000+50], ErrTruncated},
		{"cut in program headers", good[:elfhdr.EhdrSize+elfhdr.PhdrSize+8], ErrTruncated},
		{"cut in header", good[:40], ErrTruncated},
		{"executable", edit(16, byte(elf.ET_EXEC)), vmi.ErrFormat},
		{"32 bit", edit(4, byte(elf.ELFCLASS32)), vmi.ErrFormat},
		{"big endian", edit(5, byte(elf.ELFDATA2MSB)), vmi.ErrFormat},
		{"odd header size", edit(54, 1), vmi.ErrFormat},
		{"no section for the number", edit(56, 0xff, 0xff), nil},
		{"headers far away", edit(32, 0, 0, 0, 0, 0, 0, 0, 0xff), ErrTruncated},
		{"no program headers", edit(56, 0, 0), nil},
		{"no memory", edit(elfhdr.EhdrSize, byte(elf.PT_NULL)), nil},
	} {
		_, err := openBytes(t, tt.b)
		require.Error(t, err, tt.name)
		require.NotContains(t, err.Error(), "\n", tt.name)
		if tt.want != nil {
			require.ErrorIs(t, err, tt.want, tt.name)
		}
	}
	path := filepath.Join(t.TempDir(), "core")
	require.NoError(t, os.WriteFile(path, good, 0o600))
	_, err := vmi.Open(t.Context(), path, &vmi.Options{Writable: true})
	require.ErrorContains(t, err, "cannot be written")
	_, err = vmi.Open(t.Context(), path+"?below4g=2G", nil)
	require.ErrorContains(t, err, "no parameters")
}

func FuzzOpen(f *testing.F) {
	f.Add(core([]elfhdr.Prog{load(0, 0, 0x100), load(0x80, 0x80, 0x100)}, data(0x200)))
	f.Add(core([]elfhdr.Prog{load(1<<51, 0, 0x100), {Type: elf.PT_NOTE, Filesz: 0x40}}, note("VMCOREINFO", 0, data(0x100))))
	f.Add(core([]elfhdr.Prog{{Type: elf.PT_NOTE, Filesz: 0x200}, load(0, 0, 4)}, note("QEMU", 0, append([]byte{1, 0, 0, 0, 0xb8, 1, 0, 0}, data(0x1b0)...))))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := openBytes(t, b)
		if err != nil {
			return
		}
		m.(vmi.CPUs).CPUs(t.Context())
		m.(vmi.Notes).VMCoreInfo()
		p := make([]byte, 64)
		for i, r := range m.Ranges() {
			if n, err := m.ReadPhys(p[:min(64, r.Len())], r.Start); err != nil {
				t.Fatalf("range %v: %d bytes, %v", r, n, err)
			}
			if i > 0 && m.Ranges()[i-1].End >= r.Start {
				t.Fatalf("ranges %v", m.Ranges())
			}
		}
	})
}

// What QEMU dumps reads back as what QEMU has in memory.
func TestQEMUDump(t *testing.T) {
	low, lowData := bareqemu.Content(t, 8192, 1)
	high, highData := bareqemu.Content(t, 8192, 2)
	args := []string{"-M", "q35,max-ram-below-4g=64M", "-m", "128M", "-smp", "2", "-cpu", "max"}
	args = append(args, bareqemu.Load(low, 32<<20)...)
	args = append(args, bareqemu.Load(high, 4<<30+4096)...)
	q := bareqemu.Start(t, args...)
	c, err := qmp.Dial(t.Context(), q.QMP)
	require.NoError(t, err)
	defer c.Close()
	for _, paging := range []bool{false, true} {
		path := filepath.Join(q.Dir, "dump")
		require.NoError(t, c.Execute(t.Context(), "dump-guest-memory",
			map[string]any{"paging": paging, "protocol": "file:" + path}, nil))
		m, err := vmi.Open(t.Context(), path, nil)
		require.NoError(t, err)
		defer m.Close()
		cpus, err := m.(vmi.CPUs).CPUs(t.Context())
		require.NoError(t, err)
		require.Len(t, cpus, 2)
		for i, cpu := range cpus {
			require.Equal(t, i, cpu.ID)
			require.EqualValues(t, 0xfff0, cpu.RIP)
			require.EqualValues(t, 0x60000010, cpu.CR0)
			require.Equal(t, vmi.KnownControl|vmi.KnownKGSBase, cpu.Known)
		}
		if paging {
			continue // no page tables before the first instruction: next to nothing is mapped
		}
		for _, tt := range []struct {
			addr vmi.Phys
			want []byte
		}{{32 << 20, lowData}, {4<<30 + 4096, highData}} {
			got := make([]byte, len(tt.want))
			_, err := m.ReadPhys(got, tt.addr)
			require.NoError(t, err)
			require.True(t, bytes.Equal(tt.want, got), "%#x", tt.addr)
		}
		last := m.Ranges()[len(m.Ranges())-1]
		require.EqualValues(t, 4<<30+64<<20, last.End)
		st, err := os.Stat(path)
		require.NoError(t, err)
		require.NoError(t, os.Truncate(path, st.Size()-1<<20)) // behind memory is a section table
		_, err = vmi.Open(t.Context(), path, nil)
		require.ErrorIs(t, err, ErrTruncated)
	}
}

func BenchmarkRead(b *testing.B) {
	m, err := openBytes(b, core([]elfhdr.Prog{load(0, 0, 8<<20)}, make([]byte, 8<<20)))
	require.NoError(b, err)
	for _, tt := range []struct {
		name string
		n    int
	}{{"8B", 8}, {"4KiB", 4096}, {"1MiB", 1 << 20}} {
		b.Run(tt.name, func(b *testing.B) {
			p := make([]byte, tt.n)
			b.SetBytes(int64(tt.n))
			for i := 0; b.Loop(); i++ {
				if _, err := m.ReadPhys(p, vmi.Phys(i*7919*8)%(7<<20)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
