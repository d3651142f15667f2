package types

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/stretchr/testify/require"
)

// hostBTF is a whole kernel's BTF: the one of the machine the tests run on.
func hostBTF(tb testing.TB) []byte {
	tb.Helper()
	b, err := os.ReadFile("/sys/kernel/btf/vmlinux")
	if err != nil {
		tb.Skipf("the kernel that runs the tests has no BTF: %v", err)
	}
	return b
}

// Every struct and union of a kernel must have the same members at the same bits
// as an independent reader finds.
func TestBTFAgreesWithCilium(t *testing.T) {
	blob := hostBTF(t)
	ours, err := ParseBTF(blob)
	require.NoError(t, err)
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(blob))
	require.NoError(t, err)

	structs, members := 0, 0
	for typ, err := range spec.All() {
		require.NoError(t, err)
		var theirs []btf.Member
		var size uint32
		switch s := typ.(type) {
		case *btf.Struct:
			theirs, size = s.Members, s.Size
		case *btf.Union:
			theirs, size = s.Members, s.Size
		default:
			continue
		}
		if typ.TypeName() == "" {
			continue
		}
		st, err := ours.Struct(typ.TypeName())
		if ambiguous := new(AmbiguousError); errors.As(err, &ambiguous) {
			continue
		}
		require.NoError(t, err)
		structs++
		require.Equal(t, int(size), st.Size, st.Name)
		require.Len(t, st.Members, len(theirs), st.Name)
		for i, m := range theirs {
			require.Equal(t, m.Name, st.Members[i].Name)
			require.Equal(t, int(m.Offset), st.Members[i].BitOffset, "%s.%s", st.Name, m.Name)
			require.Equal(t, int(m.BitfieldSize), st.Members[i].BitSize, "%s.%s", st.Name, m.Name)
			mt, err := st.Members[i].Type()
			require.NoError(t, err)
			want, err := btf.Sizeof(m.Type)
			if err == nil {
				got, err := mt.SizeOf()
				require.NoError(t, err)
				require.Equal(t, want, got, "%s.%s is %s", st.Name, m.Name, mt)
			}
			members++
		}
	}
	require.Greater(t, structs, 1000)
	t.Logf("%d structs, %d members", structs, members)
}

func TestLookup(t *testing.T) {
	b, err := ParseBTF(hostBTF(t))
	require.NoError(t, err)
	task, err := b.Struct("task_struct")
	require.NoError(t, err)

	f, err := task.Lookup("pending.signal.sig[0]")
	require.NoError(t, err)
	pending, err := task.Lookup("pending")
	require.NoError(t, err)
	sig, err := pending.Type.Lookup("signal")
	require.NoError(t, err)
	require.Equal(t, pending.BitOffset+sig.BitOffset, f.BitOffset)

	f, err = task.Lookup("frozen")
	require.NoError(t, err)
	require.Equal(t, 1, f.BitSize, "a bit-field")

	for _, bad := range []string{"nothing", "pending.nothing", "comm[99]", "pid.x", "comm[x]", "[0]", "comm[0"} {
		_, err = task.Lookup(bad)
		require.ErrorIs(t, err, ErrNoType, bad)
	}
	require.True(t, b.HasFunc("schedule"))
	require.False(t, b.HasFunc("schedule_the_impossible"))
	_, _, err = b.PerCPU("runqueues")
	require.NoError(t, err)
	e, err := b.Enum("pid_type")
	require.NoError(t, err)
	v, err := e.EnumValue("PIDTYPE_SID")
	require.NoError(t, err)
	require.EqualValues(t, 3, v)
}

func TestBTFRefusesGarbage(t *testing.T) {
	blob := hostBTF(t)
	for name, damage := range map[string]func([]byte) []byte{
		"empty":       func([]byte) []byte { return nil },
		"header only": func(b []byte) []byte { return b[:24] },
		"truncated":   func(b []byte) []byte { return b[:len(b)/2] },
		"huge types":  func(b []byte) []byte { binary.LittleEndian.PutUint32(b[12:], 0xfffffff0); return b },
		"bad magic":   func(b []byte) []byte { b[0]++; return b },
	} {
		_, err := ParseBTF(damage(bytes.Clone(blob)))
		require.ErrorIs(t, err, ErrCorrupt, name)
	}
}

// FuzzBTF mutates the type section: parsing and decoding every type must end
// without a panic, with an error or a value.
func FuzzBTF(f *testing.F) {
	f.Add([]byte{
		0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 16, 0, 0, 0, 5, 0, 0, 0,
		1, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, 32, 0, 0, 1, 0, 'i', 'n', 't', 0,
	})
	f.Fuzz(func(t *testing.T, blob []byte) {
		b, err := ParseBTF(blob)
		if err != nil {
			return
		}
		for id := range b.count() {
			typ, err := b.byID(id)
			if err != nil {
				continue
			}
			_ = typ.String()
			_, _ = typ.SizeOf()
			_, _ = typ.Lookup("a.b[1]")
		}
	})
}

// FuzzSplitBTF is FuzzBTF for the types of a module, over a base that is right.
func FuzzSplitBTF(f *testing.F) {
	base, err := ParseBTF([]byte{
		0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 16, 0, 0, 0, 5, 0, 0, 0,
		1, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, 32, 0, 0, 1, 0, 'i', 'n', 't', 0,
	})
	require.NoError(f, err)
	// A struct "own" with one member "int" of the base's type and name.
	f.Add([]byte{
		0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0, 0, 24, 0, 0, 0, 4, 0, 0, 0,
		5, 0, 0, 0, 1, 0, 0, 4, 4, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 'o', 'w', 'n', 0,
	})
	f.Fuzz(func(t *testing.T, blob []byte) {
		b, err := ParseSplitBTF(blob, base)
		if err != nil {
			return
		}
		for id := range b.count() {
			typ, err := b.byID(id)
			if err != nil {
				continue
			}
			_ = typ.String()
			_, _ = typ.SizeOf()
			_, _ = typ.Lookup("a.b[1]")
		}
		_, _ = b.Struct("own")
		_ = b.HasFunc("own")
		_, _, _ = b.PerCPU("own")
	})
}

func TestSplitBTF(t *testing.T) {
	base, err := ParseBTF([]byte{
		0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 16, 0, 0, 0, 5, 0, 0, 0,
		1, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, 32, 0, 0, 1, 0, 'i', 'n', 't', 0,
	})
	require.NoError(t, err)
	blob := []byte{
		0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0, 0, 24, 0, 0, 0, 4, 0, 0, 0,
		5, 0, 0, 0, 1, 0, 0, 4, 4, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 'o', 'w', 'n', 0,
	}
	b, err := ParseSplitBTF(blob, base)
	require.NoError(t, err)
	own, err := b.Struct("own")
	require.NoError(t, err)
	f, err := own.Lookup("int")
	require.NoError(t, err)
	of, err := base.byID(1)
	require.NoError(t, err)
	require.Same(t, of, f.Type)
	_, err = b.Struct("other")
	require.ErrorIs(t, err, ErrNoType)
	_, err = ParseSplitBTF(blob, b)
	require.ErrorIs(t, err, ErrCorrupt)
}

func BenchmarkParseBTF(b *testing.B) {
	blob := hostBTF(b)
	for b.Loop() {
		if _, err := ParseBTF(blob); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseBTFCilium(b *testing.B) {
	blob := hostBTF(b)
	for b.Loop() {
		if _, err := btf.LoadSpecFromReader(bytes.NewReader(blob)); err != nil {
			b.Fatal(err)
		}
	}
}
