package criuimg

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
)

var update = flag.Bool("update", false, "rewrite testdata/golden")

// The golden files were compared with what Debian's crit 3.17.1 prints.
func TestJSONGolden(t *testing.T) {
	set := realSet(t, "3.17.1/ns")
	for n, f := range realSet(t, "3.17.1/pty") {
		if n == "tty-info.img" {
			set[n] = f
		}
	}
	for _, name := range []string{"tty-info.img", "pstree.img", "pipes-data.img", "ipcns-msg-9.img", "inventory.img", "ghost-file-2.img"} {
		require.Contains(t, set, name)
		k, _, _ := KindOf(name)
		var b bytes.Buffer
		require.NoError(t, WriteJSON(&b, bytes.NewReader(set[name].Data), k))
		golden := filepath.Join("testdata", "golden", name+".json")
		if *update {
			require.NoError(t, os.WriteFile(golden, b.Bytes(), 0o644))
		}
		want, err := os.ReadFile(golden)
		require.NoError(t, err)
		require.Equal(t, string(want), b.String())
	}
}

func TestJSONRealSets(t *testing.T) {
	eachRealSet(t, func(t *testing.T, _ string, set fstest.MapFS) {
		for name, f := range set {
			k, _, _ := KindOf(name)
			if k.Frame == FrameRaw {
				continue
			}
			var b bytes.Buffer
			require.NoError(t, WriteJSON(&b, bytes.NewReader(f.Data), k))
			var v struct {
				Magic   string
				Entries []map[string]any
			}
			require.NoError(t, json.Unmarshal(b.Bytes(), &v), name)
			require.NotEmpty(t, v.Magic)
			n := 0
			for _, err := range Entries[proto.Message](bytes.NewReader(f.Data), k, 0) {
				require.NoError(t, err)
				n++
			}
			require.Len(t, v.Entries, n, name)
		}
	})
}

func TestJSONBadUTF8(t *testing.T) {
	var img, out bytes.Buffer
	e := NewEncoder(&img, Files)
	require.NoError(t, e.Encode(&fdinfo.FileEntry{
		Id: u32(1), Type: fdinfo.FdTypes_REG.Enum(),
		Reg: &regfile.RegFileEntry{
			Id: u32(1), Flags: u32(0), Pos: u64(0), Name: proto.String("/bad\xff\"<name"),
			Fown: &fown.FownEntry{Uid: u32(0), Euid: u32(0), Signum: u32(0), PidType: u32(0), Pid: u32(0)},
		},
	}))
	require.NoError(t, e.Close())
	require.NoError(t, WriteJSON(&out, &img, Files))
	require.True(t, json.Valid(out.Bytes()), out.String())
	require.Contains(t, out.String(), `"<name`)
}
