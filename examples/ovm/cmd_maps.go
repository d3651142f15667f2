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
					return fmt.Errorf("pid %d: %w", t.PID, err)
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
	Path   string   `json:"path"`
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
		Flags: vmFlagNames(v.Flags),
	}
	if v.File == 0 {
		var err error
		m.Path, err = anonymousName(mm, v)
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
	path, err := f.UserPath()
	if err != nil {
		return m, err
	}
	name, err := mm.Kernel().PathName(path, kernel.Path{})
	m.Path = name.String()
	return m, err
}

// anonymousName returns the name that the kernel gives to a mapping without file.
// Source: fs/proc/task_mmu.c:get_vma_name.
func anonymousName(mm *kernel.MM, v *kernel.VMA) (string, error) {
	name, err := mm.SpecialName(v)
	switch {
	case err != nil || name != "":
		return name, err
	case v.Start < mm.Brk && v.End > mm.StartBrk:
		return "[heap]", nil
	case v.Start <= mm.StartStack && v.End >= mm.StartStack:
		return "[stack]", nil
	case v.AnonName != 0:
		return anonName(mm.Kernel(), v.AnonName)
	}
	return "", nil
}

// anonName returns the name given with prctl(PR_SET_VMA_ANON_NAME), as the kernel
// shows it.
func anonName(k *kernel.Kernel, a kernel.Addr) (string, error) {
	o, err := k.Object("anon_vma_name", a)
	if err != nil {
		return "", err
	}
	if o, err = o.Field("name"); err != nil {
		return "", err
	}
	const maxLen = 80 // ANON_VMA_NAME_MAX_LEN
	name, err := k.CString(o.Addr(), maxLen)
	return "[anon:" + name + "]", err
}

// vmFlagMnemonics are the names of VM_* flags by bit. Source:
// fs/proc/task_mmu.c:show_smap_vma_flags.
var vmFlagMnemonics = map[int]string{
	0: "rd", 1: "wr", 2: "ex", 3: "sh", 4: "mr", 5: "mw", 6: "me", 7: "ms", 8: "gd", 9: "um", 10: "pf",
	12: "uw", 13: "lo", 14: "io", 15: "sr", 16: "rr", 17: "dc", 18: "de", 19: "lf", 20: "ac", 21: "nr",
	22: "ht", 23: "sf", 24: "ar", 25: "wf", 26: "dd", 27: "sd", 28: "mm", 29: "hg", 30: "nh", 31: "mg",
}

func vmFlagNames(f kernel.VMFlags) []string {
	names := []string{}
	for bit := range 64 {
		if f>>bit&1 == 0 {
			continue
		}
		name, ok := vmFlagMnemonics[bit]
		switch {
		case ok:
		case bit >= 32 && bit < 36:
			continue // the protection key
		default:
			name = fmt.Sprintf("bit%d", bit)
		}
		names = append(names, name)
	}
	return names
}

func printMappings(a *app, all []mapping) error {
	t := newTable(a.stdout)
	for _, m := range all {
		t.row(fmt.Sprintf("%012x-%012x", uint64(m.Start), uint64(m.End)), m.Perms,
			fmt.Sprintf("%08x", uint64(m.Offset)), m.Dev, m.Inode, m.Path)
	}
	return t.flush()
}
