package criuimg

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"
	"testing/iotest"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	ghost_file "github.com/checkpoint-restore/go-criu/v8/crit/images/ghost-file"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	ipc_msg "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-msg"
	pipe_data "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe-data"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
)

func pstreeImage(t *testing.T, n int) []byte {
	var b bytes.Buffer
	e := NewEncoder(&b, Pstree)
	for i := range n {
		require.NoError(t, e.Encode(leaf(uint32(i+1))))
	}
	require.NoError(t, e.Close())
	return b.Bytes()
}

func TestDecodeDamage(t *testing.T) {
	img := pstreeImage(t, 3)
	entry := (len(img) - 8) / 3
	set := func(at int, v uint32) []byte {
		b := bytes.Clone(img)
		binary.LittleEndian.PutUint32(b[at:], v)
		return b
	}
	for name, c := range map[string]struct {
		data []byte
		want error
		off  int64
	}{
		"empty":             {nil, ErrTruncated, 0},
		"half a magic":      {img[:6], ErrTruncated, 0},
		"other magic":       {set(4, Core.Magic), ErrMagic, 4},
		"no common magic":   {img[4:], ErrMagic, 0},
		"half a length":     {img[:8+entry+2], ErrTruncated, int64(8 + entry)},
		"half an entry":     {img[:8+entry+6], ErrTruncated, int64(8 + entry)},
		"length too long":   {set(8+2*entry, uint32(entry)), ErrTruncated, int64(8 + 2*entry)},
		"length over limit": {set(8+entry, 1<<31), ErrTooLarge, int64(8 + entry)},
		"length below":      {set(8+entry, 3), ErrMessage, int64(8 + entry)},
	} {
		t.Run(name, func(t *testing.T) {
			var got error
			for _, err := range Entries[*pstree.PstreeEntry](bytes.NewReader(c.data), Pstree, 0) {
				got = err
			}
			require.ErrorIs(t, got, c.want)
			var fe *FormatError
			require.ErrorAs(t, got, &fe)
			require.Equal(t, c.off, fe.Offset)
		})
	}
}

func TestDecodeSlowReaderAndBreak(t *testing.T) {
	img := pstreeImage(t, 100)
	n := 0
	for m, err := range Entries[*pstree.PstreeEntry](iotest.OneByteReader(bytes.NewReader(img)), Pstree, 0) {
		require.NoError(t, err)
		n++
		require.Equal(t, uint32(n), m.GetPid())
		if n == 60 {
			break
		}
	}
	require.Equal(t, 60, n)
	boom := errors.New("boom")
	var got error
	for _, err := range Entries[*pstree.PstreeEntry](io.MultiReader(bytes.NewReader(img[:200]), iotest.ErrReader(boom)), Pstree, 0) {
		got = err
	}
	require.ErrorIs(t, got, boom)
	for _, err := range Entries[*inventory.InventoryEntry](bytes.NewReader(img), Pstree, 0) {
		require.ErrorIs(t, err, ErrSequence)
	}
}

// TestDecodeClaims: a length is not believed before the bytes are there.
func TestDecodeClaims(t *testing.T) {
	img := binary.LittleEndian.AppendUint32(pstreeImage(t, 0), DefaultEntryLimit)
	allocated := testing.AllocsPerRun(1, func() {
		for _, err := range Entries[proto.Message](bytes.NewReader(img), Pstree, 0) {
			require.ErrorIs(t, err, ErrTruncated)
		}
	})
	require.Less(t, allocated, 100.0)
	big := &pstree.PstreeEntry{Pid: u32(1), Ppid: u32(0), Pgid: u32(1), Sid: u32(1), Threads: make([]uint32, 300_000)}
	var b bytes.Buffer
	e := NewEncoder(&b, Pstree)
	require.NoError(t, e.Encode(big))
	require.NoError(t, e.Close())
	for m, err := range Entries[*pstree.PstreeEntry](bytes.NewReader(b.Bytes()), Pstree, 0) {
		require.NoError(t, err)
		require.Len(t, m.Threads, 300_000)
	}
	for _, err := range Entries[*pstree.PstreeEntry](bytes.NewReader(b.Bytes()), Pstree, 1000) {
		require.ErrorIs(t, err, ErrTooLarge)
	}
}

