// Btfcorpus makes kernel/testdata/btf/corpus.tar.zst from Debian's kernel packages, which
// lie in folders named after the release: bookworm/linux-image-…_amd64.deb. It is run
// in the module's root folder; see package btfcorpus.
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sort"

	"github.com/ovmigrate/ovmigrate/internal/btfcorpus"
)

const corpus = "kernel/testdata/btf/corpus.tar.zst"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "btfcorpus:", err)
		os.Exit(1)
	}
}

func run(debs []string) error {
	if len(debs) == 0 {
		return fmt.Errorf("usage: btfcorpus SUITE/PACKAGE.deb…")
	}
	words, err := btfcorpus.WordsOf("kernel", "signal", "checkpoint", "examples")
	if err != nil {
		return err
	}
	var all []btfcorpus.Kernel
	for _, deb := range debs {
		release, btf, err := btfcorpus.FromPackage(deb)
		if err != nil {
			return err
		}
		dir, err := filepath.Abs(filepath.Dir(deb))
		if err != nil {
			return err
		}
		k, err := btfcorpus.New(filepath.Base(dir), release)
		if err != nil {
			return err
		}
		if k.BTF, err = btfcorpus.Prune(btf, words); err != nil {
			return fmt.Errorf("%s: %w", deb, err)
		}
		fmt.Printf("%s %s: %d KiB of %d\n", k.Name(), release, len(k.BTF)>>10, len(btf)>>10)
		all = append(all, k)
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].Less(all[j]) })
	var file bytes.Buffer
	if err := btfcorpus.Write(&file, all); err != nil {
		return err
	}
	fmt.Printf("%s: %d kernels, %d KiB\n", corpus, len(all), file.Len()>>10)
	if err := os.MkdirAll(filepath.Dir(corpus), 0o755); err != nil {
		return err
	}
	return os.WriteFile(corpus, file.Bytes(), 0o644)
}
