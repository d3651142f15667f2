package main

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

// TestMem compares user memory with what the guest's own /proc/PID/mem says, byte by
// byte, for stopped processes of different kinds.
func TestMem(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			vm := busyGuest(t, suite)
			put(t, vm, "testdata/memdump.py", "/root/memdump.py")
			seen := map[string]bool{}
			for _, p := range ovmJSON[[]process](t, "-g", vm.RAMPath(), "ps") {
				name := p.Comm
				if name == "sleeper" {
					name = strings.Join(p.Cmdline, " ") // every kind of it
				}
				if p.RSSPages == 0 || p.PID == 1 || p.Comm == "agent" || p.State == "T" || seen[name] {
					continue
				}
				seen[name] = true
				t.Run(fmt.Sprintf("%s-%d", p.Comm, p.PID), func(t *testing.T) { compareMemory(t, vm, p) })
			}
			for _, name := range []string{"memcached", "redis-server", "python3", "manyfds"} {
				require.Truef(t, seen[name], "%s runs", name)
			}
		})
	}
}

func put(t *testing.T, vm *testvm.VM, from, to string) {
	t.Helper()
	f, err := os.Open(from)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, vm.Put(t.Context(), to, f, 0o644))
}

func compareMemory(t *testing.T, vm *testvm.VM, p process) {
	pid := strconv.Itoa(int(p.PID))
	_, err := vm.Exec(t.Context(), "kill", "-STOP", pid)
	require.NoError(t, err)
	defer func() {
		_, err := vm.Exec(t.Context(), "kill", "-CONT", pid)
		require.NoError(t, err)
	}()
	require.NoError(t, testvm.Wait(t.Context(), "state T", func() (bool, error) {
		out, err := vm.Exec(t.Context(), "cat", "/proc/"+pid+"/stat")
		return bytes.Contains(out, []byte(") T ")), err
	}))

	// ovm is asked first: the guest's answer brings pages into memory.
	ours := map[string][]byte{}
	for _, m := range ovmJSON[[]mapping](t, "-g", vm.RAMPath(), "maps", pid) {
		ours[fmt.Sprintf("%x", uint64(m.Start))] = readMapping(t, vm, pid, m)
	}
	packed, err := vm.Exec(t.Context(), "python3", "/root/memdump.py", pid)
	require.NoError(t, err)
	z, err := zlib.NewReader(bytes.NewReader(packed))
	require.NoError(t, err)
	r := bufio.NewReader(z)
	equal, unreadable := 0, 0
	for {
		line, err := r.ReadString('\n')
		if errors.Is(err, io.EOF) && line == "" {
			break
		}
		require.NoError(t, err)
		var start, end uint64
		var perms string
		_, err = fmt.Sscanf(line, "%x %x %s", &start, &end, &perms)
		require.NoError(t, err)
		mem := ours[fmt.Sprintf("%x", start)]
		for at := start; at < end; at += 4096 {
			theirs := readPage(t, r)
			switch off := at - start; {
			case theirs == nil:
				unreadable++
			case off+4096 > uint64(len(mem)):
				// What is not in memory cannot be read from outside; but memory
				// that the process can write to is.
				require.NotContainsf(t, perms, "w", "page %#x of %s is missing", at, line)
			case !bytes.Equal(theirs, mem[off:off+4096]):
				require.Failf(t, "memory differs", "page %#x of %s", at, line)
			default:
				equal++
			}
		}
	}
	t.Logf("%d pages equal, %d not readable in the guest either", equal, unreadable)
	require.Greater(t, equal, 100)
}

// readMapping returns the memory of a mapping up to the first page that ovm cannot
// read.
func readMapping(t *testing.T, vm *testvm.VM, pid string, m mapping) []byte {
	t.Helper()
	var stdout, stderr bytes.Buffer
	size := uint64(m.End - m.Start)
	code := run([]string{"-g", vm.RAMPath(), "mem", pid, m.Start.String(), strconv.FormatUint(size, 10)}, &stdout, &stderr)
	if code == 0 {
		require.Equal(t, size, uint64(stdout.Len()))
	} else {
		require.Equal(t, 1, strings.Count(stderr.String(), "\n"), stderr.String())
	}
	return stdout.Bytes()
}

func readPage(t *testing.T, r *bufio.Reader) []byte {
	t.Helper()
	kind, err := r.ReadByte()
	require.NoError(t, err)
	if kind == 'E' {
		return nil
	}
	page := make([]byte, 4096)
	_, err = io.ReadFull(r, page)
	require.NoError(t, err)
	return page
}
