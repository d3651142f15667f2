package criuimg

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/utsns"
)

func leaf(pid uint32) *pstree.PstreeEntry {
	return &pstree.PstreeEntry{Pid: &pid, Ppid: new(uint32), Pgid: &pid, Sid: &pid, Threads: []uint32{pid}}
}

func TestDirCommit(t *testing.T) {
	base := t.TempDir()
	d, err := Create(filepath.Join(base, "set"))
	require.NoError(t, err)
	defer d.Abort()
	require.NoError(t, d.Write(Pstree, 0, leaf(7)))
	w, err := d.Pages(Pagemap, 7)
	require.NoError(t, err)
	page := bytes.Repeat([]byte{0xab}, PageSize)
	require.NoError(t, w.WritePages(0x400000, page))
	require.NoError(t, w.Close())
	raw, err := d.Raw(Route, 3)
	require.NoError(t, err)
	_, err = raw.Write([]byte("route"))
	require.NoError(t, err)
	require.NoError(t, raw.Close())

	_, err = os.Stat(d.Path())
	require.ErrorIs(t, err, fs.ErrNotExist, "the final name must not show before Commit")
	require.NoError(t, d.Commit())
	require.NoError(t, d.Abort())

	var names []string
	ents, err := os.ReadDir(d.Path())
	require.NoError(t, err)
	for _, e := range ents {
		fi, err := e.Info()
		require.NoError(t, err)
		require.Equal(t, fs.FileMode(0o600), fi.Mode(), e.Name())
		names = append(names, e.Name())
	}
	require.Equal(t, []string{"pagemap-7.img", "pages-1.img", "pstree.img", "route-3.img"}, names)
	fi, err := os.Stat(d.Path())
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o700), fi.Mode().Perm())
	onlyEntry(t, base, "set")
}

func onlyEntry(t *testing.T, dir string, want ...string) {
	t.Helper()
	ents, err := os.ReadDir(dir)
	require.NoError(t, err)
	var got []string
	for _, e := range ents {
		got = append(got, e.Name())
	}
	require.Equal(t, want, got)
}

func TestDirTarget(t *testing.T) {
	base := t.TempDir()
	full := filepath.Join(base, "full")
	require.NoError(t, os.MkdirAll(filepath.Join(full, "x"), 0o700))
	_, err := Create(full)
	require.ErrorIs(t, err, fs.ErrExist)

	file := filepath.Join(base, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = Create(file)
	require.ErrorIs(t, err, fs.ErrExist)

	_, err = Create(filepath.Join(base, "no", "such"))
	require.ErrorIs(t, err, fs.ErrNotExist)

	empty := filepath.Join(base, "empty")
	require.NoError(t, os.Mkdir(empty, 0o700))
	d, err := Create(empty)
	require.NoError(t, err)
	require.NoError(t, d.Write(Pstree, 0, leaf(1)))
	require.NoError(t, d.Commit())
	onlyEntry(t, empty, "pstree.img")

	// Somebody takes the name between Create and Commit.
	late := filepath.Join(base, "late")
	d, err = Create(late)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Join(late, "x"), 0o700))
	require.ErrorIs(t, d.Commit(), fs.ErrExist)
	onlyEntry(t, base, "empty", "file", "full", "late")
	onlyEntry(t, late, "x")
}

func TestDirFailures(t *testing.T) {
	base := t.TempDir()
	path := filepath.Join(base, "set")

	d, err := Create(path)
	require.NoError(t, err)
	require.NoError(t, d.Write(Pstree, 0, leaf(1)))
	require.ErrorIs(t, d.Write(Pstree, 0, leaf(1)), fs.ErrExist)
	require.Error(t, d.Write(Pstree, 5, leaf(1)), "a key that would be lost")
	require.Error(t, d.Write(Pages, 5))
	require.NoError(t, d.Commit(), "a refused call does not spoil the set")
	require.NoError(t, os.RemoveAll(path))

	for name, spoil := range map[string]func(d *Dir) error{
		"wrong message":  func(d *Dir) error { return d.Write(Pstree, 0, &utsns.UtsnsEntry{}) },
		"required field": func(d *Dir) error { return d.Write(Pstree, 0, &pstree.PstreeEntry{Pid: proto.Uint32(1)}) },
		"reserved, not written": func(d *Dir) error {
			w, err := d.Pages(Pagemap, 1)
			require.NoError(t, err)
			_, err = w.Reserve(0x1000, 1)
			require.NoError(t, err)
			return w.Close()
		},
		"left open": func(d *Dir) error {
			_, err := d.Image(Core, 1)
			require.NoError(t, err)
			return errors.New("noticed at Commit")
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := Create(path)
			require.NoError(t, err)
			require.Error(t, spoil(d))
			require.Error(t, d.Commit())
			require.Error(t, d.Commit(), "only once")
			require.NoError(t, d.Abort())
			onlyEntry(t, base)
		})
	}
}

func TestDirAbortClosesFiles(t *testing.T) {
	before := openFiles(t)
	d, err := Create(filepath.Join(t.TempDir(), "set"))
	require.NoError(t, err)
	_, err = d.Image(Core, 1)
	require.NoError(t, err)
	w, err := d.Pages(Pagemap, 1)
	require.NoError(t, err)
	_, err = d.Raw(Rule, 1)
	require.NoError(t, err)
	require.Greater(t, openFiles(t), before)
	require.NoError(t, d.Abort())
	require.Equal(t, before, openFiles(t))
	require.Error(t, w.WritePages(0, make([]byte, 64*PageSize)))
	require.Error(t, w.Close())
	_, err = d.Image(Core, 2)
	require.Error(t, err)
}

func openFiles(t *testing.T) int {
	ents, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(ents)
}
