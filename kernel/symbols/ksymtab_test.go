package symbols_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/ovmigrate/ovmigrate/kernel/symbols"
)

const exportBase = 0xffff_8000_0800_0000

// exports makes a region with n exported functions, and init_task among them, the
// address of each a multiple of 16. Names may be ends of others.
func exports(n int) (region []byte, want []symbols.Symbol) {
	region = make([]byte, 1<<20)
	at, names, value := 0x1000, 0x80000, 0x40000
	add := func(name string, nameAt int) {
		binary.LittleEndian.PutUint32(region[at:], uint32(value-at))
		binary.LittleEndian.PutUint32(region[at+4:], uint32(nameAt-at-4))
		want = append(want, symbols.Symbol{Name: name, Addr: exportBase + uint64(value), Type: 'D'})
		at, value = at+12, value+16
	}
	for i := range n {
		name := fmt.Sprintf("a_function_%d", i)
		copy(region[names:], name)
		if i == n/2 {
			copy(region[names:], "swap_init_task")
			add("swap_init_task", names)
			add("init_task", names+5)
			names += 20
			continue
		}
		add(name, names)
		names += len(name) + 1
	}
	return region, want
}

func TestExported(t *testing.T) {
	region, want := exports(600)
	got, err := symbols.Exported(region, exportBase)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b symbols.Symbol) int { return int(a.Addr) - int(b.Addr) })
	if !slices.Equal(got, want) {
		t.Errorf("%d symbols, want %d", len(got), len(want))
	}

	var functions []symbols.Symbol
	for _, s := range want {
		if s.Name != "init_task" {
			functions = append(functions, s)
		}
	}
	all, err := symbols.New(functions).With(got)
	if err != nil {
		t.Fatal(err)
	}
	if a, ok := all.Lookup("init_task"); !ok || all.Len() != len(want) {
		t.Errorf("init_task %#x, %v; %d symbols", a, ok, all.Len())
	}
	for i := range functions {
		functions[i].Addr += 16
	}
	if _, err := symbols.New(functions).With(got); !errors.Is(err, symbols.ErrFormat) {
		t.Errorf("functions elsewhere: error %v", err)
	}
}

func TestExportedNone(t *testing.T) {
	few, _ := exports(20)
	for name, region := range map[string][]byte{"nothing": nil, "zeros": make([]byte, 1<<16), "few": few, "odd": few[:len(few)-3]} {
		if got, err := symbols.Exported(region, exportBase); !errors.Is(err, symbols.ErrFormat) {
			t.Errorf("%s: %d symbols, error %v", name, len(got), err)
		}
	}
}

func FuzzExported(f *testing.F) {
	region, _ := exports(300)
	f.Add(region[:0x2000], uint16(0x1004), uint32(1))
	f.Add(region, uint16(0x1100), uint32(0x7fff_fff0))
	f.Fuzz(func(t *testing.T, b []byte, at uint16, v uint32) {
		b = slices.Clone(b)
		if int(at)+4 <= len(b) {
			binary.LittleEndian.PutUint32(b[at:], v)
		}
		got, err := symbols.Exported(b, exportBase)
		if err != nil && !errors.Is(err, symbols.ErrFormat) {
			t.Fatal(err)
		}
		for _, s := range got {
			if s.Name == "" || s.Addr < exportBase || s.Addr >= exportBase+uint64(len(b)) {
				t.Fatalf("%+v", s)
			}
		}
	})
}
