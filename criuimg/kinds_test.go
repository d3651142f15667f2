package criuimg

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestKindOf(t *testing.T) {
	for name, want := range map[string]struct {
		kind *Kind
		key  uint64
	}{
		"inventory.img":                          {Inventory, 0},
		"core-1.img":                             {Core, 1},
		"pagemap-12.img":                         {Pagemap, 12},
		"pagemap-shmem-12.img":                   {PagemapShmem, 12},
		"pages-3.img":                            {Pages, 3},
		"ghost-file-1a.img":                      {GhostFile, 0x1a},
		"tcp-stream-ff.img":                      {TCPStream, 0xff},
		"ipcns-msg-9.img":                        {IPCMsg, 9},
		"netns-5.img":                            {Netns, 5},
		"netns-ct-5.img":                         {NetnsCT, 5},
		"tmpfs-dev-56.tar.gz.img":                {TmpfsDev, 56},
		"tmpfs-56.tar.gz.img":                    {Tmpfs, 56},
		"stats-dump":                             {StatsDump, 0},
		"fdinfo-4294967295.img":                  {FDInfo, 1<<32 - 1},
		"timens-0.img":                           {Timens, 0},
		"pagemap-shmem-18446744073709551615.img": {PagemapShmem, 1<<64 - 1},
	} {
		k, key, ok := KindOf(name)
		require.True(t, ok, name)
		require.Equal(t, want.kind, k, name)
		require.Equal(t, want.key, key, name)
		require.Equal(t, name, k.FileName(key))
	}
	for _, name := range []string{
		"", "dump.log", "core.img", "core-.img", "core-01.img", "core-+1.img", "core-1", "core--1.img", "core-x.img", "inventory",
		"inventory-1.img", "ghost-file-1A.img", "stats-dump.img", "pages-18446744073709551616.img", "../core-1.img", "parent",
	} {
		_, _, ok := KindOf(name)
		require.False(t, ok, name)
	}
}

func TestKindsAreDistinct(t *testing.T) {
	names := map[string]bool{}
	for _, k := range Kinds() {
		require.False(t, names[k.String()], "%s twice", k)
		names[k.String()] = true
		require.Equal(t, k.Frame == FrameRaw, k.Magic == 0, k)
		require.Equal(t, k.Frame == FrameRaw, k.New() == nil, k)
		got, key, ok := KindOf(k.FileName(0))
		require.True(t, ok, k)
		require.Same(t, k, got)
		require.Zero(t, key)
	}
}
