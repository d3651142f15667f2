package signal

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strconv"

	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/vmi"
)

// guestID tells one boot of one virtual machine from every other: a journal holds
// guest-physical addresses, which mean nothing elsewhere. A guest that reboots in the
// same QEMU is another one, and so is its copy in another QEMU.
type guestID struct {
	Banner  string   `json:"banner"`
	Root    vmi.Phys `json:"page_table_root"`
	Base    uint64   `json:"virt_base"`
	Booted  uint64   `json:"init_start_ns"` // start of pid 1, CLOCK_BOOTTIME
	Process int      `json:"process"`       // of the hypervisor, 0 if unknown
	Started uint64   `json:"started"`       // when it started, in ticks since the host booted
}

func identify(k *kernel.Kernel) (guestID, error) {
	g := k.Guest()
	id := guestID{Banner: g.Banner, Root: g.Root, Base: uint64(g.VirtBase)}
	init, err := k.Task(1)
	if err != nil {
		return id, fmt.Errorf("the guest's identity: %w", err)
	}
	id.Booted = init.BootTime
	if m, ok := k.Memory().(interface{ PID() int }); ok {
		id.Process = m.PID()
		id.Started = processStart(id.Process)
	}
	return id, nil
}

// processStart returns field 22 of /proc/PID/stat, 0 if it cannot be read.
func processStart(pid int) uint64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	const afterComm = 22 - 3
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) <= afterComm {
		return 0
	}
	n, _ := strconv.ParseUint(string(f[afterComm]), 10, 64)
	return n
}

// key returns the part of a journal's file name that says whose it is.
func (id guestID) key() string {
	b, err := json.Marshal(id)
	if err != nil {
		panic(err) // a struct of strings and numbers
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}
