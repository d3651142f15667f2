package locate

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// VMCoreInfo is the kernel's note to crash-dump tools: lines of KEY=VALUE made by
// kernel/vmcore_info.c (kernel/crash_core.c before 6.9). The getters return a
// *MissingKeyError for a key that this kernel does not give. The zero value is
// empty. Safe for concurrent use.
type VMCoreInfo struct {
	values map[string]string
	raw    []byte
}

// MissingKeyError says that VMCOREINFO has no such key, or no usable value for it.
type MissingKeyError struct {
	Key   string
	Value string // what it has instead, if it does
}

func (e *MissingKeyError) Error() string {
	if e.Value != "" {
		return fmt.Sprintf("vmcoreinfo: %s=%q is not a number", e.Key, e.Value)
	}
	return fmt.Sprintf("vmcoreinfo: no %s", e.Key)
}

const (
	maxInfo     = 64 << 10 // 7.x gives it several pages
	maxInfoKeys = 4096
)

// ParseVMCoreInfo reads the text, which ends at a zero byte or at the first byte
// that is no text. Lines without "=" are dropped; of a repeated key the last counts.
func ParseVMCoreInfo(text []byte) VMCoreInfo {
	if len(text) > maxInfo {
		text = text[:maxInfo]
	}
	if i := bytes.IndexFunc(text, func(r rune) bool { return r != '\n' && (r < ' ' || r > '~') }); i >= 0 {
		text = text[:i]
	}
	v := VMCoreInfo{values: make(map[string]string), raw: bytes.Clone(text)}
	for line := range strings.Lines(string(v.raw)) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if ok && key != "" && len(v.values) < maxInfoKeys {
			v.values[key] = value
		}
	}
	return v
}

// Text returns the note as the kernel wrote it.
func (v VMCoreInfo) Text() string { return string(v.raw) }

// Keys returns all keys in order.
func (v VMCoreInfo) Keys() []string { return slices.Sorted(maps.Keys(v.values)) }

// String returns the value of a key as it stands: "OSRELEASE", "BUILD-ID",
// "SYMBOL(_stext)".
func (v VMCoreInfo) String(key string) (string, error) {
	s, ok := v.values[key]
	if !ok {
		return "", &MissingKeyError{Key: key}
	}
	return s, nil
}

// Symbol returns SYMBOL(name), a virtual address.
func (v VMCoreInfo) Symbol(name string) (uint64, error) { return v.hex("SYMBOL(" + name + ")") }

// Offset returns OFFSET(member), as "page.flags": bytes from the struct's begin.
func (v VMCoreInfo) Offset(member string) (uint64, error) {
	return v.decimal("OFFSET(" + member + ")")
}

// Size returns SIZE(name), in bytes.
func (v VMCoreInfo) Size(name string) (uint64, error) { return v.decimal("SIZE(" + name + ")") }

// Length returns LENGTH(name), the number of elements of an array.
func (v VMCoreInfo) Length(name string) (uint64, error) { return v.decimal("LENGTH(" + name + ")") }

// Number returns NUMBER(name). The kernel prints most in decimal and signed,
// addresses in hexadecimal with 0x.
func (v VMCoreInfo) Number(name string) (int64, error) {
	key := "NUMBER(" + name + ")"
	s, err := v.String(key)
	if err != nil {
		return 0, err
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return n, nil
	}
	if h, ok := strings.CutPrefix(s, "0x"); ok {
		if n, err := strconv.ParseUint(h, 16, 64); err == nil {
			return int64(n), nil
		}
	}
	return 0, &MissingKeyError{Key: key, Value: s}
}

// PageSize returns PAGESIZE, the size of a page in bytes.
func (v VMCoreInfo) PageSize() (uint64, error) { return v.decimal("PAGESIZE") }

// KernelOffset returns KERNELOFFSET: how far the kernel's virtual addresses are
// from those it was linked at.
func (v VMCoreInfo) KernelOffset() (uint64, error) { return v.hex("KERNELOFFSET") }

func (v VMCoreInfo) hex(key string) (uint64, error) {
	s, err := v.String(key)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "0x"), 16, 64)
	if err != nil {
		return 0, &MissingKeyError{Key: key, Value: s}
	}
	return n, nil
}

func (v VMCoreInfo) decimal(key string) (uint64, error) {
	s, err := v.String(key)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, &MissingKeyError{Key: key, Value: s}
	}
	return n, nil
}
