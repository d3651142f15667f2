package types

import (
	"debug/elf"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// odd has what C has of types, as far as layouts go.
const odd = `
typedef unsigned int u32;
typedef u32 word;
enum color { RED = 1, GREEN = -5, BLUE = 1000000 };
enum { ANON_A, ANON_B = 7 };
struct fwd;
struct bits {
	char lead;
	unsigned a : 3, b : 13;
	int c : 5;
	unsigned long d : 40;
	unsigned long : 0;
	_Bool e : 1;
	enum color f : 12;
	word g : 7;
	unsigned char h : 2;
} __attribute__((packed));
struct bits2 { long x; unsigned a : 1; unsigned b : 30; unsigned c : 4; short y; unsigned long z : 3; };
union either { int i; struct { char lo, hi; union { short s; char deep[2]; }; }; float f; double d; };
struct holder {
	struct holder *next, **pnext;
	const volatile char name[16];
	int grid[3][4];
	struct fwd *opaque;
	int (*call)(int, char *);
	void *nothing;
	const void *cnothing;
	union either e;
	enum color col;
	struct { int inner; } named;
	signed char sc; unsigned char uc; _Bool flag; long long ll; __int128 big;
	word tail[];
};
struct fwd2 { int zero[0]; int x; };
typedef struct { int q; } anon_t;
typedef struct holder holder_t, *holder_p;
int fn_defined(struct bits *b, struct bits2 *b2) { return b->a + b2->b; }
struct holder global_holder; holder_t *global_p; holder_p gp2; anon_t global_anon; struct fwd2 global_fwd2;
static u32 static_word; word *ptr_word = &static_word;
int use(void) { return ANON_B; }
`

// compileOdd builds odd and returns its debug information, as flags say: DWARF or BTF.
func compileOdd(t *testing.T, flags ...string) (*DWARF, *BTF) {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skipf("no C compiler: %v", err)
	}
	dir := t.TempDir()
	src, obj := filepath.Join(dir, "odd.c"), filepath.Join(dir, "odd.o")
	require.NoError(t, os.WriteFile(src, []byte(odd), 0o644))
	out, err := exec.Command(gcc, append(flags, "-O0", "-c", "-o", obj, src)...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	f, err := elf.Open(obj)
	require.NoError(t, err)
	defer f.Close()
	if s := f.Section(".BTF"); s != nil {
		blob, err := s.Data()
		require.NoError(t, err)
		b, err := ParseBTF(blob)
		require.NoError(t, err)
		return nil, b
	}
	data, err := f.DWARF()
	require.NoError(t, err)
	d, err := ReadDWARF(data, 0)
	require.NoError(t, err)
	return d, nil
}

// differ calls fn with each difference between what two sources say of one type.
func differ(path string, d, b *Type, fn func(format string, args ...any)) (members int) {
	if d.Kind != b.Kind || d.Size != b.Size || d.Len != b.Len || len(d.Members) != len(b.Members) || len(d.Values) != len(b.Values) {
		fn("%s: %s of %d bytes, %d members, %d values; %s of %d bytes, %d members, %d values",
			path, d, d.Size, len(d.Members), len(d.Values), b, b.Size, len(b.Members), len(b.Values))
		return 0
	}
	for i := range d.Values {
		// BTF of old compilers does not say whether an enum is signed.
		if v, w := d.Values[i], b.Values[i]; v.Name != w.Name || uint32(v.Value) != uint32(w.Value) {
			fn("%s: %v, %v", path, v, w)
		}
	}
	for i := range d.Members {
		x, y := &d.Members[i], &b.Members[i]
		at := path + "." + x.Name
		members++
		if x.Name != y.Name || x.BitOffset != y.BitOffset || x.BitSize != y.BitSize {
			fn("%s at bit %d, %d bits; %s at bit %d, %d bits", at, x.BitOffset, x.BitSize, y.Name, y.BitOffset, y.BitSize)
			continue
		}
		xt, err1 := x.Type()
		yt, err2 := y.Type()
		if err1 != nil || err2 != nil {
			fn("%s: %v, %v", at, err1, err2)
			continue
		}
		if !sameKind(xt, yt) {
			fn("%s: %s, %s", at, xt, yt)
			continue
		}
		xs, err1 := xt.SizeOf()
		ys, err2 := yt.SizeOf()
		if xs != ys || err1 != nil || err2 != nil {
			fn("%s: %s of %d bytes (%v), %s of %d bytes (%v)", at, xt, xs, err1, yt, ys, err2)
		}
		if xt.Name == "" && (xt.Kind == Struct || xt.Kind == Union || xt.Kind == Enum) {
			members += differ(at, xt, yt, fn)
		}
	}
	return members
}

// sameKind compares types as C writes them. A declaration counts as the type that it
// declares.
func sameKind(x, y *Type) bool {
	for depth := 0; depth < 10 && x.Kind == y.Kind && x.Len == y.Len && (x.Kind == Pointer || x.Kind == Array); depth++ {
		xe, err1 := x.Elem()
		ye, err2 := y.Elem()
		if err1 != nil || err2 != nil {
			return false
		}
		x, y = xe, ye
	}
	if x.Kind == Forward || y.Kind == Forward {
		return x.Name == y.Name
	}
	return x.Kind == y.Kind && x.Name == y.Name && x.Signed == y.Signed || x.Kind == y.Kind && x.Kind == Enum && x.Name == y.Name
}

func TestDWARFAgreesWithBTFOfOneCompile(t *testing.T) {
	for _, version := range []string{"-gdwarf-4", "-gdwarf-5"} {
		t.Run(version, func(t *testing.T) {
			d, _ := compileOdd(t, version)
			_, b := compileOdd(t, "-gbtf")
			if b == nil {
				t.Skip("the compiler makes no BTF")
			}
			members := 0
			for _, name := range []string{"bits", "bits2", "either", "holder", "fwd2"} {
				dt, err := d.Struct(name)
				require.NoError(t, err, name)
				bt, err := b.Struct(name)
				require.NoError(t, err, name)
				members += differ(name, dt, bt, t.Errorf)
			}
			require.Greater(t, members, 40)
			de, err := d.Enum("color")
			require.NoError(t, err)
			be, err := b.Enum("color")
			require.NoError(t, err)
			differ("color", de, be, t.Errorf)
		})
	}
}

func TestDWARFLookup(t *testing.T) {
	for _, flags := range [][]string{{"-gdwarf-4"}, {"-gdwarf-5"}, {"-gdwarf-5", "-gz=zlib"}, {"-gdwarf-4", "-gstrict-dwarf"}} {
		d, _ := compileOdd(t, flags...)
		bits, err := d.Struct("bits")
		require.NoError(t, err)
		// char, 3+13 bits, 5 bits and 40 bits without padding, then a new unit.
		for path, want := range map[string][2]int{"a": {8, 3}, "b": {11, 13}, "c": {24, 5}, "d": {29, 40}} {
			f, err := bits.Lookup(path)
			require.NoError(t, err)
			require.Equal(t, want, [2]int{f.BitOffset, f.BitSize}, "%v %s", flags, path)
		}
		holder, err := d.Struct("holder")
		require.NoError(t, err)
		f, err := holder.Lookup("e.deep[1]")
		require.NoError(t, err)
		require.Equal(t, "char", f.Type.String())
		next, err := holder.Lookup("next")
		require.NoError(t, err)
		elem, err := next.Type.Elem()
		require.NoError(t, err)
		require.Same(t, holder, elem)

		td, err := d.Typedef("holder_t")
		require.NoError(t, err)
		u, err := td.Underlying()
		require.NoError(t, err)
		require.Same(t, holder, u)

		color, err := d.Enum("color")
		require.NoError(t, err)
		v, err := color.EnumValue("GREEN")
		require.NoError(t, err)
		require.EqualValues(t, -5, v)

		_, typ, err := d.Variable("global_holder")
		require.NoError(t, err)
		require.Same(t, holder, typ)

		require.True(t, d.HasFunc("fn_defined"))
		require.False(t, d.HasFunc("fn_undefined"))
		_, err = d.Struct("nothing")
		require.ErrorIs(t, err, ErrNoType)
		_, _, err = d.PerCPU("nothing")
		require.ErrorIs(t, err, ErrNoType)
		_, err = d.Struct("color")
		require.ErrorIs(t, err, ErrNoType, "an enum is no struct")
	}
}

// agreeOverKernel compares every struct, union and enum that has a name.
func agreeOverKernel(t *testing.T, d *DWARF, b *BTF) (structs, members, ambiguous int) {
	t.Helper()
	for _, name := range d.Names() {
		dt, err1 := d.Struct(name)
		bt, err2 := b.Struct(name)
		var two *AmbiguousError
		if errors.As(err1, &two) || errors.As(err2, &two) {
			ambiguous++
			continue
		}
		require.NoError(t, err1, name)
		if errors.Is(err2, ErrNoType) {
			t.Errorf("%s is not in BTF", name)
			continue
		}
		require.NoError(t, err2, name)
		structs++
		members += differ(name, dt, bt, t.Errorf)
	}
	return structs, members, ambiguous
}

var vmlinuxFlag = flag.String("vmlinux", "", "vmlinux with debug information and BTF, to compare them")

// TestDWARFAgreesWithBTFOfAKernel compares every structure of a whole kernel.
func TestDWARFAgreesWithBTFOfAKernel(t *testing.T) {
	if *vmlinuxFlag == "" {
		t.Skip("wants 'make test-debug': a download of some 300 MB")
	}
	f, err := elf.Open(*vmlinuxFlag)
	require.NoError(t, err)
	defer f.Close()
	blob, err := f.Section(".BTF").Data()
	require.NoError(t, err)
	b, err := ParseBTF(blob)
	require.NoError(t, err)
	data, err := f.DWARF()
	require.NoError(t, err)
	begin := time.Now()
	d, err := ReadDWARF(data, 0)
	require.NoError(t, err)
	t.Logf("%d names indexed in %v", len(d.canonical), time.Since(begin))
	structs, members, ambiguous := agreeOverKernel(t, d, b)
	t.Logf("%d structures, %d members; %d names have several definitions", structs, members, ambiguous)
	require.Greater(t, structs, 5000)
	require.Less(t, ambiguous, structs/100)
}
