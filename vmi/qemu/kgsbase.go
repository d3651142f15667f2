package qemu

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/elfcore"
)

// addKGSBase completes cpus with what "info registers" does not print: the base
// that SWAPGS would load, which is the user's GS base of a task that was stopped in
// the kernel. A dump of one page carries it in its notes. QEMU stops a running
// guest to dump, so this is done on a stopped one only. Where it cannot be had,
// KGSBase stays unknown.
func (g *Guest) addKGSBase(ctx context.Context, cpus []vmi.CPU) error {
	status, err := g.Status(ctx)
	if err != nil || status.Running {
		return err
	}
	fd, err := unix.MemfdCreate("ovmigrate-cpus", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "dump")
	defer f.Close()
	const name = "ovmigrate-cpus"
	if err := g.qmp.SendFile(ctx, name, f); err != nil {
		return err
	}
	start := g.Ranges()[0].Start
	if err := g.qmp.Execute(ctx, "dump-guest-memory", map[string]any{
		"paging": false, "protocol": "fd:" + name, "begin": uint64(start), "length": vmi.PageSize,
	}, nil); err != nil {
		g.qmp.Execute(ctx, "closefd", map[string]string{"fdname": name}, nil)
		return err
	}
	dump, err := elfcore.Open(ctx, fmt.Sprintf("/proc/self/fd/%d", fd), nil)
	if err != nil {
		return err
	}
	defer dump.Close()
	full, err := dump.(vmi.CPUs).CPUs(ctx)
	if err != nil || len(full) != len(cpus) {
		return err
	}
	for i, c := range full {
		if c.Known&vmi.KnownKGSBase != 0 && c.RIP == cpus[i].RIP && c.GPR == cpus[i].GPR {
			cpus[i].KGSBase = c.KGSBase
			cpus[i].Known |= vmi.KnownKGSBase
		}
	}
	return nil
}
