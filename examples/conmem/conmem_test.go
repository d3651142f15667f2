package main

import (
	"testing"

	"github.com/stretchr/testify/require"
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
