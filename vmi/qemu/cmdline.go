package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"path/filepath"
	"strconv"
	"strings"
)

// machine is what the command line of a QEMU says about its RAM.
type machine struct {
	typ     string // "q35", "pc-i440fx-7.2", "" if not given
	arm     bool   // QEMU is one of ARM processors
	ram     uint64 // bytes
	backend string // id of the -object that is RAM, "" for anonymous RAM of QEMU's own
	objects map[string]object
}

// object is a memory backend.
type object struct {
	typ   string // "memory-backend-file", …
	size  uint64
	path  string // mem-path
	share bool
}

const (
	defaultRAM = 128 << 20
	ramAlign   = 8192 // QEMU rounds -m up to it
)

// parseCmdline reads the arguments of QEMU that matter for the placement of RAM,
// and refuses machines whose RAM is not one block.
func parseCmdline(args []string) (*machine, error) {
	m := &machine{ram: defaultRAM, objects: make(map[string]object), arm: isARM(args[0])}
	for i := 1; i < len(args); i++ {
		name, isOption := strings.CutPrefix(args[i], "-")
		name = strings.TrimPrefix(name, "-")
		if !isOption || i+1 == len(args) {
			continue
		}
		value := args[i+1]
		var err error
		switch name {
		case "m":
			err = m.setRAM(value)
		case "machine", "M":
			o, first := splitOptions(value, "type")
			if first != "" {
				m.typ = first
			}
			if b := o["memory-backend"]; b != "" {
				m.backend = b
			}
		case "object":
			err = m.addObject(value)
		case "numa":
			if strings.Contains(value, "mem") {
				err = errors.New("its RAM is split in NUMA nodes")
			}
		case "device":
			for _, d := range []string{"pc-dimm", "nvdimm", "virtio-mem", "virtio-pmem"} {
				if strings.HasPrefix(value, d) || strings.Contains(value, `"`+d) {
					err = errors.New("it has memory devices")
				}
			}
		case "mem-path", "readconfig":
			err = fmt.Errorf("-%s is not understood", name)
		default:
			continue
		}
		if err != nil {
			return nil, err
		}
		i++
	}
	return m, nil
}

// isARM says whether a program is a QEMU of ARM processors, by its name.
func isARM(program string) bool {
	name := filepath.Base(program)
	return name == "qemu-system-aarch64" || name == "qemu-system-arm"
}

// virt says whether the machine is "virt" of ARM, or that of a certain version.
func (m *machine) virt() bool {
	return m.arm && (m.typ == "virt" || strings.HasPrefix(m.typ, "virt-"))
}

// splitOptions splits "first,key=value,key" with QEMU's doubled commas; implied is
// the key that the first item may leave out.
func splitOptions(s, implied string) (opts map[string]string, first string) {
	opts = make(map[string]string)
	const comma = "\x00"
	for i, item := range strings.Split(strings.ReplaceAll(s, ",,", comma), ",") {
		item = strings.ReplaceAll(item, comma, ",")
		key, value, ok := strings.Cut(item, "=")
		if !ok && i == 0 {
			key, value = implied, item
		}
		opts[key] = value
	}
	return opts, opts[implied]
}

func (m *machine) setRAM(value string) error {
	o, size := splitOptions(value, "size")
	if size == "" {
		if _, ok := o["maxmem"]; ok {
			return nil
		}
		return fmt.Errorf("-m %s is not understood", value)
	}
	n, err := parseSize(size, 1<<20)
	if err != nil {
		return fmt.Errorf("-m: %w", err)
	}
	m.ram = (n + ramAlign - 1) &^ (ramAlign - 1)
	return nil
}

func (m *machine) addObject(value string) error {
	var typ, id, size, memPath, share string
	if strings.HasPrefix(value, "{") {
		var o struct {
			QOMType string `json:"qom-type"`
			ID      string
			Size    json.Number
			MemPath string `json:"mem-path"`
			Share   bool
		}
		if err := json.Unmarshal([]byte(value), &o); err != nil {
			return fmt.Errorf("-object: %w", err)
		}
		typ, id, size, memPath, share = o.QOMType, o.ID, o.Size.String(), o.MemPath, strconv.FormatBool(o.Share)
	} else {
		var o map[string]string
		o, typ = splitOptions(value, "qom-type")
		id, size, memPath, share = o["id"], o["size"], o["mem-path"], o["share"]
	}
	if !strings.HasPrefix(typ, "memory-backend-") {
		return nil
	}
	n, err := parseSize(size, 1)
	if err != nil {
		return fmt.Errorf("-object %s: %w", id, err)
	}
	m.objects[id] = object{typ, n, memPath, share == "on" || share == "true" || share == "yes"}
	return nil
}

// parseSize parses QEMU's sizes: "512", "1.5G", "0x1000".
func parseSize(s string, unit uint64) (uint64, error) {
	digits := s
	if i := len(s) - 1; i > 0 && !strings.HasPrefix(s, "0x") {
		switch k := strings.IndexByte("BKMGTPE", s[i]&^0x20); {
		case k >= 0:
			digits, unit = s[:i], 1<<(10*k)
		}
	}
	if whole, frac, ok := strings.Cut(digits, "."); ok && len(frac) < 16 {
		f, err := strconv.ParseFloat(whole+"."+frac, 64)
		if err != nil || f < 0 || f*float64(unit) > 1<<62 {
			return 0, fmt.Errorf("%q is no size", s)
		}
		return uint64(f * float64(unit)), nil
	}
	n, err := strconv.ParseUint(digits, 0, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no size", s)
	}
	hi, lo := bits.Mul64(n, unit)
	if hi != 0 || lo > 1<<62 {
		return 0, fmt.Errorf("%q is no size", s)
	}
	return lo, nil
}
