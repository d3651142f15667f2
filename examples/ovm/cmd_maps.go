package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ovmigrate/ovmigrate/kernel"
)

func (a *app) mapsCommand() *cobra.Command {
	return a.jsonFlag(a.command("maps PID", "List the memory mappings of a process",
		"maps lists the mappings of a process, as /proc/PID/maps of the guest does.",
		func(c *cobra.Command, args []string) error {
			return a.process(c.Context(), needRead, args[0], func(_ *guest, t *kernel.Task) error {
				all, err := readMappings(t)
				if err != nil {
					return about(t, err)
				}
				if a.json {
					return a.printJSON(all)
				}
				return printMappings(a, all)
			})
		}))
}

// mapping is an element of what maps --json prints.
type mapping struct {
	Start  hex      `json:"start"`
	End    hex      `json:"end"`
	Perms  string   `json:"perms"`
	Offset hex      `json:"offset"` // bytes
	Dev    string   `json:"dev"`    // major:minor, hexadecimal
	Inode  uint64   `json:"inode"`
	Path   string   `json:"path"`  // as /proc/PID/maps shows it, newlines as \012
	Flags  []string `json:"flags"` // as VmFlags in /proc/PID/smaps
}

// readMappings returns the mappings of t, read again if they change meanwhile.
func readMappings(t *kernel.Task) (all []mapping, err error) {
	for range walkTries {
		if all, err = tryMappings(t); err == nil || t.Refresh() != nil {
			break
		}
	}
	return all, err
}

func tryMappings(t *kernel.Task) ([]mapping, error) {
	mm, err := t.MM()
	if err != nil {
		return nil, err
	}
	vmas, err := mm.VMAList()
	if err != nil {
		return nil, err
	}
	all := make([]mapping, 0, len(vmas)+1)
	for i := range vmas {
		m, err := newMapping(mm, &vmas[i])
		if err != nil {
			return nil, fmt.Errorf("mapping at %s: %w", vmas[i].Start, err)
		}
		all = append(all, m)
	}
	return all, nil
}

func newMapping(mm *kernel.MM, v *kernel.VMA) (mapping, error) {
	m := mapping{
		Start: hex(v.Start), End: hex(v.End), Perms: v.Flags.String(), Dev: kernel.Dev{}.String(),
		Flags: vmFlagNames(mm.Kernel(), v.Flags),
	}
	var err error
	if m.Path, err = mm.Name(v); err != nil || v.File == 0 {
		return m, err
	}
	// The kernel shows the offset of files only.
	m.Offset = hex(v.PgOff << 12)
	f, err := mm.Kernel().FileAt(v.File)
	if err != nil {
		return m, err
	}
	inode, err := f.UserInode()
	if err != nil {
		return m, err
	}
	sb, err := inode.SuperBlock()
	if err != nil {
		return m, err
	}
	m.Inode, m.Dev = inode.Ino, sb.Dev.String()
	return m, nil
}

// vmFlagMnemonics are the names of VM_* flags by bit. Source:
// fs/proc/task_mmu.c:show_smap_vma_flags.
var vmFlagMnemonics = map[int]string{
	0: "rd", 1: "wr", 2: "ex", 3: "sh", 4: "mr", 5: "mw", 6: "me", 7: "ms", 8: "gd", 9: "um", 10: "pf",
	12: "uw", 13: "lo", 14: "io", 15: "sr", 16: "rr", 17: "dc", 18: "de", 19: "lf", 20: "ac", 21: "nr",
	22: "ht", 23: "sf", 24: "ar", 25: "wf", 26: "dd", 27: "sd", 28: "mm", 29: "hg", 30: "nh", 31: "mg",
	// These moved: to where nothing else was before.
	38: "ui", 40: "dp", 41: "ui", 42: "sl", 63: "sl",
}

func vmFlagNames(k *kernel.Kernel, f kernel.VMFlags) []string {
	names := []string{}
	for bit := range 64 {
		if f>>bit&1 == 0 {
			continue
		}
		name, ok := vmFlagMnemonics[bit]
		switch {
		case ok:
		case bit == 11 && hasMember(k, "mm_struct", "mm_mt"):
			name = "gu" // since 6.19
		case bit == 11:
			name = "dw" // until 5.15: between them there is neither
		case bit >= 32 && bit < 36:
			continue // the protection key
		case bit == 37 && k.Types().HasFunc("shstk_alloc_thread_stack"):
			name = "ss"
		case bit == 37:
			name = "ui" // before there were shadow stacks
		default:
			name = fmt.Sprintf("bit%d", bit)
		}
		names = append(names, name)
	}
	return names
}

// hasMember says whether the kernel's structure has the member.
func hasMember(k *kernel.Kernel, cname, member string) bool {
	s, err := k.Types().Struct(cname)
	if err != nil {
		return false
	}
	_, err = s.Lookup(member)
	return err == nil
}

func printMappings(a *app, all []mapping) error {
	t := newTable(a.stdout)
	for _, m := range all {
		t.row(fmt.Sprintf("%012x-%012x", uint64(m.Start), uint64(m.End)), m.Perms,
			fmt.Sprintf("%08x", uint64(m.Offset)), m.Dev, m.Inode, m.Path)
	}
	return t.flush()
}
