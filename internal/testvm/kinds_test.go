package testvm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Machines of other shapes than the default must boot and compute.
func TestOtherMachines(t *testing.T) {
	const la57 = 1 << 12 // of CR4
	for name, c := range map[string]Config{
		"5-level page tables": {Suite: "trixie", CPU: "max,-cx16"},
		"two processors":      {Suite: "bookworm", CPUs: 2},
		"above the PCI hole":  {Suite: "bookworm", Memory: 5 << 30},
		"anonymous RAM":       {Suite: "trixie", AnonymousRAM: true},
		"no KASLR":            {Suite: "bookworm", KernelArgs: "nokaslr"},
	} {
		t.Run(name, func(t *testing.T) {
			vm := Start(t, c)
			out, err := vm.Exec(t.Context(), "sh", "-c", "nproc; grep MemTotal /proc/meminfo; cat /proc/cmdline")
			require.NoError(t, err)
			lines := strings.Split(string(out), "\n")
			require.Equal(t, strconv.Itoa(vm.Config().CPUs), lines[0])
			kib, err := strconv.ParseInt(strings.Fields(lines[1])[1], 10, 64)
			require.NoError(t, err)
			require.Greater(t, kib<<10, vm.Config().Memory*8/10)
			require.Contains(t, lines[2], c.KernelArgs)
			require.Equal(t, c.AnonymousRAM, vm.RAMPath() == "")

			regs, err := vm.Monitor(t.Context(), "info registers")
			require.NoError(t, err)
			var cr4 uint64
			_, err = fmt.Sscanf(regs[strings.Index(regs, "CR4="):], "CR4=%x", &cr4)
			require.NoError(t, err)
			require.Equal(t, strings.HasPrefix(c.CPU, "max,-cx16"), cr4&la57 != 0, "CR4 %#x", cr4)
			vm.CheckKernel(t)
		})
	}
}

func TestFailedBootShowsConsole(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest; -short is set")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := Boot(ctx, Config{KernelArgs: "rdinit=/no/such/init"})
	require.ErrorContains(t, err, "Kernel panic")
	_, err = Boot(ctx, Config{QEMUArgs: []string{"-device", "flux-capacitor"}})
	require.ErrorContains(t, err, "flux-capacitor")
	_, err = Boot(ctx, Config{Dir: "/" + strings.Repeat("x", 120)})
	require.ErrorContains(t, err, "name too long")
}

const victim = "OVM_TEST_VICTIM"

// TestVictim is the body of the process that TestKilledProcessLeavesNothing kills.
func TestVictim(t *testing.T) {
	out := os.Getenv(victim)
	if out == "" {
		return
	}
	vm := Start(t, Config{Suite: "bookworm"})
	require.NoError(t, os.WriteFile(out, fmt.Appendf(nil, "%d %s", vm.PID(), filepath.Dir(vm.RAMPath())), 0o600))
	select {}
}

func TestKilledProcessLeavesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest; -short is set")
	}
	for name, kill := range map[string]func(pid int) error{
		"process":       func(pid int) error { return syscall.Kill(pid, syscall.SIGKILL) },
		"process group": func(pid int) error { return syscall.Kill(-pid, syscall.SIGKILL) },
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "vm")
			cmd := exec.Command(os.Args[0], "-test.run=^TestVictim$")
			cmd.Env = append(os.Environ(), victim+"="+file)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			require.NoError(t, cmd.Start())
			var qemu int
			var dir string
			ctx, cancel := context.WithTimeout(t.Context(), bootTime)
			defer cancel()
			err := Wait(ctx, "the victim's guest", func() (bool, error) {
				b, _ := os.ReadFile(file)
				n, _ := fmt.Sscanf(string(b), "%d %s", &qemu, &dir)
				return n == 2, nil
			})
			require.NoError(t, err)
			require.NoError(t, syscall.Kill(qemu, 0), "QEMU runs")
			_, err = os.Stat(filepath.Join(dir, "ram"))
			require.NoError(t, err)

			require.NoError(t, kill(cmd.Process.Pid))
			_ = cmd.Wait()
			ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			require.NoError(t, Wait(ctx, "QEMU to die", func() (bool, error) { return gone(qemu), nil }))
			require.NoError(t, Wait(ctx, "the directory to go", func() (bool, error) {
				_, err := os.Stat(dir)
				return os.IsNotExist(err), nil
			}))
		})
	}
}

// gone says whether a process has ended, be it that nobody has collected it yet.
func gone(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, "Z")
}
