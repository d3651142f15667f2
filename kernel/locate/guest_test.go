package locate_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel/locate"
	"github.com/ovmigrate/ovmigrate/kernel/paging"
	"github.com/ovmigrate/ovmigrate/vmi"
	_ "github.com/ovmigrate/ovmigrate/vmi/sources"
)

// TestGuest finds the kernels of real guests in their RAM files and compares all that
// was found with what the guest says of itself.
func TestGuest(t *testing.T) {
	for name, c := range map[string]testvm.Config{
		"6.1":             {Suite: "bookworm"},
		"6.1 nokaslr":     {Suite: "bookworm", KernelArgs: "nokaslr"},
		"6.12":            {Suite: "trixie"},
		"6.12 5 levels":   {Suite: "trixie", CPU: "max,-cx16"},
		"6.12 above 4GiB": {Suite: "trixie", Memory: 3 << 30},

		"arm64 5.10":         {Kernel: "bullseye-arm64"},
		"arm64 6.1":          {Kernel: "bookworm-arm64"},
		"arm64 6.12":         {Kernel: "trixie-arm64"},
		"arm64 6.12 52 bits": {Kernel: "trixie-arm64", CPU: "max,pauth-impdef=on"},
		"arm64 7":            {Kernel: "sid-arm64"},
		"arm64 7 nokaslr":    {Kernel: "sid-arm64", KernelArgs: "nokaslr"},
	} {
		if c.Kernel != "" && !testvm.Chosen(c.Kernel) {
			continue
		}
		t.Run(name, func(t *testing.T) { compareGuest(t, testvm.Start(t, c)) })
	}
}

// compareARM64 compares what only arm64 kernels have. The guest's only word on where it
// is in memory is /proc/iomem.
func compareARM64(t *testing.T, g *locate.Guest, vm *testvm.VM) {
	require.Equal(t, paging.ARM64, g.Arch)
	require.Equal(t, strings.HasPrefix(vm.Config().CPU, "max"), g.Levels == 5)
	if strings.Contains(vm.Config().KernelArgs, "nokaslr") {
		require.Zero(t, g.KASLROffset)
	} else {
		require.NotZero(t, g.KASLROffset)
	}
	out, err := vm.Exec(t.Context(), "cat", "/proc/iomem")
	require.NoError(t, err)
	m := regexp.MustCompile(`([0-9a-f]+)-([0-9a-f]+) : Kernel code`).FindStringSubmatch(string(out))
	require.NotNil(t, m, "%s", out)
	first, err := strconv.ParseUint(m[1], 16, 64)
	require.NoError(t, err)
	// Since 6.6 the header in front of the text counts as code.
	stext, ok := g.Symbols.Lookup("_stext")
	require.True(t, ok)
	at, ok := g.ImagePhys(stext)
	require.True(t, ok)
	head, ok := g.ImagePhys(g.VirtBase)
	require.True(t, ok)
	require.Contains(t, []uint64{uint64(at), uint64(head)}, first)
}

func compareGuest(t *testing.T, vm *testvm.VM) {
	ctx := t.Context()
	source := vm.RAMTarget()
	if vm.Config().Memory > 2<<30 {
		source += "?below4g=2G" // q35
	}
	img, err := vmi.Open(ctx, source, nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, img.Close()) }()
	g, err := locate.Find(ctx, img, nil)
	require.NoError(t, err)
	for _, s := range g.Found {
		t.Logf("%s: %s; %s", s.What, s.How, s.Check)
	}

	sh := func(command string) []byte {
		out, err := vm.Exec(ctx, "sh", "-c", command)
		require.NoError(t, err)
		return out
	}
	require.Equal(t, strings.TrimSpace(string(sh("uname -r"))), g.Release)
	require.Equal(t, string(sh("cat /proc/version")), g.Banner+"\n")
	require.Equal(t, string(bytes.TrimSpace(sh("sha256sum < /sys/kernel/btf/vmlinux | cut -d' ' -f1"))), sum(g.BTF))
	if g.Arch == paging.X86_64 {
		require.Equal(t, strings.TrimSpace(string(sh("grep -c -w la57 /proc/cpuinfo || :"))) != "0", g.Levels == 5)
	} else {
		compareARM64(t, g, vm)
	}

	// The kernel's own list: modules and BPF programs have a fourth field.
	var want []string
	for line := range strings.Lines(string(sh("cat /proc/kallsyms"))) {
		if line = strings.TrimSuffix(line, "\n"); !strings.HasSuffix(line, "]") {
			want = append(want, line)
		}
	}
	var got []string
	for s := range g.Symbols.All() {
		got = append(got, fmt.Sprintf("%016x %c %s", s.Addr, s.Type, s.Name))
	}
	require.Greater(t, len(want), 30_000)
	if !slices.ContainsFunc(want, func(line string) bool { return strings.HasSuffix(line, " init_task") }) {
		// The guest lists functions only. Variables were found elsewhere.
		known := map[string]bool{}
		for _, line := range want {
			known[line] = true
		}
		for _, name := range []string{"init_task", "init_pid_ns", "memstart_addr"} {
			_, ok := g.Symbols.Lookup(name)
			require.True(t, ok, name)
		}
		got = slices.DeleteFunc(got, func(line string) bool { return !known[line] })
	}
	require.True(t, slices.Equal(want, got), "symbols differ from /proc/kallsyms")

	text, err := g.VMCoreInfo.Symbol("_stext")
	require.NoError(t, err)
	stext, ok := g.Symbols.Lookup("_stext")
	require.True(t, ok)
	require.Equal(t, stext, text)
}

func BenchmarkFindGuest(b *testing.B) {
	vm := testvm.Start(b, testvm.Config{Suite: "trixie", Memory: 1 << 30})
	ctx := context.Background()
	for b.Loop() {
		img, err := vmi.Open(ctx, vm.RAMPath(), nil)
		require.NoError(b, err)
		_, err = locate.Find(ctx, img, nil)
		require.NoError(b, err)
		require.NoError(b, img.Close())
	}
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}
