package kernel

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestDev(t *testing.T) {
	for _, c := range []struct {
		dev  Dev
		stat uint64 // what stat(2) says
		maps string
	}{
		{Dev{8, 1}, 0x801, "08:01"},
		{Dev{254, 0}, 0xfe00, "fe:00"},
		{Dev{136, 300}, 0x10882c, "88:12c"},
		{Dev{0, 24}, 24, "00:18"},
		{Dev{4095, 1<<20 - 1}, 0xffffffff, "fff:fffff"},
	} {
		require.Equal(t, c.stat, c.dev.Stat())
		require.Equal(t, c.maps, c.dev.String())
		require.Equal(t, c.dev, kernelDev(c.dev.Kernel()))
	}
}

func TestPathNameText(t *testing.T) {
	n := PathName{Name: "/a b\n\\c", Deleted: true}
	require.Equal(t, "/a b\n\\c (deleted)", n.String())
	require.Equal(t, `/a b\012\c (deleted)`, n.Escape("\n"))
	require.Equal(t, `/a\040b\012\134c\040(deleted)`, n.Escape(" \t\n\\"))
	require.Equal(t, "/a b\n\\c", n.Getcwd())
	require.Equal(t, "(unreachable)/x", PathName{Name: "/x", Outside: true}.Getcwd())
	require.Equal(t, "/", joinReversed(nil, 0))
	require.Equal(t, "/usr/bin/sh", joinReversed([]string{"sh", "bin", "usr"}, 11))
}

func TestMapIDUp(t *testing.T) {
	ns := &UserNS{
		UIDMap: []IDExtent{{0, 1000, 1}, {1, 100000, 65536}},
		GIDMap: []IDExtent{{0, 0, ^uint32(0)}},
	}
	for kuid, want := range map[uint32]uint32{1000: 0, 100000: 1, 165535: 65536} {
		uid, ok := ns.UID(kuid)
		require.True(t, ok)
		require.Equal(t, want, uid)
	}
	for _, kuid := range []uint32{0, 999, 1001, 99999, 165536, ^uint32(0)} {
		_, ok := ns.UID(kuid)
		require.False(t, ok, kuid)
	}
	gid, ok := ns.GID(4000000000)
	require.True(t, ok)
	require.EqualValues(t, 4000000000, gid)
}

func TestCgroupLine(t *testing.T) {
	require.Equal(t, "0::/a b (deleted)", CgroupMembership{Path: "/a b", Deleted: true}.String())
	require.Equal(t, "4:cpu,cpuacct:/x", CgroupMembership{HierarchyID: 4, Controllers: []string{"cpu", "cpuacct"}, Path: "/x"}.String())
	require.Equal(t, NoLimit, pagesLimit(pageCounterMax))
	require.EqualValues(t, 8192, pagesLimit(2))
}

// Since 6.13 the nanoseconds of a ctime carry a flag.
func TestCtimeFlag(t *testing.T) {
	i := &Inode{inodeFields: inodeFields{CtimeSec: 5, CtimeNsec: 1<<31 | 7}}
	require.Equal(t, time.Unix(5, 7), i.Ctime())
}

func TestFDInfoFlags(t *testing.T) {
	f := &File{fileFields: fileFields{Flags: ORdWr | OLargefile | OCloexec}}
	require.EqualValues(t, 0o100002, FD{File: f}.InfoFlags())
	require.EqualValues(t, 0o2100002, FD{File: f, CloseOnExec: true}.InfoFlags())
}

func TestKindNames(t *testing.T) {
	require.Len(t, kindNames, int(KindAnon)+1)
	require.Equal(t, "memfd", KindMemFD.String())
	require.Equal(t, "kind200", FileKind(200).String())
}
