package main

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
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
			// One process of each of these.
			names := []string{"sleeper", "manyfds", "sh", "memcached", "redis-server", "python3"}
			for _, p := range ovmJSON[[]process](t, "-g", vm.RAMPath(), "ps") {
				i := slices.Index(names, p.Comm)
				if i < 0 || p.State == "T" || p.RSSPages == 0 {
					continue
				}
				names = slices.Delete(names, i, i+1)
				t.Run(fmt.Sprintf("%s-%d", p.Comm, p.PID), func(t *testing.T) { compareMemory(t, vm, p) })
			}
			require.Empty(t, names, "do not run")
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
	c := comparison{t: t, r: bufio.NewReader(z)}
	for {
		line, err := c.r.ReadString('\n')
		if errors.Is(err, io.EOF) && line == "" {
			break
		}
		require.NoError(t, err)
		var start, end uint64
		_, err = fmt.Sscanf(line, "%x %x %s", &start, &end, &c.perms)
		require.NoError(t, err)
		c.start, c.ours = start, ours[fmt.Sprintf("%x", start)]
		for at := start; at < end; at += chunkSize {
			c.chunk(at, min(chunkSize, end-at))
		}
	}
	t.Logf("%d KiB equal, %d KiB not readable in the guest either", c.equal>>10, c.unreadable>>10)
	require.Greater(t, c.equal, uint64(100<<12))
}

// chunkSize is testdata/memdump.py's.
const chunkSize = 64 << 12

// comparison compares what ovm read of a mapping with what the guest tells next.
type comparison struct {
	t                 *testing.T
	r                 *bufio.Reader
	start             uint64
	perms             string
	ours              []byte
	equal, unreadable uint64
}

func (c *comparison) chunk(at, size uint64) {
	kind, err := c.r.ReadByte()
	require.NoError(c.t, err)
	theirs := make([]byte, size)
	switch kind {
	case 'P':
		for page := at; page < at+size; page += 4096 {
			c.chunk(page, 4096)
		}
		return
	case 'E':
		c.unreadable += size
		return
	case 'D':
		_, err = io.ReadFull(c.r, theirs)
		require.NoError(c.t, err)
	default:
		require.Equal(c.t, byte('Z'), kind)
	}
	off := at - c.start
	if have := uint64(len(c.ours)); off+size > have {
		// What is not in memory cannot be read from outside; but memory that the
		// process can write to is.
		require.NotContainsf(c.t, c.perms, "w", "%#x of the mapping at %#x is missing", at, c.start)
		size = max(have, off) - off
		off = min(off, have)
	}
	require.Truef(c.t, bytes.Equal(theirs[:size], c.ours[off:off+size]), "memory differs at %#x+%#x, %s", at, size, c.perms)
	c.equal += size
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
