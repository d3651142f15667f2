package testvm

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"slices"
	"sort"
	"strings"
)

// Everything of ours that goes into an image, so that a program built from this
// package can build images, and knows which image is the right one, anywhere.
//
//go:embed agent proto guestfs programs
var sources embed.FS

// Suite is one kind of guest: a Debian release.
type Suite struct {
	Name     string   // of the release, as debootstrap knows it; of an Arch, with it behind a hyphen
	Arch     string   // Debian's name of an architecture that is not this machine's; see foreign.go
	Packages []string // installed beside those of debootstrap's minbase
	Modules  []string // that the kernel needs before it can mount /dev/vda
}

var commonPackages = []string{
	"busybox-static", "criu", "iproute2", "iptables", "kmod", "linux-image-cloud-amd64",
	"memcached", "netbase", "nftables", "procps", "psmisc", "python3", "redis-server", "stress-ng",
}

// suites is the table of known guests. A row is all that a new one takes, as long
// as the release has CRIU and a C library no older than the build machine's.
var suites = []Suite{
	{Name: "bookworm", Packages: commonPackages, Modules: []string{"virtio_pci", "virtio_blk"}},
	{Name: "trixie", Packages: append([]string{"python3-pycriu"}, commonPackages...), Modules: []string{"virtio_pci", "virtio_blk"}},
	{Name: "bookworm-arm64", Arch: "arm64", Packages: foreignPackages, Modules: []string{"virtio_pci", "virtio_blk"}},
}

// Suites returns the names of the guests that can be built, those of other
// architectures left out.
func Suites() []string {
	var names []string
	for _, s := range suites {
		if s.Arch == "" {
			names = append(names, s.Name)
		}
	}
	return names
}

// release is the name of Debian's release.
func (s Suite) release() string { return strings.TrimSuffix(s.Name, "-"+s.Arch) }

// arch is Debian's name of the architecture.
func (s Suite) arch() string {
	if s.Arch == "" {
		return "amd64"
	}
	return s.Arch
}

func findSuite(name string) (Suite, error) {
	for _, s := range suites {
		if s.Name == name {
			return s, nil
		}
	}
	return Suite{}, fmt.Errorf("guest %q: unknown; there are %s", name, strings.Join(Suites(), ", "))
}

// recipeVersion changes when build.go makes something else from the same files.
const recipeVersion = "1"

// baseKey names the result of debootstrap, imageKey the image made from it.
func (s Suite) baseKey() string {
	p := slices.Clone(s.Packages)
	sort.Strings(p)
	return digest([]string{"base", recipeVersion, s.Name, strings.Join(p, ",")}, nil)
}

func (s Suite) imageKey() string { return s.imageKeyOf(sources) }

func (s Suite) imageKeyOf(files fs.FS) string {
	parts := []string{"image", recipeVersion, s.baseKey(), strings.Join(s.Modules, ",")}
	if s.Arch != "" {
		parts = append(parts, strings.Join(foreignDirs, ","))
	}
	return digest(parts, files)
}

// digest hashes the strings and the names and contents of all source files, tests
// left out: they do not reach the image.
func digest(parts []string, files fs.FS) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	if files != nil {
		err := fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !inImage(name) {
				return err
			}
			b, err := fs.ReadFile(files, name)
			fmt.Fprintf(h, "%d:%s%d:", len(name), name, len(b))
			h.Write(b)
			return err
		})
		if err != nil {
			panic(err) // the files are part of this program
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

func inImage(name string) bool { return !strings.HasSuffix(name, "_test.go") }
