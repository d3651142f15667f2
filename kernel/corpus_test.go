package kernel

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/btfcorpus"
	"github.com/ovmigrate/ovmigrate/kernel/types"
)

var update = flag.Bool("update", false, "write the table of kernels into docs/kernel-support.md")

// absent says of which structures some supported kernels do without, and why. A
// kernel is named by the begin or end of its btfcorpus name; "" is any kernel.
var absent = []struct{ layout, kernel, reason string }{
	{"anonVMANameLayout", "bullseye", "names of anonymous mappings came with 5.17"},
	{"backingFileLayout", "bullseye", "overlayfs has a type of its own for the files behind since 6.7"},
	{"backingFileLayout", "bookworm", "overlayfs has a type of its own for the files behind since 6.7"},
	{"fpstateLayout", "bullseye", "FPU state lies in the task until 5.15"},
	{"mapleNodeLayout", "bullseye", "mappings are a list until 6.0"},
	{"mapleTreeLayout", "bullseye", "mappings are a list until 6.0"},
	{"btfModuleLayout", "bullseye", "modules have BTF since 5.11"},
	{"btfLayout", "bullseye", "modules have BTF since 5.11"},
	{"zoneCPUStatLayout", "bullseye", "a CPU's counters of a zone are counted with its free pages until 5.14"},
	{"fpstateLayout", "arm64", "x86 registers"},
	{"inactiveTaskFrameLayout", "arm64", "x86 stacks"},
	{"orcEntryLayout", "arm64", "x86 stacks"},
	{"ptRegsLayout", "arm64", "x86 registers"},
	{"threadStateLayout", "arm64", "x86 registers"},
	{"vdsoImageLayout", "arm64", "its vDSO is described otherwise"},
}

// absence returns why the kernel of a name may lack a layout.
func absence(layout, kernel string) (reason string, ok bool) {
	for _, a := range absent {
		if a.layout == layout && (strings.HasPrefix(kernel, a.kernel) || strings.HasSuffix(kernel, a.kernel)) {
			return a.reason, true
		}
	}
	return "", false
}

// loadCorpus returns the types of all supported kernels.
func loadCorpus(t testing.TB) []btfcorpus.Kernel {
	t.Helper()
	all, err := btfcorpus.Load(filepath.Join("testdata", "btf", "corpus.tar.zst"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(all), 24)
	return all
}

// TestCorpus resolves every layout against every kernel of the corpus. What a kernel
// does without is listed in absent, and nothing that is listed may be there.
func TestCorpus(t *testing.T) {
	found := map[string]int{}
	all := loadCorpus(t)
	for _, k := range all {
		t.Run(k.Name(), func(t *testing.T) {
			src, err := types.ParseBTF(k.BTF)
			require.NoError(t, err)
			for name, l := range allLayouts {
				err := l.Check(src)
				_, mayLack := absence(name, k.Name())
				switch {
				case err == nil && mayLack:
					t.Errorf("%s is listed as absent, but it is there", name)
				case err == nil:
					found[k.Name()]++
				case !mayLack || !errors.Is(err, types.ErrNoType):
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	if !t.Failed() {
		inDocument(t, "structures", corpusTable(all, found))
	}
}

// corpusTable is a row for every release and flavour, with the number of layouts
// found in the kernels of each architecture.
func corpusTable(all []btfcorpus.Kernel, found map[string]int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| Debian | flavour | kernel | amd64 | arm64 |\n|---|---|---|---|---|\n")
	for _, k := range all {
		if k.Arch != "amd64" {
			continue
		}
		other := k
		other.Arch = "arm64"
		version := strings.TrimSuffix(strings.TrimSuffix(k.Release, "-amd64"), "-"+k.Flavour)
		fmt.Fprintf(&b, "| %s | %s | %s | %d of %d | %d of %d |\n", k.Suite, k.Flavour, version,
			found[k.Name()], len(allLayouts), found[other.Name()], len(allLayouts))
	}
	b.WriteString("\nThose that are not there:\n\n")
	reasons := map[string][]string{}
	for _, a := range absent {
		reasons[a.kernel+": "+a.reason] = append(reasons[a.kernel+": "+a.reason], strings.TrimSuffix(a.layout, "Layout"))
	}
	for _, r := range slices.Sorted(maps.Keys(reasons)) {
		fmt.Fprintf(&b, "- %s (%s)\n", r, strings.Join(reasons[r], ", "))
	}
	return b.String()
}

// inDocument compares text with what stands between the markers of that name in
// docs/kernel-support.md, or writes it there.
func inDocument(t *testing.T, name, text string) {
	t.Helper()
	file := filepath.Join("..", "docs", "kernel-support.md")
	doc, err := os.ReadFile(file)
	require.NoError(t, err)
	before, rest, ok1 := bytes.Cut(doc, fmt.Appendf(nil, "<!-- %s: begin -->\n", name))
	have, after, ok2 := bytes.Cut(rest, fmt.Appendf(nil, "<!-- %s: end -->\n", name))
	require.True(t, ok1 && ok2, "%s has no markers for %q", file, name)
	if *update {
		doc = fmt.Appendf(nil, "%s<!-- %s: begin -->\n%s<!-- %s: end -->\n%s", before, name, text, name, after)
		require.NoError(t, os.WriteFile(file, doc, 0o644))
		return
	}
	if d := cmp.Diff(string(have), text); d != "" {
		t.Errorf("%s is not what this test finds; run 'go test -run TestCorpus ./kernel -update' (-have +want):\n%s", file, d)
	}
}
