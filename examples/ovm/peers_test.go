package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

var vmlinuxFlag = flag.String("vmlinux", "", "vmlinux of bookworm's kernel, for drgn and crash to read our dumps by")

// drgnTasks prints the processes of a dump as drgn finds them.
const drgnTasks = `
from drgn.helpers.linux import for_each_task
for t in for_each_task(prog):
    if t.pid.value_() == t.tgid.value_():
        comm = t.comm.string_().decode()
        print(t.pid.value_(), t.real_parent.tgid.value_(), "a worker" if comm.startswith("kworker/") else comm)
`

// TestPeersReadOurs converts a guest's memory and has others read each file: drgn lists
// the same processes, crash (8.0.2 finds few tasks of a 6.1 kernel) tells the kernel and
// its clock, makedumpfile makes a dump of it that is the same.
func TestPeersReadOurs(t *testing.T) {
	if *vmlinuxFlag == "" {
		t.Skip("no -vmlinux: 'make test-debug' runs this test")
	}
	vm := testvm.Start(t, testvm.Config{Memory: 384 << 20})
	_, err := vm.QMP(t.Context(), "stop", nil)
	require.NoError(t, err)
	guest := "qmp:" + vm.QMPSocket()
	want := ovmJSON[[]process](t, "-g", guest, "ps")
	var lines []string
	for _, p := range want {
		if strings.HasPrefix(p.Comm, "kworker/") {
			p.Comm = "a worker" // whose name /proc, and we, make longer
		}
		const kept = 15 // of the name in task_struct; kernel threads have a longer one elsewhere
		lines = append(lines, fmt.Sprint(p.PID, " ", p.PPID, " ", p.Comm[:min(kept, len(p.Comm))]))
	}
	release := strings.Fields(string(ovm(t, "-g", guest, "info")))[1]
	dir := ramDir(t)
	script := filepath.Join(dir, "tasks.py")
	require.NoError(t, os.WriteFile(script, []byte(drgnTasks), 0o600))

	for name, args := range map[string][]string{
		"elf": {"--format", "elf"}, "kdump": {"--format", "kdump"}, "kdump by zstd": {"--format", "kdump", "--compress", "zstd"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			ovm(t, append([]string{"-g", guest, "convert", path}, args...)...)
			got := strings.Split(strings.TrimSpace(peer(t, "", "drgn", "-q", "-c", path, "-s", *vmlinuxFlag, script)), "\n")
			require.ElementsMatch(t, lines, got, "drgn")
			require.Contains(t, peer(t, "sys\nquit\n", "crash", "-s", *vmlinuxFlag, path), "RELEASE: "+release)
			if strings.Contains(name, "zstd") {
				return // Debian's makedumpfile is built without it
			}
			again := filepath.Join(dir, "again")
			peer(t, "", "makedumpfile", "-c", "-d", "0", path, again)
			requireSame(t, want, again)
			require.NoError(t, os.Remove(again))
		})
	}
}

// peer runs a program that must succeed and returns what it prints.
func peer(t *testing.T, stdin string, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Stdin = strings.NewReader(stdin)
	out, err := c.CombinedOutput()
	require.NoErrorf(t, err, "%s: %s", argv, out)
	return string(out)
}
