package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// asProgram makes the test binary behave as the program itself.
const asProgram = "OVM_GUEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func guest(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	cmd.Stdin = strings.NewReader(stdin)
	var out, errout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errout
	err = cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errout.String(), cmd.ProcessState.ExitCode()
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{"512M": 512 << 20, "1G": 1 << 30, "4k": 4096, "7": 7} {
		got, err := parseSize(s)
		require.NoError(t, err)
		require.Equal(t, want, got, s)
	}
	for _, s := range []string{"", "M", "-1M", "1T", "99999999999999G"} {
		_, err := parseSize(s)
		require.Error(t, err, s)
	}
}

func TestUsage(t *testing.T) {
	_, errout, code := guest(t, "")
	require.Equal(t, 2, code)
	require.Contains(t, errout, "guest exec")
	_, errout, code = guest(t, "", "exec", "-dir", t.TempDir(), "true")
	require.Equal(t, 1, code)
	require.Equal(t, 1, strings.Count(errout, "\n"), "one line: %s", errout)
	_, errout, code = guest(t, "", "build", "potato")
	require.Equal(t, 1, code)
	require.Equal(t, "guest: guest \"potato\": unknown; there are bookworm, trixie\n", errout)
}

// A guest used from a shell, by every command.
func TestSession(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest; -short is set")
	}
	dir, err := os.MkdirTemp("", "g") // the test's own is too long for a socket
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	out, errout, code := guest(t, "", "run", "trixie", "-dir", dir, "-daemon")
	require.Equal(t, 0, code, errout)
	defer guest(t, "", "stop", "-dir", dir)
	var i info
	require.NoError(t, json.Unmarshal([]byte(out), &i))
	ram, err := os.Stat(filepath.Join(dir, "ram"))
	require.NoError(t, err)
	require.EqualValues(t, 512<<20, ram.Size())

	_, errout, code = guest(t, "", "run", "trixie", "-dir", dir)
	require.Equal(t, 1, code)
	require.Contains(t, errout, "a guest is running there")

	out, errout, code = guest(t, "to sort\na\n", "exec", "-dir", dir, "-env", "X=1", "-C", "/usr", "--",
		"sh", "-c", "sort; pwd; echo $X >&2; exit 42")
	require.Equal(t, "a\nto sort\n/usr\n", out)
	require.Equal(t, "1\n", errout)
	require.Equal(t, 42, code)

	_, _, code = guest(t, "contents", "put", "-dir", dir, "-mode", "600", "/root/f")
	require.Equal(t, 0, code)
	out, _, _ = guest(t, "", "get", "-dir", dir, "/root/f")
	require.Equal(t, "contents", out)
	out, _, _ = guest(t, "", "exec", "-dir", dir, "--", "stat", "-c", "%a", "/root/f")
	require.Equal(t, "600\n", out)

	out, _, code = guest(t, "", "spawn", "-dir", dir, "-cgroup", "some/where", "-out", "/root/log", "--", "sh", "-c", "cat /proc/self/cgroup; exec sleep 100")
	require.Equal(t, 0, code)
	pid := strings.TrimSpace(out)
	out, _, _ = guest(t, "", "exec", "-dir", dir, "--", "sh", "-c", "sleep 0.5; cat /root/log /proc/"+pid+"/comm; ps -o sid= -p "+pid)
	require.Equal(t, []string{"0::/some/where", "sleep", pid}, strings.Fields(out))

	_, errout, code = guest(t, "", "stop", "-dir", dir)
	require.Equal(t, 0, code, errout)
	require.NoDirExists(t, filepath.Dir(i.RAM))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range left {
		require.Contains(t, []string{"console.log", "guest.log"}, e.Name())
	}
}
