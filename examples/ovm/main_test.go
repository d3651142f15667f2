package main

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	// Journals of tests are none of the user's.
	if os.Getenv("OVM_JOURNAL") == "" {
		os.Setenv("OVM_JOURNAL", filepath.Join(os.TempDir(), "ovm-test-journal"))
	}
	testscript.Main(m, map[string]func(){"ovm": main})
}

// TestScript runs the program on everything that needs no guest.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			// Image sets that real CRIU made.
			for _, v := range []string{"3.17.1", "4.1.1"} {
				name := "criu-" + v
				if err := untar(filepath.Join("..", "..", "criuimg", "testdata", name+".tar.gz"), filepath.Join(e.WorkDir, name)); err != nil {
					return err
				}
			}
			return os.WriteFile(filepath.Join(e.WorkDir, "zeros"), make([]byte, 4<<20), 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"fails": fails},
	})
}

// fails runs a program and checks its exit code: "fails 2 ovm ps".
func fails(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: fails CODE PROGRAM ARGS…")
	}
	err := ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		ts.Fatalf("%v: %v", args[1:], err)
	}
	if code := strconv.Itoa(exit.ExitCode()); code != args[0] {
		ts.Fatalf("exit code %s, not %s", code, args[0])
	}
}

// untar unpacks the regular files of an archive of ours.
func untar(archive, dir string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	t := tar.NewReader(z)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		path := filepath.Join(dir, filepath.Clean("/"+h.Name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		b, err := io.ReadAll(t)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			return err
		}
	}
}
