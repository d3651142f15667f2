package locate

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

const infoText = `OSRELEASE=6.1.0-50-cloud-amd64
BUILD-ID=0123456789abcdef
PAGESIZE=4096
SYMBOL(_stext)=ffffffffaa600000
SIZE(page)=64
OFFSET(page.flags)=0
LENGTH(mem_section)=2048
NUMBER(phys_base)=-486539264
NUMBER(VMALLOC_START)=0xffffc90000000000
NUMBER(broken)=many
no equals sign
=no key
KERNELOFFSET=29600000
`

func TestParseVMCoreInfo(t *testing.T) {
	v := ParseVMCoreInfo([]byte(infoText + "\x00OSRELEASE=after the end\n"))
	if got := v.Text(); got != infoText {
		t.Errorf("Text = %q", got)
	}
	if s, err := v.String("OSRELEASE"); s != "6.1.0-50-cloud-amd64" || err != nil {
		t.Errorf("OSRELEASE %q, %v", s, err)
	}
	vmalloc := uint64(0xffffc900_00000000)
	for _, tt := range []struct {
		name string
		get  func() (uint64, error)
		want uint64
	}{
		{"Symbol", func() (uint64, error) { return v.Symbol("_stext") }, 0xffffffff_aa600000},
		{"Size", func() (uint64, error) { return v.Size("page") }, 64},
		{"Offset", func() (uint64, error) { return v.Offset("page.flags") }, 0},
		{"Length", func() (uint64, error) { return v.Length("mem_section") }, 2048},
		{"KernelOffset", v.KernelOffset, 0x29600000},
		{"hex Number", func() (uint64, error) { n, err := v.Number("VMALLOC_START"); return uint64(n), err }, vmalloc},
	} {
		if got, err := tt.get(); err != nil || got != tt.want {
			t.Errorf("%s = %#x, %v, want %#x", tt.name, got, err, tt.want)
		}
	}
	if n, err := v.Number("phys_base"); n != -0x1d000000 || err != nil {
		t.Errorf("phys_base %#x, %v", n, err)
	}
	for _, get := range []func() error{
		func() error { _, err := v.String("SYMBOL(_text)"); return err },
		func() error { _, err := v.Symbol("_text"); return err },
		func() error { _, err := v.Size("nothing"); return err },
		func() error { _, err := v.Number("broken"); return err },
		func() error { _, err := VMCoreInfo{}.KernelOffset(); return err },
	} {
		var missing *MissingKeyError
		if err := get(); !errors.As(err, &missing) || missing.Key == "" || !strings.Contains(err.Error(), missing.Key) {
			t.Errorf("error %v", err)
		}
	}
	if k := v.Keys(); len(k) != 11 || !slices.IsSorted(k) {
		t.Errorf("keys %q", k)
	}
}

func FuzzParseVMCoreInfo(f *testing.F) {
	f.Add([]byte(infoText))
	f.Fuzz(func(t *testing.T, text []byte) {
		v := ParseVMCoreInfo(text)
		for _, k := range v.Keys() {
			if _, err := v.String(k); err != nil {
				t.Fatal(err)
			}
		}
		if len(v.Text()) > len(text) {
			t.Fatal("longer than the input")
		}
	})
}
