package kernel_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel"
)

// moduleDump is what testdata/modules.py prints in a guest. Strings are Latin-1.
type moduleDump struct {
	Modules  string
	Sys      map[string]sysModule
	Kallsyms string
	Notes    string
	Kmsg     []string
}

type sysModule struct {
	State      string `json:"initstate"`
	RefCount   string `json:"refcnt"`
	Taint      string
	Version    string
	SrcVersion string
	Holders    []string
	Note       string
	Params     map[string]*string
}

// procModuleLine writes m as /proc/modules does.
func procModuleLine(m *kernel.Module) (string, error) {
	users, err := m.UsedBy()
	if err != nil {
		return "", err
	}
	used := strings.Join(users, ",")
	if used != "" {
		used += ","
	}
	if m.Permanent() {
		used += "[permanent],"
	}
	if used == "" {
		used = "-"
	}
	line := fmt.Sprintf("%s %d %d %s %s %#016x", m.Name, m.Size(), m.RefCount(), used, m.State, uint64(m.Base()))
	if t := m.TaintLetters(); t != "" {
		line += " (" + t + ")"
	}
	return line, nil
}

// compareModules compares with /proc/modules and /sys/module.
func compareModules(k *kernel.Kernel, dump *moduleDump) differences {
	d := differences{}
	var lines []string
	for m, err := range k.Modules() {
		if err != nil {
			d.add("modules: %v", err)
			continue
		}
		line, err := procModuleLine(m)
		if err != nil {
			d.add("module %s: %v", m.Name, err)
		}
		lines = append(lines, line)
		want, ok := dump.Sys[m.Name]
		if !ok {
			d.add("module %s: the guest has none", m.Name)
			continue
		}
		at := func(what string) string { return "module " + m.Name + ": " + what }
		d.equal(at("state"), map[string]string{"Live": "live", "Loading": "coming", "Unloading": "going"}[m.State.String()], want.State)
		d.equal(at("refcnt"), m.RefCount(), want.RefCount)
		d.equal(at("taint"), m.TaintLetters(), want.Taint)
		version, src, err := m.Version()
		if err != nil {
			d.add("%s: %v", at("version"), err)
		}
		d.equal(at("version"), version, want.Version)
		d.equal(at("srcversion"), src, want.SrcVersion)
		users, err := m.UsedBy()
		if err != nil {
			d.add("%s: %v", at("used by"), err)
		}
		d.equal(at("number of users"), len(users), len(want.Holders))
		id, err := m.BuildID()
		if err != nil {
			d.add("%s: %v", at("build ID"), err)
		}
		d.equal(at("build ID"), fmt.Sprintf("%x", id), strings.TrimPrefix(want.Note, "040000001400000003000000474e5500"))
		compareParams(d, at, m, want)
	}
	d.equal("/proc/modules", strings.Join(lines, "\n"), strings.TrimSpace(dump.Modules))
	return d
}

func compareParams(d differences, at func(string) string, m *kernel.Module, want sysModule) {
	params, err := m.Params()
	if err != nil {
		d.add("%s: %v", at("parameters"), err)
	}
	got := map[string]kernel.ModuleParam{}
	for _, p := range params {
		got[p.Name] = p
	}
	for name, value := range want.Params {
		p, ok := got[name]
		if !ok {
			d.add("%s: not found", at("parameter "+name))
			continue
		}
		if value != nil && p.Known {
			d.equal(at("parameter "+name), latin1(p.Value), strings.TrimSuffix(*value, "\n"))
		}
	}
}

// compareModuleSymbols compares the symbols of the kernel and of its modules, names,
// addresses and letters, with /proc/kallsyms.
func compareModuleSymbols(k *kernel.Kernel, dump *moduleDump) differences {
	d := differences{}
	type sym struct {
		name, module string
		addr         uint64
		typ          byte
	}
	want := map[string]map[sym]int{}
	for line := range strings.Lines(dump.Kallsyms) {
		f := strings.Fields(line)
		s := sym{typ: f[1][0], name: f[2]}
		fmt.Sscanf(f[0], "%x", &s.addr)
		if len(f) > 3 {
			s.module = strings.Trim(f[3], "[]")
		}
		if want[s.module] == nil {
			want[s.module] = map[sym]int{}
		}
		want[s.module][s]++
	}
	compared := 0
	for m, err := range k.Modules() {
		if err != nil {
			d.add("modules: %v", err)
			continue
		}
		t, err := m.Symbols()
		if err != nil {
			d.add("symbols of %s: %v", m.Name, err)
			continue
		}
		left := want[m.Name]
		for s := range t.All() {
			key := sym{latin1(s.Name), m.Name, s.Addr, s.Type}
			if left[key]--; left[key] < 0 {
				d.add("symbols of %s: %c %s at %#x: the guest has none", m.Name, s.Type, s.Name, s.Addr)
			}
			compared++
		}
		for s, n := range left {
			if n > 0 {
				d.add("symbols of %s: %c %s at %#x: not found", m.Name, s.typ, s.name, s.addr)
			}
		}
	}
	if compared < 100 {
		d.add("only %d symbols of modules were compared", compared)
	}
	return d
}

