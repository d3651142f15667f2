package qemu

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ovmigrate/ovmigrate/vmi"
)

// gprNames are in the order of vmi.CPU.GPR. A processor outside long mode shows
// the E names.
var gprNames = map[string]int{
	"RAX": 0, "RCX": 1, "RDX": 2, "RBX": 3, "RSP": 4, "RBP": 5, "RSI": 6, "RDI": 7,
	"R8": 8, "R9": 9, "R10": 10, "R11": 11, "R12": 12, "R13": 13, "R14": 14, "R15": 15,
	"EAX": 0, "ECX": 1, "EDX": 2, "EBX": 3, "ESP": 4, "EBP": 5, "ESI": 6, "EDI": 7,
}

// parseRegisters parses "info registers -a":
//
//	CPU#0
//	RAX=0000000000000000 RBX=…
//	R8 =0000000000000000 …
//	RIP=ffffffff8100beef RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
//	FS =0000 00007f0000000000 00000000 00000000
//	CR0=80050033 CR2=… CR3=… CR4=…
//	EFER=0000000000000d01
func parseRegisters(text string) ([]vmi.CPU, error) {
	var cpus []vmi.CPU
	sawRIP := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if id, ok := strings.CutPrefix(line, "CPU#"); ok {
			n, err := strconv.ParseUint(id, 10, 31)
			if err != nil {
				return nil, fmt.Errorf("registers: line %q", line)
			}
			if len(cpus) > 0 && !sawRIP {
				return nil, errNoRIP
			}
			cpus, sawRIP = append(cpus, vmi.CPU{ID: int(n)}), false
			continue
		}
		if len(cpus) == 0 {
			continue
		}
		fields := strings.Fields(strings.ReplaceAll(line, " =", "="))
		for i, f := range fields {
			key, value, ok := strings.Cut(f, "=")
			if !ok {
				continue
			}
			n, err := strconv.ParseUint(value, 16, 64)
			if err != nil {
				continue // "GDT=" and the likes
			}
			var next uint64 // of a segment: the base
			if i+1 < len(fields) {
				next, _ = strconv.ParseUint(fields[i+1], 16, 64)
			}
			setRegister(&cpus[len(cpus)-1], key, n, next)
			sawRIP = sawRIP || key == "RIP" || key == "EIP"
		}
	}
	if !sawRIP {
		return nil, errNoRIP
	}
	slices.SortStableFunc(cpus, func(a, b vmi.CPU) int { return cmp.Compare(a.ID, b.ID) })
	return cpus, nil
}

var errNoRIP = errors.New("registers: no x86 instruction pointer in what QEMU prints")

func setRegister(c *vmi.CPU, key string, n, next uint64) {
	if i, ok := gprNames[key]; ok {
		c.GPR[i] = n
		return
	}
	switch key {
	case "RIP", "EIP":
		c.RIP = n
	case "RFL", "EFL":
		c.RFLAGS = n
	case "CS":
		c.CS = uint16(n)
	case "SS":
		c.SS = uint16(n)
	case "FS":
		c.FSBase = next
	case "GS":
		c.GSBase = next
	case "CR0":
		c.CR0 = n
	case "CR2":
		c.CR2 = n
	case "CR3":
		c.CR3 = n
	case "CR4":
		c.CR4, c.Known = n, c.Known|vmi.KnownControl
	case "EFER":
		c.EFER, c.Known = n, c.Known|vmi.KnownEFER
	case "HLT":
		c.Halted, c.Known = n != 0, c.Known|vmi.KnownHalted
	}
}
