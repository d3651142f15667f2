// Package qemu opens the memory of a running QEMU.
//
// "qmp:SOCKET" asks QEMU itself, over its monitor socket: which memory backends
// are guest RAM, at which guest-physical addresses (the PCI hole below 4 GiB and
// hot-plugged blocks included), and at which addresses of its own process. From
// there on QEMU is not asked for memory again. RAM that QEMU shares
// (memory-backend-file or memory-backend-memfd with share=on) is mapped: reads are
// copies at memory speed, [vmi.Viewer] needs none, and an aligned word is written
// in one store. Other RAM is read and written by process_vm_readv and
// process_vm_writev, about a microsecond a call, which needs root or the user that
// runs QEMU. What was found is compared with what QEMU's own monitor reads, and a
// mismatch is refused.
//
// "pid:PID" does without the monitor, which is often taken by a manager: the size
// and kind of RAM come from the command line, its place from /proc/PID/maps, and
// the layout from the e820 table that QEMU keeps in its heap to hand to the
// firmware; ARM's machine virt has but one. What is not found exactly once is refused. Such a guest has no
// registers and cannot be paused; see [Process].
//
// The layout is the one at the time of opening. Memory plugged later is not seen.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/ovmigrate/ovmigrate/vmi"
	"github.com/ovmigrate/ovmigrate/vmi/qmp"
)

func init() {
	vmi.Register(vmi.Source{Name: "QEMU by QMP", Scheme: "qmp", Open: Open})
	vmi.Register(vmi.Source{Name: "QEMU by pid", Scheme: "pid", Open: OpenPID})
}

// Errors of a live guest, for errors.Is.
var (
	// ErrGone: QEMU has exited. Reading and writing fail with it from then on, also
	// where the RAM file is still there.
	ErrGone = errors.New("the virtual machine is gone")

	// ErrResumed: somebody else let the guest run while we held it paused. What was
	// read under that pause is not of one moment.
	ErrResumed = errors.New("somebody else resumed the virtual machine during the pause")

	// ErrLayout: where guest RAM is in the host could not be found with certainty.
	ErrLayout = errors.New("guest memory layout")
)

// Guest is a QEMU with its monitor. It is a [vmi.Image], [vmi.Viewer],
// [vmi.Sparse], [vmi.CPUs], [vmi.PC], [vmi.Pauser], [vmi.Continuer], [vmi.Stater] and
// [vmi.NMI].
type Guest struct {
	memory
	qmp *qmp.Client
	pid int
	log *slog.Logger

	removeHandler func()
	running       atomic.Bool   // by the last event
	changes       atomic.Uint64 // of running, seen

	pauseMu sync.Mutex
	depth   int         // pauses that are held
	stopped bool        // we stopped the guest and have to let it run
	watch   atomic.Bool // a RESUME now is not ours
	foreign atomic.Bool // there was one
}

// WritableGuest is a Guest that was opened for writing, a [vmi.Writer].
type WritableGuest struct{ *Guest }

// PID returns QEMU's process, 0 if it is not known.
func (g *Guest) PID() int { return g.pid }

// QMP returns the monitor connection, for commands and events. It is closed with
// the guest.
func (g *Guest) QMP() *qmp.Client { return g.qmp }

func (g *Guest) alive(addr vmi.Phys, n int) error {
	select {
	case <-g.qmp.Done():
		return &vmi.FaultError{Addr: addr, Len: n, Err: fmt.Errorf("%w: %w", ErrGone, g.qmp.Err())}
	default:
		return nil
	}
}

// ReadPhys implements [vmi.Memory]. When the monitor connection has ended, so has
// the guest, and the fault wraps ErrGone.
func (g *Guest) ReadPhys(p []byte, addr vmi.Phys) (int, error) {
	if err := g.alive(addr, len(p)); err != nil {
		return 0, err
	}
	return g.readPhys(p, addr)
}

// WritePhys implements [vmi.Writer].
func (g *WritableGuest) WritePhys(p []byte, addr vmi.Phys) (int, error) {
	if err := g.alive(addr, len(p)); err != nil {
		return 0, err
	}
	return g.writePhys(p, addr)
}

// CPUs implements [vmi.CPUs] by "info registers -a", which does not print KGSBase.
// It takes under a millisecond, for it is called while a guest stands still.
func (g *Guest) CPUs(ctx context.Context) ([]vmi.CPU, error) {
	text, err := g.qmp.HMP(ctx, "info registers -a")
	if err != nil {
		return nil, err
	}
	return parseRegisters(text)
}

// PC implements [vmi.PC].
func (g *Guest) PC(ctx context.Context, cpu int) (uint64, error) {
	// QEMU reads commands byte by byte; the shortest is the fastest.
	args := map[string]any{"command-line": "p/x $pc"}
	if cpu != 0 {
		args["cpu-index"] = cpu
	}
	var text string
	err := g.qmp.Execute(ctx, "human-monitor-command", args, &text)
	if err != nil {
		return 0, err
	}
	pc, err := strconv.ParseUint(strings.TrimPrefix(strings.TrimSpace(text), "0x"), 16, 64)
	if err != nil {
		return 0, fmt.Errorf("program counter of CPU %d: QEMU says %.100q", cpu, text)
	}
	return pc, nil
}

// Status implements [vmi.Stater].
func (g *Guest) Status(ctx context.Context) (vmi.Status, error) {
	var s struct {
		Running bool
		Status  string
	}
	err := g.qmp.Execute(ctx, "query-status", nil, &s)
	return vmi.Status{Running: s.Running, State: s.Status}, err
}

// InjectNMI implements [vmi.NMI].
func (g *Guest) InjectNMI(ctx context.Context) error {
	return g.qmp.Execute(ctx, "inject-nmi", nil, nil)
}

// Close lets the guest run if a pause of ours is still held, and releases it.
func (g *Guest) Close() error {
	err := g.releaseAll()
	g.removeHandler()
	return errors.Join(err, g.qmp.Close(), g.close())
}
