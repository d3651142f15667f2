package testvm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Kernel is one of the kernels that Debian ships, to boot a suite's root file system
// with. Names tell the release and the flavour: versions change under them.
type Kernel struct {
	Name    string // what Config.Kernel takes
	Arch    string // Debian's name of the architecture
	Release string // of Debian, that the package is in
	Package string // depends on the newest kernel of its flavour
	Suite   string // whose root file system is booted
	Always  bool   // built and tested even if only a few are: see Chosen
}

// Chosen says whether tests that go through many kernels take this one: a few that
// differ much, or all of them if $OVM_KERNELS is "all", as 'make test-kernels' has it.
func (k Kernel) Chosen() bool { return k.Always || AllKernels() }

// AllKernels says whether tests are to go through all kernels.
func AllKernels() bool { return os.Getenv("OVM_KERNELS") == "all" }

// Chosen says whether tests that go through many kernels take the one of that name.
func Chosen(name string) bool {
	k, err := findKernel(name)
	return err == nil && k.Chosen()
}

// kernels is the table of known kernels. A row is all that a new one takes.
var kernels = []Kernel{
	{"bullseye-cloud", "amd64", "bullseye", "linux-image-cloud-amd64", "bookworm", true},
	{"bullseye-generic", "amd64", "bullseye", "linux-image-amd64", "bookworm", false},
	{"bullseye-rt", "amd64", "bullseye", "linux-image-rt-amd64", "bookworm", false},
	{"bookworm-cloud", "amd64", "bookworm", "linux-image-cloud-amd64", "bookworm", true},
	{"bookworm-generic", "amd64", "bookworm", "linux-image-amd64", "bookworm", false},
	{"bookworm-rt", "amd64", "bookworm", "linux-image-rt-amd64", "bookworm", true},
	{"trixie-cloud", "amd64", "trixie", "linux-image-cloud-amd64", "trixie", true},
	{"trixie-generic", "amd64", "trixie", "linux-image-amd64", "bookworm", false},
	{"trixie-rt", "amd64", "trixie", "linux-image-rt-amd64", "bookworm", false},
	{"sid-cloud", "amd64", "sid", "linux-image-cloud-amd64", "bookworm", false},
	{"sid-generic", "amd64", "sid", "linux-image-amd64", "bookworm", true},
	{"sid-rt", "amd64", "sid", "linux-image-rt-amd64", "bookworm", false},
	{"bullseye-arm64", "arm64", "bullseye", "linux-image-cloud-arm64", "bookworm-arm64", false},
	{"bookworm-arm64", "arm64", "bookworm", "linux-image-cloud-arm64", "bookworm-arm64", false},
	{"trixie-arm64", "arm64", "trixie", "linux-image-cloud-arm64", "bookworm-arm64", false},
	{"sid-arm64", "arm64", "sid", "linux-image-cloud-arm64", "bookworm-arm64", true},
}

var (
	// bootModules are loaded before the root disk is there to load modules from.
	bootModules = []string{"crc32c", "crc32c_generic", "libcrc32c", "virtio_pci", "virtio_blk", "ext4"}

	// guestModules are there for the guest to load, with all that they need. What a
	// kernel does not have is left out: flavours differ in it.
	guestModules = strings.Fields(`
		virtio_console virtio_rng virtio_net virtio_balloon vmw_vsock_virtio_transport qemu_fw_cfg
		unix_diag inet_diag tcp_diag udp_diag raw_diag af_packet_diag netlink_diag sctp sctp_diag
		vsock vsock_diag vsock_loopback af_packet tls af_alg algif_hash algif_skcipher
		tun veth bridge dummy macvlan ipvlan vxlan bonding ip_gre ipip sit 8021q
		nf_tables nft_compat nft_chain_nat nft_ct nft_counter nft_masq nft_nat nft_reject_inet
		nf_conntrack nf_nat x_tables xt_conntrack xt_MASQUERADE xt_comment xt_tcpudp xt_addrtype
		ip_tables iptable_filter iptable_nat ip6_tables ip_set
		sch_fq_codel sch_htb sch_netem cls_bpf tcp_bbr
		overlay fuse loop squashfs isofs vfat nls_cp437 nls_ascii nls_iso8859_1 nls_utf8 btrfs xfs autofs4
		binfmt_misc configfs 9p 9pnet_virtio dm_mod zram null_blk nbd brd`)

	// keptModules are the directories of modules that are kept of a package, so that
	// a longer list above takes no download. A file is kept with all its siblings.
	keptModules = []string{
		"arch", "block", "crypto", "fs", "kernel", "lib", "mm", "net", "security", "virt",
		"drivers/block", "drivers/char", "drivers/dax", "drivers/firmware", "drivers/md", "drivers/net/bonding",
		"drivers/net/ipvlan", "drivers/net/vxlan", "drivers/net/*", "drivers/nvdimm", "drivers/vhost", "drivers/virtio",
	}
)

// Kernels returns all kernels that guests can be booted with, those of the suites
// themselves included.
func Kernels() []Kernel { return slices.Clone(kernels) }

func findKernel(name string) (Kernel, error) {
	var names []string
	for _, k := range kernels {
		if k.Name == name {
			return k, nil
		}
		names = append(names, k.Name)
	}
	return Kernel{}, fmt.Errorf("kernel %q: unknown; there are %s", name, strings.Join(names, ", "))
}

// own says whether the kernel is the one that the image of its suite is built with.
func (k Kernel) own() bool {
	s, err := findSuite(k.Suite)
	return err == nil && k.Release == s.release() && slices.Contains(s.Packages, k.Package)
}

// baseKey names what is kept of the packages, key the files that a guest boots from.
func (k Kernel) baseKey() string {
	return digest([]string{"kernel base", recipeVersion, k.Arch, k.Release, k.Package, strings.Join(keptModules, ",")}, nil)
}

func (k Kernel) key() (string, error) {
	s, err := findSuite(k.Suite)
	if err != nil {
		return "", err
	}
	first, err := sources.ReadFile(initramfsInit)
	if err != nil {
		return "", err
	}
	return digest([]string{
		"kernel", recipeVersion, k.baseKey(), s.baseKey(), string(first),
		strings.Join(bootModules, ","), strings.Join(guestModules, ","),
	}, nil), nil
}

// group names the kernels that are built together, of one list of packages.
func (k Kernel) group() string { return "kernel-" + k.Release + "-" + k.Arch }

// label is the beginning of the names of the kernel's files in the cache.
func (k Kernel) label() string { return k.Arch + "-" + k.Name + "-" }

func (k Kernel) baseDir(cache string) string {
	return filepath.Join(cache, "kernelbase-"+k.label()+k.baseKey())
}

func (k Kernel) dir(cache string) (string, error) {
	key, err := k.key()
	return filepath.Join(cache, "kernel-"+k.label()+key), err
}

// built returns the directory with the files that a guest boots from, or an error
// that wraps ErrNoImage.
func (k Kernel) built() (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	dir, err := k.dir(cache)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("kernel %s: %w", k.Name, ErrNoImage)
		}
		return "", err
	}
	return dir, nil
}

// FindKernel returns the image of the root file system that a kernel of the table is
// for, with that kernel in place of the suite's own, or an error that wraps ErrNoImage.
func FindKernel(name string) (*Image, error) {
	k, err := findKernel(name)
	if err != nil {
		return nil, err
	}
	img, err := FindImage(k.Suite)
	if err != nil || k.own() {
		return img, err
	}
	dir, err := k.built()
	if err != nil {
		return nil, err
	}
	img.Kernel, img.Initrd = filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd.img")
	return img, nil
}
