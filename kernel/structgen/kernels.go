package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ovmigrate/ovmigrate/internal/btfcorpus"
	"github.com/ovmigrate/ovmigrate/kernel/types"
)

// kernelTypes are the types of one kernel.
type kernelTypes struct {
	name  string
	types types.Source
}

// readKernels reads the BTF file path, all that are in the directory path, or the corpus
// of many kernels that path is.
func readKernels(path string) ([]kernelTypes, error) {
	if strings.HasSuffix(path, ".tar.zst") {
		return readCorpus(path)
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("types: %w; give -btf", err)
	}
	files := []string{path}
	if st.IsDir() {
		if files, err = filepath.Glob(filepath.Join(path, "*.btf*")); err != nil {
			return nil, err
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("types: no file called *.btf in %s", path)
		}
	}
	var all []kernelTypes
	for _, file := range files {
		blob, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		src, err := types.ParseBTF(blob)
		if err != nil {
			return nil, fmt.Errorf("types: %s: %w", file, err)
		}
		name := filepath.Base(file)
		name, _, _ = strings.Cut(name, ".btf")
		all = append(all, kernelTypes{name, src})
	}
	return all, nil
}

func readCorpus(path string) ([]kernelTypes, error) {
	corpus, err := btfcorpus.Load(path)
	if err != nil {
		return nil, err
	}
	var all []kernelTypes
	for _, k := range corpus {
		src, err := types.ParseBTF(k.BTF)
		if err != nil {
			return nil, fmt.Errorf("types: %s: %s: %w", path, k.Name(), err)
		}
		all = append(all, kernelTypes{k.Name(), src})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("types: %s holds no kernel", path)
	}
	return all, nil
}
