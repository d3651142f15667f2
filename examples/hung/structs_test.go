package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/btfcorpus"
	"github.com/ovmigrate/ovmigrate/kernel/types"
)

const corpus = "../../kernel/testdata/btf/corpus.tar.zst"

// TestGenerated makes structs.go once more.
func TestGenerated(t *testing.T) {
	have, err := os.ReadFile("structs.go")
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "structs.go")
	cmd := exec.CommandContext(t.Context(), "go", "run", "../../kernel/structgen",
		"-btf", corpus, "-package", "main", "-o", file, "structs.list")
	out, err := cmd.CombinedOutput()
	require.NoErrorf(t, err, "%s", out)
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), string(have), "structs.go is not what go generate makes of structs.list")
}

// TestCorpus resolves the structs against every kernel, which may lack only what the
// generator has marked.
func TestCorpus(t *testing.T) {
	all, err := btfcorpus.Load(corpus)
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(all), 24)
	lack := 0
	for _, k := range all {
		src, err := types.ParseBTF(k.BTF)
		require.NoError(t, err)
		require.NoError(t, TaskStructLayout.Check(src), k.Name())
		c, err := src.Struct("task_struct")
		require.NoError(t, err)
		_, err = c.Lookup("blocker")
		// Locks are not what tasks of realtime kernels wait for.
		require.Equal(t, k.Suite == "sid" && k.Flavour != "rt", err == nil, k.Name())
		if err != nil {
			lack++
		}
	}
	require.Positive(t, lack)
}
