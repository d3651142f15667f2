package kernel

import (
	"encoding/binary"
	"strconv"

	"github.com/ovmigrate/ovmigrate/kernel/debugfile"
)

// ModuleParam is a parameter of a module.
type ModuleParam struct {
	Name  string
	Perm  uint16 // of its file in /sys/module/NAME/parameters; 0 if it has none
	Value string // as that file shows it
	Known bool   // whether Value is: its type may be the module's own
}

type kernelParam struct {
	Name Addr   `k:"name"`
	Ops  Addr   `k:"ops"`
	Perm uint16 `k:"perm"`
	Arg  Addr   `k:"arg"`
}

type kparamString struct {
	MaxLen uint32 `k:"maxlen"`
	String Addr   `k:"string"`
}

var (
	kernelParamLayout  = LayoutOf[kernelParam]("kernel_param")
	kparamStringLayout = LayoutOf[kparamString]("kparam_string")
)

const (
	maxParams   = 4096
	maxParamLen = 1024
)

// paramFormats are the kernel's own types of parameters: how large they are, and how
// they are written. Source: kernel/params.c.
var paramFormats = map[string]struct {
	size   int
	format func(uint64) string
}{
	"param_ops_byte":    {1, unsigned},
	"param_ops_short":   {2, func(v uint64) string { return strconv.Itoa(int(int16(v))) }},
	"param_ops_ushort":  {2, unsigned},
	"param_ops_int":     {4, func(v uint64) string { return strconv.Itoa(int(int32(v))) }},
	"param_ops_uint":    {4, unsigned},
	"param_ops_long":    {8, func(v uint64) string { return strconv.FormatInt(int64(v), 10) }},
	"param_ops_ulong":   {8, unsigned},
	"param_ops_ullong":  {8, unsigned},
	"param_ops_hexint":  {4, func(v uint64) string { return "0x" + hex8(uint32(v)) }},
	"param_ops_bool":    {1, func(v uint64) string { return yesNo(v != 0) }},
	"param_ops_bint":    {4, func(v uint64) string { return yesNo(v != 0) }},
	"param_ops_invbool": {1, func(v uint64) string { return yesNo(v == 0) }},
}

func unsigned(v uint64) string { return strconv.FormatUint(v, 10) }

func hex8(v uint32) string {
	const digits = "0123456789abcdef"
	var b [8]byte
	for i := range b {
		b[i] = digits[v>>(28-4*i)&15]
	}
	return string(b[:])
}

func yesNo(v bool) string {
	if v {
		return "Y"
	}
	return "N"
}

// Params returns the module's parameters. The values of those whose type is the
// module's own are not known.
func (m *Module) Params() ([]ModuleParam, error) {
	size, err := kernelParamLayout.Size(m.k)
	if err != nil {
		return nil, err
	}
	var all []ModuleParam
	for i := range min(int(m.NumParams), maxParams) {
		raw, err := kernelParamLayout.Load(m.k, m.KernelParams.Add(i*size))
		if err != nil {
			return all, err
		}
		p := ModuleParam{Perm: raw.Perm}
		if p.Name, err = m.k.CString(raw.Name, maxParamLen); err != nil {
			return all, err
		}
		if p.Value, p.Known, err = m.k.paramValue(raw); err != nil {
			return all, err
		}
		all = append(all, p)
	}
	return all, nil
}

func (k *Kernel) paramValue(p kernelParam) (value string, known bool, err error) {
	name, off, ok := k.SymbolAt(p.Ops)
	if !ok || off != 0 {
		return "", false, nil
	}
	if f, ok := paramFormats[name]; ok {
		var b [8]byte
		if _, err := k.ReadAt(b[:f.size], p.Arg); err != nil {
			return "", false, err
		}
		return f.format(binary.LittleEndian.Uint64(b[:])), true, nil
	}
	switch name {
	case "param_ops_charp":
		a, err := k.ReadAddr(p.Arg)
		if err != nil {
			return "", false, err
		}
		if a == 0 {
			return "(null)", true, nil // as printf writes it
		}
		value, err = k.CString(a, maxParamLen)
		return value, err == nil, err
	case "param_ops_string":
		s, err := kparamStringLayout.Load(k, p.Arg)
		if err != nil {
			return "", false, err
		}
		value, err = k.CString(s.String, int(min(s.MaxLen, maxParamLen)))
		return value, err == nil, err
	}
	return "", false, nil
}

type notesAttrs struct {
	Attrs Addr   `k:"&attrs|&bin_attrs"`
	Notes uint32 `k:"notes,opt"`         // how many, up to 6.13
	List  Addr   `k:"grp.bin_attrs,opt"` // pointers to them, the last one null
}

type binAttribute struct {
	Size    uint64 `k:"size"`
	Private Addr   `k:"private"`
}

var (
	notesAttrsLayout   = LayoutOf[notesAttrs]("module_notes_attrs")
	binAttributeLayout = LayoutOf[binAttribute]("bin_attribute")
)

// maxNotes is the number of note sections that are looked at.
const maxNotes = 64

// BuildID returns the build ID of the module's file, nil if it has none. Source:
// kernel/module/sysfs.c:add_notes_attrs.
func (m *Module) BuildID() ([]byte, error) {
	if m.Notes == 0 {
		return nil, nil
	}
	notes, err := notesAttrsLayout.Load(m.k, m.Notes)
	if err != nil {
		return nil, err
	}
	size, err := binAttributeLayout.Size(m.k)
	if err != nil {
		return nil, err
	}
	n := int(notes.Notes)
	if notes.List != 0 {
		n = maxNotes
	}
	for i := range min(n, maxNotes) {
		a := notes.Attrs.Add(i * size)
		if notes.List != 0 {
			if a, err = m.k.ReadAddr(notes.List.Add(8 * i)); a == 0 || err != nil {
				return nil, err
			}
		}
		attr, err := binAttributeLayout.Load(m.k, a)
		if err != nil {
			return nil, err
		}
		text, err := m.k.readGrowing(attr.Private, int(min(attr.Size, 1<<16)))
		if err != nil {
			return nil, err
		}
		if id := debugfile.BuildID(text); id != nil {
			return id, nil
		}
	}
	return nil, nil
}
