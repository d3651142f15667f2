// Package btfcorpus reads and makes the corpus of kernel type information that is
// in kernel/testdata/btf: for every supported kernel, the BTF of its vmlinux, pruned
// to the types that this module names. Tests resolve every Layout against it, so
// that a kernel is known to be readable without booting it.
//
// To make it anew, when a Layout names a structure that it lacks or for newer
// kernels (it wants dpkg-deb, xz, zstd, lz4 and a Debian mirror):
//
//	internal/btfcorpus/fetch.sh DIRECTORY
//	go run ./internal/btfcorpus/cmd/btfcorpus DIRECTORY/*.deb
package btfcorpus

import (
	"archive/zip"
	"fmt"
	"io"
	"path"
	"strings"
)

// Kernel is the type information of one kernel.
type Kernel struct {
	Suite   string // Debian's: "bookworm"
	Flavour string // "cloud", "generic" or "rt"
	Arch    string // Debian's: "amd64", "arm64"
	Release string // as uname -r prints it
	BTF     []byte
}

// Name returns what tells k apart from other kernels: "bookworm-cloud-amd64".
func (k Kernel) Name() string { return k.Suite + "-" + k.Flavour + "-" + k.Arch }

// suites in the order of their kernels, flavours in that of their use.
var order = map[string]int{"bullseye": 1, "bookworm": 2, "trixie": 3, "sid": 4, "cloud": 1, "generic": 2, "rt": 3}

// Less orders kernels by architecture, suite and flavour.
func (k Kernel) Less(o Kernel) bool {
	switch {
	case k.Arch != o.Arch:
		return k.Arch < o.Arch
	case k.Suite != o.Suite:
		return order[k.Suite] < order[o.Suite]
	}
	return order[k.Flavour] < order[o.Flavour]
}

// maxBTF bounds the type information of one kernel.
const maxBTF = 64 << 20

// Load reads a corpus, in the order of the file.
func Load(file string) ([]Kernel, error) {
	z, err := zip.OpenReader(file)
	if err != nil {
		return nil, fmt.Errorf("corpus of BTF: %w", err)
	}
	defer z.Close()
	var all []Kernel
	for _, f := range z.File {
		k := Kernel{Release: f.Comment}
		var ok bool
		if k.Suite, k.Flavour, k.Arch, ok = cut3(strings.TrimSuffix(path.Base(f.Name), ".btf")); !ok {
			return nil, fmt.Errorf("%s: %s is not named SUITE-FLAVOUR-ARCHITECTURE", file, f.Name)
		}
		r, err := f.Open()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		k.BTF, err = io.ReadAll(io.LimitReader(r, maxBTF))
		_ = r.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", file, f.Name, err)
		}
		all = append(all, k)
	}
	return all, nil
}

func cut3(s string) (a, b, c string, ok bool) {
	parts := strings.Split(s, "-")
	if len(parts) != 3 {
		return "", "", "", false
	}
	return parts[0], parts[1], parts[2], true
}
