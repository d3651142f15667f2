package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/btfcorpus"
	"github.com/ovmigrate/ovmigrate/kernel/types"
)

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0.0 KiB", 1024: "1.0 KiB", 1<<20 - 1024: "1023.0 KiB", 1 << 20: "1.0 MiB", 3 << 29: "1.5 GiB", 1 << 50: "1024.0 TiB",
	} {
		require.Equal(t, want, size(n))
	}
}

func TestShortID(t *testing.T) {
	require.Equal(t, "0123456789ab", shortID("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"))
	require.Equal(t, `"web\x1b"`, shortID("web\x1b"))
}

func TestCorpus(t *testing.T) {
	all, err := btfcorpus.Load("../../kernel/testdata/btf/corpus.tar.zst")
	require.NoError(t, err)
	for _, k := range all {
		src, err := types.ParseBTF(k.BTF)
		require.NoError(t, err)
		require.NoError(t, rssLayout.Check(src), k.Name())
	}
}
