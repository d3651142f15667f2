package testvm

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// DefaultCPU is the processor of a guest: all that TCG has (AVX2, PKU, SMAP), but
// 4-level page tables, as most machines have, and no cmpxchg16b. QEMU 7.2 sometimes
// leaves garbage in the flags after that instruction, and a guest kernel that is
// interrupted there dies of a double fault.
const DefaultCPU = "max,la57=off,-cx16"

// DefaultCPUARM64 is the processor of an arm64 guest: one of 48-bit addresses. "max"
// has 52 bits of them, which 7.2 kernels do not boot with under QEMU 7.2.
const DefaultCPUARM64 = "cortex-a72"

// Config describes a guest to boot. The zero value of a field means its default.
type Config struct {
	Suite  string // name of a suite; default that of Kernel, or else "bookworm"
	Kernel string // name of a kernel; default the suite's own

	// KernelImage is the file of a kernel to boot instead, with all that it needs of
	// the guest built in. The suite's own modules are not for it.
	KernelImage string

	Memory int64  // bytes of RAM; default 512 MiB
	CPUs   int    // virtual processors; default 1. More run in one thread (see package comment)
	CPU    string // QEMU's -cpu; default DefaultCPU

	// At most one of these says where RAM is instead of in a shared file: in QEMU's
	// own memory, in a memfd, or half in a memfd and half in QEMU's own memory, a
	// NUMA node each.
	AnonymousRAM, MemFD, NUMA bool

	KernelArgs string   // added to the kernel's command line; later words win
	QEMUArgs   []string // added to QEMU's arguments

	// Dir holds the sockets and the console log; it must exist. The default is a
	// new directory that Stop removes.
	Dir string

	// Console, if set, is where the serial console is logged, and is kept.
	Console string
}

func (c Config) withDefaults() Config {
	if k, err := findKernel(c.Kernel); err == nil && c.Suite == "" {
		c.Suite = k.Suite
	}
	if c.Suite == "" {
		c.Suite = "bookworm"
	}
	if c.Memory == 0 {
		c.Memory = 512 << 20
	}
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.CPU == "" {
		c.CPU = DefaultCPU
		if c.arch() == "arm64" {
			c.CPU = DefaultCPUARM64
		}
	}
	return c
}

// arch is that of the suite.
func (c Config) arch() string {
	s, _ := findSuite(c.Suite)
	return s.arch()
}

// name tells the guest in messages.
func (c Config) name() string {
	if c.Kernel != "" {
		return c.Suite + " with kernel " + c.Kernel
	}
	return c.Suite
}

// image finds what the guest boots from.
func (c Config) image() (*Image, error) {
	if c.Kernel == "" {
		img, err := FindImage(c.Suite)
		if err == nil && c.KernelImage != "" {
			img.Kernel = c.KernelImage
		}
		return img, err
	}
	img, err := FindKernel(c.Kernel)
	if err == nil && img.Suite != c.Suite {
		err = fmt.Errorf("kernel %s boots %s, not %s", c.Kernel, img.Suite, c.Suite)
	}
	return img, err
}

// key tells configurations apart that need different machines.
func (c Config) key() string { return fmt.Sprintf("%+v", c.withDefaults()) }

// maxDir is what the path of a Unix socket (107 bytes) leaves for its directory.
const maxDir = 107 - len("/library.qmp")

// ramDir is where a RAM file of the given size goes: a tmpfs if there is one with
// room (that of a container is often 64 MiB, and QEMU dies where it runs out).
func ramDir(size int64) string {
	const shm = "/dev/shm"
	var st syscall.Statfs_t
	if syscall.Statfs(shm, &st) == nil && int64(st.Bavail)*st.Bsize > size {
		return shm
	}
	return os.TempDir()
}

// files of one machine.
type files struct{ dir, ram string }

func (f files) libraryQMP() string { return filepath.Join(f.dir, "library.qmp") }
func (f files) harnessQMP() string { return filepath.Join(f.dir, "harness.qmp") }
func (f files) agent() string      { return filepath.Join(f.dir, "agent.port") }
func (f files) console() string    { return filepath.Join(f.dir, "console.log") }

// opt quotes a path for use in a QEMU option, where a comma ends the value.
func opt(path string) string { return strings.ReplaceAll(path, ",", ",,") }

// qemu is the program that runs guests of an architecture.
func qemu(arch string) string {
	if arch == "arm64" {
		return "qemu-system-aarch64"
	}
	return "qemu-system-x86_64"
}

// qemuArgs is the command line of QEMU, without the program's name.
func qemuArgs(c Config, img *Image, f files) []string {
	console := c.Console
	if console == "" {
		console = f.console()
	}
	machine, cmdline := "q35,usb=off,vmport=off", "console=ttyS0 loglevel=5 panic=-1 pti=on "
	if c.arch() == "arm64" {
		machine, cmdline = "virt,gic-version=3", "console=ttyAMA0 loglevel=5 panic=-1 "
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-name", "ovm-" + c.Suite,
		"-machine", machine,
		// More than one thread of TCG breaks atomic operations in QEMU 7.2.
		"-accel", "tcg,thread=single",
		"-cpu", c.CPU, "-smp", strconv.Itoa(c.CPUs), "-m", strconv.FormatInt(c.Memory>>10, 10) + "K",
		"-kernel", img.Kernel, "-initrd", img.Initrd,
		"-append", cmdline + c.KernelArgs,
		// A temporary overlay, already unlinked: many guests share one image.
		"-drive", "if=none,id=root,format=raw,snapshot=on,cache=unsafe,file=" + opt(img.Disk),
		"-device", "virtio-blk-pci,drive=root",
		"-device", "virtio-rng-pci",
		"-chardev", "file,id=console,path=" + opt(console), "-serial", "chardev:console",
		"-chardev", "socket,id=agent,server=on,wait=off,path=" + opt(f.agent()),
		"-device", "virtio-serial-pci",
		"-device", "virtserialport,chardev=agent,name=ovm.agent",
		"-chardev", "socket,id=qmp0,server=on,wait=off,path=" + opt(f.libraryQMP()), "-mon", "chardev=qmp0,mode=control",
		"-chardev", "socket,id=qmp1,server=on,wait=off,path=" + opt(f.harnessQMP()), "-mon", "chardev=qmp1,mode=control",
	}
	return append(append(args, ramArgs(c, f)...), c.QEMUArgs...)
}

// ramArgs are the options about where RAM is.
func ramArgs(c Config, f files) []string {
	size := ",size=" + strconv.FormatInt(c.Memory, 10)
	ram := "memory-backend-file,id=ram,share=on,mem-path=" + opt(f.ram) + size
	switch {
	case c.AnonymousRAM:
		ram = "memory-backend-ram,id=ram" + size
	case c.MemFD:
		ram = "memory-backend-memfd,id=ram,share=on" + size
	case c.NUMA:
		half := ",size=" + strconv.FormatInt(c.Memory/2, 10)
		return []string{
			"-object", "memory-backend-memfd,id=ram0,share=on" + half, "-numa", "node,nodeid=0,memdev=ram0",
			"-object", "memory-backend-ram,id=ram1" + half, "-numa", "node,nodeid=1,memdev=ram1",
		}
	}
	return []string{"-object", ram, "-machine", "memory-backend=ram"}
}
