package kernel_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
	"github.com/ovmigrate/ovmigrate/kernel"
	"github.com/ovmigrate/ovmigrate/kernel/debugfile"
	"github.com/ovmigrate/ovmigrate/kernel/types"
	"github.com/ovmigrate/ovmigrate/vmi"
)

var vmlinuxFlag = flag.String("vmlinux", "", "vmlinux with debug information of a suite's kernel, to read that guest by")

// TestDebugFiles opens a guest with files that are of its kernel and with such that
// are not.
func TestDebugFiles(t *testing.T) {
	vm := testvm.StartShared(t, testvm.Config{Suite: "bookworm", KernelArgs: "ovm.role=environ"})
	mem, err := vmi.Open(t.Context(), vm.RAMPath(), nil)
	require.NoError(t, err)
	defer mem.Close()
	plain, err := kernel.Open(t.Context(), mem, nil)
	require.NoError(t, err)
	id, err := plain.BuildID()
	require.NoError(t, err)
	require.Len(t, id, 20)

	open := func(path string) (*kernel.Kernel, error) {
		t.Helper()
		f, err := debugfile.Open(path)
		require.NoError(t, err)
		t.Cleanup(func() { f.Close() })
		return kernel.Open(t.Context(), mem, &kernel.Options{Debug: []*debugfile.File{f}})
	}
	image := func(suite string) string {
		img, err := testvm.FindImage(suite)
		require.NoError(t, err)
		return img.Kernel
	}

	k, err := open(image("bookworm"))
	require.NoError(t, err)
	require.NotSame(t, plain.Types(), k.Types())
	requireSameTasks(t, plain, k)

	var mismatch *kernel.MismatchError
	_, err = open(image("trixie"))
	require.ErrorIs(t, err, kernel.ErrMismatch)
	require.ErrorAs(t, err, &mismatch)
	require.Equal(t, "build ID", mismatch.What)
	require.Equal(t, fmt.Sprintf("%x", id), mismatch.Guest)

	// A System.map is what the kernel was linked at.
	var text []byte
	for s := range plain.Guest().Symbols.All() {
		if s.Addr>>63 != 0 {
			s.Addr -= plain.Guest().KASLROffset
		}
		text = fmt.Appendf(text, "%016x %c %s\n", s.Addr, s.Type, s.Name)
	}
	path := filepath.Join(t.TempDir(), "System.map")
	require.NoError(t, os.WriteFile(path, text, 0o600))
	k, err = open(path)
	require.NoError(t, err)
	requireSameTasks(t, plain, k)

	other := fmt.Appendf(nil, "ffffffff81000000 T _text\nffffffff81000000 T _stext\n")
	for s := range plain.Guest().Symbols.All() {
		if s.Addr>>63 != 0 {
			other = fmt.Appendf(other, "%016x %c %s\n", s.Addr-plain.Guest().KASLROffset+64, s.Type, s.Name)
		}
	}
	require.NoError(t, os.WriteFile(path, other, 0o600))
	_, err = open(path)
	require.ErrorIs(t, err, kernel.ErrMismatch)
}

func requireSameTasks(t *testing.T, a, b *kernel.Kernel) {
	t.Helper()
	pids := func(k *kernel.Kernel) (all []string) {
		for task, err := range k.Tasks() {
			require.NoError(t, err)
			all = append(all, fmt.Sprint(task.PID, task.Addr, task.Comm))
		}
		return all
	}
	require.Equal(t, pids(a), pids(b))
}

// TestDWARFInPlaceOfBTF reads a real guest by the DWARF of its kernel alone.
func TestDWARFInPlaceOfBTF(t *testing.T) {
	if *vmlinuxFlag == "" {
		t.Skip("wants 'make test-debug': a download of some 300 MB")
	}
	f, err := debugfile.Open(*vmlinuxFlag)
	require.NoError(t, err)
	defer f.Close()
	for _, suite := range []string{"bookworm", "trixie"} {
		vm := testvm.StartShared(t, testvm.Config{Suite: suite, KernelArgs: "ovm.role=environ"})
		mem, err := vmi.Open(t.Context(), vm.RAMPath(), nil)
		require.NoError(t, err)
		defer mem.Close()
		k, err := kernel.Open(t.Context(), mem, &kernel.Options{Debug: []*debugfile.File{f}})
		if errors.Is(err, kernel.ErrMismatch) {
			continue
		}
		require.NoError(t, err)
		require.IsType(t, &types.DWARF{}, k.Types())
		dump := dumpModules(t, vm)
		compareModules(k, dump).report(t)
		compareLog(k, dump).report(t)
		z := startZoo(t, vm)
		z.k = k
		plain, err := kernel.Open(t.Context(), mem, nil)
		require.NoError(t, err)
		requireSameTasks(t, plain, k)
		compareUnwinders(t, k)
		return
	}
	t.Fatalf("%s is of no suite's kernel", *vmlinuxFlag)
}

// compareUnwinders finds the stacks of all tasks by ORC and by DWARF. The two know
// nothing of each other.
func compareUnwinders(t *testing.T, k *kernel.Kernel) {
	t.Helper()
	tasks, frames, lines := 0, 0, 0
	for task, err := range k.Tasks() {
		require.NoError(t, err)
		orc, err := task.KernelStack()
		if err != nil {
			continue // it runs, or is gone
		}
		require.NoError(t, orc.Err)
		dwarf, err := kernel.StackByDWARF(task)
		require.NoError(t, err)
		require.Equal(t, "dwarf", dwarf.Unwinder)
		if f := dwarf.Frames[len(dwarf.Frames)-1]; dwarf.Err != nil && f.Module != "" {
			continue // whose debug file is another
		}
		require.NoError(t, dwarf.Err, "%v", orc.Frames)
		require.Equal(t, orc.Frames, dwarf.Frames)
		tasks++
		for _, f := range orc.Frames {
			frames++
			file, line, err := k.SourceLine(f.Addr - 1)
			if err != nil {
				continue
			}
			lines++
			require.Positive(t, line)
			if f.Symbol == "schedule" {
				require.Contains(t, file, "kernel/sched/core.c")
			}
		}
	}
	t.Logf("%s: %d tasks, %d frames, %d lines", k.Release(), tasks, frames, lines)
	require.Greater(t, tasks, 30)
	require.Greater(t, lines*10, frames*8)
}
