package lint

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/ovmigrate/ovmigrate"

// layers says what the packages below a folder may import of ours, themselves aside.
// The order of the design: imports go down only.
var layers = map[string][]string{
	"":                   {},
	"vmi":                {},
	"criuimg":            {},
	"kernel":             {"vmi"},
	"signal":             {"kernel", "vmi"},
	"checkpoint":         {"kernel", "signal", "criuimg", "vmi"},
	"examples":           {"checkpoint", "kernel", "signal", "criuimg", "vmi", "internal/testvm"},
	"internal/testvm":    {"vmi"},
	"internal/btfcorpus": {},
	"internal/doctable":  {},
	"internal/lint":      {},
	"internal/support":   {"internal/doctable"},
	"internal/bench":     {"checkpoint", "kernel", "signal", "criuimg", "vmi", "internal/testvm"},
	"internal/migrate":   {"checkpoint", "kernel", "signal", "criuimg", "vmi", "internal/testvm"},
	"internal/examples":  {"checkpoint", "kernel", "signal", "criuimg", "vmi", "internal/testvm"},
}

func layerOf(pkg string) (string, bool) {
	rel := strings.TrimPrefix(strings.TrimPrefix(pkg, module), "/")
	parts := strings.SplitN(rel, "/", 3)
	name := parts[0]
	if name == "internal" && len(parts) > 1 {
		name += "/" + parts[1]
	}
	_, ok := layers[name]
	return name, ok
}

// violation says what is wrong with pkg importing imp, or "".
func violation(pkg, imp string, test bool) string {
	if imp != module && !strings.HasPrefix(imp, module+"/") {
		return ""
	}
	from, ok := layerOf(pkg)
	if !ok {
		return pkg + ": in no known layer; add it to internal/lint"
	}
	to, ok := layerOf(imp)
	if ok && (from == to || slices.Contains(layers[from], to)) {
		return ""
	}
	// Tests may boot guests, read the types of kernels and keep tables in documents; the
	// module's own are its documentation, which shows all.
	if test && (slices.Contains([]string{"internal/testvm", "internal/btfcorpus", "internal/doctable", "internal/support"}, to) || pkg == module) {
		return ""
	}
	// A tool that generates code from the types of all kernels.
	if pkg == module+"/kernel/structgen" && to == "internal/btfcorpus" {
		return ""
	}
	return pkg + " must not import " + imp
}

func TestLayers(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", module+"/...").Output()
	require.NoError(t, err)
	dec := json.NewDecoder(bytes.NewReader(out))
	n := 0
	for ; ; n++ {
		var p struct {
			ImportPath                         string
			Imports, TestImports, XTestImports []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else {
			require.NoError(t, err)
		}
		for _, imp := range p.Imports {
			if v := violation(p.ImportPath, imp, false); v != "" {
				t.Error(v)
			}
		}
		for _, imp := range slices.Concat(p.TestImports, p.XTestImports) {
			if v := violation(p.ImportPath, imp, true); v != "" {
				t.Error(v, "(test)")
			}
		}
	}
	require.Greater(t, n, 3, "packages seen")
}

func TestViolationFindsViolations(t *testing.T) {
	for _, c := range []struct {
		pkg, imp string
		test, ok bool
	}{
		{"vmi/qemu", "vmi/qmp", false, true},
		{"vmi", "kernel", false, false},
		{"criuimg", "vmi", false, false},
		{"kernel/types", "vmi", false, true},
		{"kernel", "signal", false, false},
		{"signal", "criuimg", false, false},
		{"checkpoint", "criuimg", false, true},
		{"kernel", "internal/testvm", false, false},
		{"kernel", "internal/testvm", true, true},
		{"kernel", "checkpoint", true, false},
		{"kernel/structgen", "internal/btfcorpus", false, true},
		{"kernel/types", "internal/btfcorpus", false, false},
		{"surprise", "vmi", false, false},
		{"", "vmi", false, false},
		{"", "vmi", true, true},
	} {
		v := violation(strings.TrimSuffix(module+"/"+c.pkg, "/"), module+"/"+c.imp, c.test)
		require.Equal(t, c.ok, v == "", "%+v: %s", c, v)
	}
	require.Empty(t, violation(module+"/vmi", "fmt", false))
}

const maxLines = 600

func TestFiles(t *testing.T) {
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	n := 0
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && strings.HasPrefix(d.Name(), "."):
			return filepath.SkipDir
		case filepath.Ext(path) != ".go":
			return nil
		}
		n++
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		f, err := parser.ParseFile(token.NewFileSet(), path, src, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		for _, v := range fileViolations(rel, f, bytes.Count(src, []byte("\n"))) {
			t.Error(v)
		}
		return nil
	})
	require.NoError(t, err)
	require.Greater(t, n, 10, "files seen")
}

func fileViolations(path string, f *ast.File, lines int) (found []string) {
	if lines > maxLines && !ast.IsGenerated(f) {
		found = append(found, path+": too long; split it by duty")
	}
	for _, i := range f.Imports {
		switch {
		case i.Path.Value == `"unsafe"` && !strings.HasSuffix(path, "_unsafe.go") && !strings.HasSuffix(path, "_unsafe_test.go"):
			found = append(found, path+": unsafe belongs into a file named *_unsafe.go")
		case i.Path.Value == `"C"`:
			found = append(found, path+": no cgo")
		}
	}
	return found
}