// compareSymbolLookup asks for symbols of modules both ways round.
func compareSymbolLookup(k *kernel.Kernel) differences {
	d := differences{}
	asked := 0
	for m, err := range k.Modules() {
		if err != nil {
			d.add("modules: %v", err)
			continue
		}
		t, err := m.Symbols()
		if err != nil {
			d.add("symbols of %s: %v", m.Name, err)
			continue
		}
		for s := range t.All() {
			if asked++; asked%37 != 0 {
				continue
			}
			first, _ := t.Lookup(s.Name)
			full := s.Name + " [" + m.Name + "]"
			a, err := k.Symbol(full)
			if err != nil || uint64(a) != first {
				d.add("Symbol(%q) is %s, %v, not %#x", full, a, err, first)
			}
			name, off, ok := k.SymbolAt(kernel.Addr(s.Addr))
			back, err := k.Symbol(name)
			if m.Contains(kernel.Addr(s.Addr)) && (!ok || off != 0 || err != nil || uint64(back) != s.Addr && len(t.LookupAll(strings.TrimSuffix(name, " ["+m.Name+"]"))) == 1) {
				d.add("SymbolAt(%#x) is %q+%#x, %v; that is at %s, %v; want %s", s.Addr, name, off, ok, back, err, full)
			}
		}
	}
	if _, err := k.Symbol("nothing [nowhere]"); !errors.Is(err, kernel.ErrNoSymbol) || !errors.Is(err, kernel.ErrNoModule) {
		d.add("a symbol of no module: %v", err)
	}
	return d
}

// kmsgLine writes r as /dev/kmsg does. Source: kernel/printk/printk.c:info_print_ext_header,
// msg_print_ext_body.
func kmsgLine(r kernel.LogRecord) string {
	var b strings.Builder
	cont := "-"
	if r.Continue {
		cont = "c"
	}
	fmt.Fprintf(&b, "%d,%d,%d,%s;", r.Facility<<3|r.Level, r.Seq, r.Time.Microseconds(), cont)
	escape := func(s string) {
		for i := range len(s) {
			if c := s[i]; c < ' ' || c >= 127 || c == '\\' {
				fmt.Fprintf(&b, `\x%02x`, c)
			} else {
				b.WriteByte(c)
			}
		}
		b.WriteByte('\n')
	}
	escape(r.Text)
	for _, dict := range [][2]string{{"SUBSYSTEM", r.Subsystem}, {"DEVICE", r.Device}} {
		if dict[1] != "" {
			b.WriteString(" " + dict[0] + "=")
			escape(dict[1])
		}
	}
	return b.String()
}

// compareLog compares the log with /dev/kmsg, record by record.
func compareLog(k *kernel.Kernel, dump *moduleDump) differences {
	d := differences{}
	got := map[string]string{}
	key := func(line string) string { return strings.Split(line, ",")[1] }
	n := 0
	for r, err := range k.Log() {
		if err != nil {
			d.add("log: %v", err)
			continue
		}
		line := kmsgLine(r)
		got[key(line)] = line
		n++
	}
	lost := 0
	for _, want := range dump.Kmsg {
		line, ok := got[key(want)]
		if !ok {
			lost++
			continue
		}
		// The kernel may say in what context a line was written (CONFIG_PRINTK_CALLER).
		d.equal("log record", line, want)
	}
	if n < 50 || lost > 0 {
		d.add("log: %d records, %d of the guest's %d missing", n, lost, len(dump.Kmsg))
	}
	return d
}

func TestTaintLetters(t *testing.T) {
	var m kernel.Module
	require.Empty(t, m.TaintLetters())
	m.Taints = 1<<0 | 1<<12 | 1<<13
	require.Equal(t, "POE", m.TaintLetters())
}
