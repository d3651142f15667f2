package criuimg

import (
	"archive/tar"
	"compress/gzip"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
)

var criuVersions = []string{"3.17.1", "4.1.1", "4.2.1"}

// realSets returns image sets made by CRIU, by name "VERSION/PROGRAM".
// See testdata/README.md.
var realSets = sync.OnceValues(func() (map[string]fstest.MapFS, error) {
	sets := map[string]fstest.MapFS{}
	for _, v := range criuVersions {
		f, err := os.Open("testdata/criu-" + v + ".tar.gz")
		if err != nil {
			return nil, err
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			return nil, err
		}
		for t := tar.NewReader(z); ; {
			h, err := t.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				return nil, err
			}
			if h.Typeflag != tar.TypeReg {
				continue
			}
			b, err := io.ReadAll(t)
			if err != nil {
				return nil, err
			}
			dir, name := path.Split(h.Name)
			dir = v + "/" + strings.TrimSuffix(dir, "/")
			if sets[dir] == nil {
				sets[dir] = fstest.MapFS{}
			}
			sets[dir][name] = &fstest.MapFile{Data: b, Mode: 0o600}
		}
	}
	return sets, nil
})

func eachRealSet(t *testing.T, test func(t *testing.T, name string, set fstest.MapFS)) {
	sets, err := realSets()
	require.NoError(t, err)
	require.Len(t, sets, 4*len(criuVersions))
	for name, set := range sets {
		t.Run(name, func(t *testing.T) { test(t, name, set) })
	}
}

// realSet returns one set, a copy whose files may be replaced and changed.
func realSet(t testing.TB, name string) fstest.MapFS {
	sets, err := realSets()
	require.NoError(t, err)
	require.Contains(t, sets, name)
	out := fstest.MapFS{}
	for n, f := range sets[name] {
		out[n] = &fstest.MapFile{Data: append([]byte(nil), f.Data...), Mode: fs.FileMode(0o600)}
	}
	return out
}
