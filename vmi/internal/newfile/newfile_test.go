package newfile

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "dump")
	names := func() (out []string) {
		all, err := os.ReadDir(dir)
		require.NoError(t, err)
		for _, e := range all {
			out = append(out, e.Name())
		}
		return out
	}
	write := func(s string, fail error) error {
		return Write(path, func(f *os.File) error {
			require.NotContains(t, names(), filepath.Base(f.Name())[1:], "the final name, too early")
			_, err := f.WriteString(s)
			return errors.Join(err, fail)
		})
	}
	boom := errors.New("boom")
	err := write("no", boom)
	require.ErrorIs(t, err, boom)
	require.ErrorContains(t, err, path)
	require.Empty(t, names())

	for _, s := range []string{"first", "second"} {
		require.NoError(t, write(s, nil))
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, s, string(b))
	}
	require.Error(t, write("no", boom))
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "second", string(b))
	require.Equal(t, []string{"dump"}, names())
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.EqualValues(t, 0o600, st.Mode().Perm())

	never := func(*os.File) error { t.Error("called"); return nil }
	require.ErrorContains(t, Write(dir, never), "no regular file")
	require.ErrorIs(t, Write(filepath.Join(dir, "no", "such"), never), os.ErrNotExist)
}
