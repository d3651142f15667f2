package symbols_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ovmigrate/ovmigrate/kernel/symbols"
)

func TestParseSystemMap(t *testing.T) {
	const slide = 0x2000_0000
	in := `0000000000001000 A this_cpu_off

ffffffff81000000 T _text
ffffffff81000040 t cleanup
ffffffff81000040 t alias
ffffffff81000030 t cleanup
ffffffffc0200000 t module_init	[dummy]
`
	tab, err := symbols.ParseSystemMap(strings.NewReader(in), slide)
	if err != nil {
		t.Fatal(err)
	}
	checks := map[string][]uint64{
		"this_cpu_off": {0x1000}, "_text": {0xffffffff_a1000000}, "module_init": {0xffffffff_e0200000},
		"cleanup": {0xffffffff_a1000030, 0xffffffff_a1000040}, "alias": {0xffffffff_a1000040},
	}
	for name, want := range checks {
		if got := tab.LookupAll(name); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("LookupAll(%s) = %#x, want %#x", name, got, want)
		}
	}
	if name, off, ok := tab.At(0xffffffff_a1000041); !ok || name != "cleanup" || off != 1 {
		t.Errorf("At = %s+%d, %v, want cleanup+1", name, off, ok)
	}
	if name, _, ok := tab.At(0xffffffff_a1000000 - 1); ok {
		t.Errorf("At before _text = %s", name)
	}
}

func TestParseSystemMapBad(t *testing.T) {
	for _, in := range []string{
		"", "\n", "ffffffff81000000 T\n", "xyz T _text\n", "ffffffff81000000 TT _text\n", "\x7fELF\x02\x01\x01\n",
		"ffffffff81000000 T " + strings.Repeat("a", 5000) + "\n", "1ffffffff81000000 T _text\n",
	} {
		if _, err := symbols.ParseSystemMap(strings.NewReader(in), 0); !errors.Is(err, symbols.ErrFormat) {
			t.Errorf("%.30q: error %v, want ErrFormat", in, err)
		}
	}
}

func TestNilTable(t *testing.T) {
	var tab *symbols.Table
	if _, ok := tab.Lookup("x"); ok || tab.Len() != 0 || tab.LookupAll("x") != nil {
		t.Error("a nil table is not empty")
	}
	if _, _, ok := tab.At(1); ok {
		t.Error("At in a nil table")
	}
	for s := range tab.All() {
		t.Error(s)
	}
}

func FuzzParseSystemMap(f *testing.F) {
	f.Add("ffffffff81000000 T _text\nffffffff81000001 t a [m]\n", uint64(1<<29))
	f.Fuzz(func(t *testing.T, in string, slide uint64) {
		tab, err := symbols.ParseSystemMap(strings.NewReader(in), slide)
		if err != nil {
			return
		}
		n, last := 0, uint64(0)
		for s := range tab.All() {
			if s.Addr < last {
				t.Fatal("not in address order")
			}
			last = s.Addr
			n++
			if _, ok := tab.Lookup(s.Name); !ok {
				t.Fatalf("%q is listed but not found", s.Name)
			}
		}
		if n == 0 || n != tab.Len() {
			t.Fatalf("%d listed, Len %d", n, tab.Len())
		}
	})
}

func ExampleParseSystemMap() {
	const file = `
ffffffff81000000 T _text
ffffffff81000050 T start_kernel
ffffffff810000f0 t rest_init
`
	tab, err := symbols.ParseSystemMap(strings.NewReader(file), 0x1000_0000) // KASLR offset
	if err != nil {
		fmt.Println(err)
		return
	}
	addr, _ := tab.Lookup("start_kernel")
	name, off, _ := tab.At(addr + 0x12)
	fmt.Printf("%#x %s+%#x\n", addr, name, off)
	// Output: 0xffffffff91000050 start_kernel+0x12
}
