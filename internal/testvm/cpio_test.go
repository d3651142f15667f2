package testvm

import (
	"bytes"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// The judge is cpio itself.
func TestCpioIsReadByCpio(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		t.Fatal("cpio is not installed; run 'make deps'")
	}
	var b bytes.Buffer
	c := &cpioWriter{w: &b}
	c.add("bin", modeDir, nil)
	c.add("bin/a", modeExec, []byte("12345"))
	c.add("empty", modeFile, nil)
	require.NoError(t, c.close())

	run := func(args ...string) string {
		cmd := exec.Command(cpio, args...)
		cmd.Stdin = bytes.NewReader(b.Bytes())
		out, err := cmd.Output()
		require.NoError(t, err)
		return string(out)
	}
	require.Equal(t, "bin\nbin/a\nempty\n", run("-t", "--quiet"))
	require.Equal(t, "12345", run("-i", "--quiet", "--to-stdout", "bin/a"))
	require.Contains(t, run("-tv", "--quiet"), "-rwxr-xr-x")
}
