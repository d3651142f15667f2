package cfi

import (
	"debug/elf"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// program is a static program, whose C library has all that compilers write.
func program(t testing.TB) *elf.File {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skipf("no compiler: %v", err)
	}
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a.c"), []byte("int main(void) { return 0; }\n"), 0o644))
	out, err := exec.CommandContext(t.Context(), gcc, "-static", "-o", filepath.Join(dir, "a"), filepath.Join(dir, "a.c")).CombinedOutput()
	require.NoError(t, err, "%s", out)
	f, err := elf.Open(filepath.Join(dir, "a"))
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// split returns the entries of an .eh_frame section with their places.
func split(t testing.TB, b []byte) map[int][]byte {
	t.Helper()
	all := map[int][]byte{}
	for at := 0; at+4 <= len(b); {
		n := int(binary.LittleEndian.Uint32(b[at:]))
		if n == 0 {
			break
		}
		all[at] = b[at : at+4+n]
		at += 4 + n
	}
	return all
}

// TestRealEntries finds every function of a C library described, and its caller at
// every instruction that matters.
func TestRealEntries(t *testing.T) {
	s := program(t).Section(".eh_frame")
	b, err := s.Data()
	require.NoError(t, err)
	read := func(addr uint64) (uint64, error) { return addr, nil }
	functions, signals, ends := 0, 0, 0
	entries := split(t, b)
	for at, fde := range entries {
		id := int(binary.LittleEndian.Uint32(fde[4:]))
		if id == 0 {
			continue
		}
		functions++
		e, err := ParseEH(entries[at+4-id], fde, s.Addr+uint64(at))
		require.NoError(t, err, "entry at %#x", at)
		require.Less(t, e.Begin(), e.End())
		require.Less(t, e.End(), uint64(1<<32))
		if e.Signal {
			signals++
		}
		for pc := e.Begin(); pc < e.End() && pc < e.Begin()+64; pc++ {
			regs := &Regs{}
			for i := range RA + 1 {
				regs.Set(i, 0x100000+0x1000*uint64(i))
			}
			switch err := e.Step(regs, pc, read); err {
			case nil:
				_, ok := regs.Get(RSP)
				require.True(t, ok)
			case ErrEnd:
				ends++
			default:
				require.NoError(t, err, "entry at %#x", at)
			}
		}
	}
	t.Logf("%d functions", functions)
	require.Greater(t, functions, 1000)
	require.Positive(t, signals)
	require.Positive(t, ends)
}

func TestRefused(t *testing.T) {
	common := []byte("\x14\x00\x00\x00\x00\x00\x00\x00\x01zR\x00\x01\x78\x10\x01\x1b\x0c\x07\x08\x90\x01\x00\x00")
	for name, program := range map[string]string{
		"restores what was not saved": "\x0b", "a number without end": "\x0e\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80",
		"a truncated number": "\x0e\x80", "a huge register": "\x05\xff\xff\x03\x08", "an unknown instruction": "\x3f",
		"an expression that outruns": "\x0f\x7f\x77\x08", "division": "\x0f\x03\x30\x30\x1b", "plus of nothing": "\x0f\x02\x23\x08",
		"an empty expression": "\x0f\x00", "a jump": "\x0f\x04\x2f\xfd\xff\x30", "the return address restored": "\xd0",
	} {
		fde := append([]byte{0, 0, 0, 0, 0x1c, 0, 0, 0, 0, 0, 0, 0, 0xff, 0, 0, 0, 0}, program...)
		binary.LittleEndian.PutUint32(fde, uint32(len(fde)-4))
		_, err := ParseEH(common, fde, 0x1000)
		require.ErrorIs(t, err, ErrFormat, name)
	}
	fde := []byte{0x0d, 0, 0, 0, 0x1c, 0, 0, 0, 0, 0, 0, 0, 0xff, 0, 0, 0, 0}
	_, err := ParseEH(common, fde, 0x1000)
	require.NoError(t, err)
}

// FuzzEntry gives entries of any contents to the parser, and follows those that it
// takes.
func FuzzEntry(f *testing.F) {
	s := program(f).Section(".eh_frame")
	b, err := s.Data()
	require.NoError(f, err)
	entries := split(f, b)
	n := 0
	for at, fde := range entries {
		if id := int(binary.LittleEndian.Uint32(fde[4:])); id != 0 && n < 100 {
			n++
			f.Add(entries[at+4-id], fde, uint64(0x1000+at), uint64(n))
		}
	}
	f.Fuzz(func(t *testing.T, common, fde []byte, at, pc uint64) {
		e, err := ParseEH(common, fde, at)
		if err != nil {
			require.ErrorIs(t, err, ErrFormat)
			return
		}
		for _, pc := range []uint64{e.Begin(), e.Begin() + pc%1024, e.End() - 1} {
			regs := &Regs{}
			for i := range RA + 1 {
				regs.Set(i, pc*uint64(i))
			}
			_ = e.Step(regs, pc, func(addr uint64) (uint64, error) { return addr * 3, nil })
		}
	})
}

// FuzzDebugFrame gives a section of any contents to the parser.
func FuzzDebugFrame(f *testing.F) {
	common := []byte("\x14\x00\x00\x00\xff\xff\xff\xff\x01\x00\x01\x78\x10\x0c\x07\x08\x90\x01\x00\x00\x00\x00\x00\x00")
	f.Add(append(common, "\x1c\x00\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00\x40\x00\x00\x00\x00\x00\x00\x00\x41\x0e\x10\x86\x02\x0d\x06\x00"...), uint64(8))
	f.Fuzz(func(t *testing.T, section []byte, slide uint64) {
		table, err := ParseDebugFrame(section, slide)
		if err != nil {
			require.ErrorIs(t, err, ErrFormat)
			return
		}
		for i := range min(table.Len(), 16) {
			pc := table.fdes[i].Begin()
			if e, err := table.Find(pc); err == nil {
				regs := &Regs{}
				regs.Set(RSP, pc)
				_ = e.Step(regs, pc, func(addr uint64) (uint64, error) { return addr, nil })
			}
		}
	})
}