func TestPayloads(t *testing.T) {
	var b bytes.Buffer
	pipe := func(n uint32) proto.Message { return &pipe_data.PipeDataEntry{PipeId: u32(1), Bytes: u32(n)} }

	e := NewEncoder(&b, PipesData)
	require.NoError(t, e.Encode(pipe(5)))
	require.ErrorIs(t, e.Encode(pipe(0)), ErrSequence, "payload missing")
	require.ErrorIs(t, e.Close(), ErrSequence, "errors are sticky")

	e = NewEncoder(&b, PipesData)
	require.NoError(t, e.Encode(pipe(5)))
	require.ErrorIs(t, e.Payload(strings.NewReader("abc")), io.ErrUnexpectedEOF)

	e = NewEncoder(&b, PipesData)
	require.NoError(t, e.Encode(pipe(0)))
	require.ErrorIs(t, e.Payload(strings.NewReader("")), ErrSequence)

	e = NewEncoder(&b, PipesData)
	require.NoError(t, e.Encode(pipe(5)))
	require.ErrorIs(t, e.Close(), ErrSequence)

	b.Reset()
	e = NewEncoder(&b, IPCMsg)
	desc := realMessage(t).Desc
	require.NoError(t, e.Encode(&ipc_msg.IpcMsgEntry{Desc: desc, Qbytes: u32(100), Qnum: u32(1)}))
	require.ErrorIs(t, e.Encode(&ipc_msg.IpcMsgEntry{Desc: desc, Qbytes: u32(100), Qnum: u32(0)}), ErrSequence, "a message must come")

	// A ghost file without chunks runs to the end of the image.
	b.Reset()
	e = NewEncoder(&b, GhostFile)
	require.NoError(t, e.Encode(&ghost_file.GhostFileEntry{Uid: u32(0), Gid: u32(0), Mode: u32(0o100600)}))
	require.NoError(t, e.Payload(strings.NewReader("all of it")))
	require.NoError(t, e.Close())
	d, err := NewDecoder(&b, GhostFile)
	require.NoError(t, err)
	_, err = d.Next()
	require.NoError(t, err)
	require.Equal(t, int64(-1), d.PayloadSize())
	got, err := io.ReadAll(d.Payload())
	require.NoError(t, err)
	require.Equal(t, "all of it", string(got))
	_, err = d.Next()
	require.ErrorIs(t, err, io.EOF)
}

func realMessage(t *testing.T) *ipc_msg.IpcMsgEntry {
	s, err := Open(realSet(t, "3.17.1/ns"))
	require.NoError(t, err)
	list, err := List[proto.Message](s, IPCMsg, s.Keys(IPCMsg)[0])
	require.NoError(t, err)
	return list[0].(*ipc_msg.IpcMsgEntry)
}

func TestOpenRefuses(t *testing.T) {
	_, err := Open(fstest.MapFS{})
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = OpenDir(t.TempDir() + "/none")
	require.ErrorIs(t, err, fs.ErrNotExist)

	set := realSet(t, "4.2.1/counter")
	edit(damaged{t, set}, Inventory, 0, func(m *inventory.InventoryEntry) { m.ImgVersion = u32(3) })
	_, err = Open(set)
	require.ErrorIs(t, err, ErrVersion)
	require.ErrorContains(t, err, "inventory.img")

	set["inventory.img"].Data = set["inventory.img"].Data[:9]
	_, err = Open(set)
	var fe *FormatError
	require.ErrorAs(t, err, &fe)
	require.Equal(t, "inventory.img", fe.File)

	// Compressed pages and the like announce themselves in new fields.
	set = realSet(t, "4.2.1/counter")
	pid := damaged{t, set}.leader()
	damaged{t, set}.pagemap(func(l []proto.Message) []proto.Message {
		l[1].ProtoReflect().SetUnknown([]byte{0x58, 1})
		return l
	})
	s, err := Open(set)
	require.NoError(t, err)
	_, err = s.Memory(uint32(pid))
	require.ErrorIs(t, err, ErrVersion)
}
