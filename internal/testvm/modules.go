package testvm

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// loadOrder returns the files, relative to the module directory, that the named
// modules need, dependencies first. deps is the text of modules.dep; a module that
// is neither there nor in builtin (modules.builtin) is an error.
func loadOrder(deps, builtin string, names []string) ([]string, error) {
	needs := map[string][]string{} // file → files
	file := map[string]string{}    // name → file
	for line := range strings.Lines(deps) {
		f, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if ok {
			needs[f] = strings.Fields(rest)
			file[moduleName(f)] = f
		}
	}
	inKernel := map[string]bool{}
	for line := range strings.Lines(builtin) {
		inKernel[moduleName(strings.TrimSpace(line))] = true
	}
	var order []string
	for _, n := range names {
		f, ok := file[n]
		if !ok {
			if inKernel[n] {
				continue
			}
			return nil, fmt.Errorf("the guest's kernel has no module %s", n)
		}
		// modules.dep lists what to load first last.
		chain := slices.Clone(needs[f])
		slices.Reverse(chain)
		for _, f := range append(chain, f) {
			if !slices.Contains(order, f) {
				order = append(order, f)
			}
		}
	}
	return order, nil
}

func moduleName(file string) string {
	n, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(n, "-", "_")
}

// readModule returns a module uncompressed: busybox's insmod takes nothing else.
func readModule(path string) ([]byte, error) {
	var tool string
	switch filepath.Ext(path) {
	case ".xz":
		tool = "xz"
	case ".zst":
		tool = "zstd"
	default:
		return os.ReadFile(path)
	}
	var errout bytes.Buffer
	cmd := exec.Command(tool, "-dc", path)
	cmd.Stderr = &errout
	b, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", tool, err, bytes.TrimSpace(errout.Bytes()))
	}
	return b, nil
}
