package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestSendImages hands a directory to shell commands that treat it well and badly.
func TestSendImages(t *testing.T) {
	dir, out := t.TempDir(), t.TempDir()
	big := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "pages-1.img"), big, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "empty.img"), nil, 0o600))
	send := func(ctx context.Context, command string) (string, error) {
		var stdout bytes.Buffer
		err := sendImages(ctx, &app{stdout: &stdout, stderr: &stdout}, dir, command)
		return stdout.String(), err
	}

	said, err := send(t.Context(), "echo here && tar x -C "+out)
	require.NoError(t, err)
	require.Equal(t, "here\n", said)
	got, err := os.ReadFile(filepath.Join(out, "pages-1.img"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(big, got))
	got, err = os.ReadFile(filepath.Join(out, "empty.img"))
	require.NoError(t, err)
	require.Empty(t, got)

	_, err = send(t.Context(), "cat >/dev/null; exit 7")
	require.ErrorContains(t, err, "exit status 7")
	_, err = send(t.Context(), "true")
	require.ErrorContains(t, err, "did not read them all")
	_, err = send(t.Context(), "head -c 1000 >/dev/null")
	require.ErrorContains(t, err, "did not read them all")
	_, err = send(t.Context(), "kill -9 $$")
	require.ErrorContains(t, err, "killed")

	// What fits into the pipe is not read either.
	require.NoError(t, os.Remove(filepath.Join(dir, "pages-1.img")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "small.img"), big[:5000], 0o600))
	_, err = send(t.Context(), "true")
	require.ErrorContains(t, err, "did not read them all")

	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(100*time.Millisecond, func() { cancel(signalError{os.Interrupt}) })
	start := time.Now()
	_, err = send(ctx, "exec sleep 100")
	require.ErrorIs(t, err, signalError{os.Interrupt})
	require.Less(t, time.Since(start), 5*time.Second)
}
