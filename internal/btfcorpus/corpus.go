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
	"archive/tar"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/zstd"
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

// Load reads a corpus: a tar of SUITE/RELEASE.btf, compressed with zstd.
func Load(file string) ([]Kernel, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("corpus of BTF: %w", err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	defer z.Close()
	var all []Kernel
	for t := tar.NewReader(z); ; {
		h, err := t.Next()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		suite, name, _ := strings.Cut(h.Name, "/")
		k, err := New(suite, strings.TrimSuffix(name, ".btf"))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if k.BTF, err = io.ReadAll(io.LimitReader(t, maxBTF)); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", file, h.Name, err)
		}
		all = append(all, k)
	}
}

// Write writes a corpus. Its kernels have most in common, which the compression sees.
func Write(w io.Writer, all []Kernel) error {
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(8<<20))
	if err != nil {
		return err
	}
	t := tar.NewWriter(z)
	for _, k := range all {
		h := &tar.Header{Name: k.Suite + "/" + k.Release + ".btf", Size: int64(len(k.BTF)), Mode: 0o644, Typeflag: tar.TypeReg}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(k.BTF); err != nil {
			return err
		}
	}
	if err := t.Close(); err != nil {
		return err
	}
	return z.Close()
}

// New returns a Kernel without its BTF; flavour and architecture follow from the
// release, as in "6.1.0-50-cloud-amd64".
func New(suite, release string) (Kernel, error) {
	k := Kernel{Suite: suite, Release: release, Flavour: "generic"}
	i := strings.LastIndexByte(release, '-')
	if i < 0 || suite == "" {
		return k, fmt.Errorf("kernel %q of %q: the release does not end in an architecture", release, suite)
	}
	k.Arch = release[i+1:]
	for _, f := range []string{"cloud", "rt"} {
		if strings.HasSuffix(release[:i], "-"+f) {
			k.Flavour = f
		}
	}
	return k, nil
}
