package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	_ "embed"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

//go:embed programs/mem.c
var memSource string

// criuReport is what the program inside prints.
type criuReport struct {
	Version string
	Times   []time.Duration
	Bytes   int64
}

func parseReport(out []byte) (*criuReport, error) {
	r := &criuReport{}
	if err := json.Unmarshal(out, r); err != nil {
		return nil, fmt.Errorf("criu: %w", err)
	}
	return r, nil
}

// criu measures CRIU in the guest, by the guest's clock.
func (g *guest) criu(ctx context.Context, runs int, dir string, argv ...string) (*criuReport, error) {
	out, err := g.Exec(ctx, append([]string{"/opt/inside", "-n", strconv.Itoa(runs), "-dir", dir, "--"}, argv...)...)
	if err != nil {
		return nil, err
	}
	return parseReport(out)
}

// native is the CRIU of a guest's distribution on the host: with its libraries, in
// a root directory and namespaces of its own. The host's own may not know its kernel.
type native struct {
	root    string
	inside  string
	version string
	err     error // why it does not run
}

// newNative takes CRIU, the libraries it needs and the minimal program out of a
// guest. A host where CRIU does not run is not an error of ours: the table says so.
func newNative(b *bench, g *guest) *native {
	n := &native{root: filepath.Join(b.dir, "root"), inside: b.inside}
	n.err = n.install(b, g)
	if n.err == nil {
		var r *criuReport
		if r, n.err = n.criu(b.ctx, 1, "/tmp", "/opt/ovm/counter", "20"); n.err == nil {
			n.version = r.Version
		}
	}
	return n
}

func (n *native) install(b *bench, g *guest) error {
	var files bytes.Buffer
	r, err := g.Run(b.ctx, testvm.Cmd{
		Argv: []string{"sh", "-c", `criu=$(command -v criu)
tar -C / -chf - "$criu" /opt/ovm/counter $(ldd "$criu" | grep -o '/[^ ]*')`},
		Stdout: &files,
	})
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		return fmt.Errorf("take CRIU out of the guest: %w", err)
	}
	for _, d := range []string{"proc", "sys", "dev", "tmp", "run", "mnt", "root", "opt"} {
		if err := os.MkdirAll(filepath.Join(n.root, d), 0o755); err != nil {
			return err
		}
	}
	tar := exec.CommandContext(b.ctx, "tar", "-C", n.root, "-xpf", "-")
	tar.Stdin = &files
	if out, err := tar.CombinedOutput(); err != nil {
		return fmt.Errorf("unpack CRIU: %w: %s", err, out)
	}
	mem, err := os.ReadFile(b.mem)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.root, "opt/mem"), mem, 0o755)
}

func (n *native) String() string {
	if n.err != nil {
		return "does not run here: " + shorten(n.err)
	}
	return n.version
}

// criu measures CRIU on the host. dir is inside its root: /tmp is memory, /root is
// where bench's work directory is.
func (n *native) criu(ctx context.Context, runs int, dir string, argv ...string) (*criuReport, error) {
	if n.err != nil {
		return nil, n.err
	}
	c := exec.CommandContext(ctx, n.inside, append([]string{"-root", n.root, "-n", strconv.Itoa(runs), "-dir", dir, "--"}, argv...)...)
	// The first process of its own pid namespace takes all others along.
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	var errout strings.Builder
	c.Stderr = &errout
	out, err := c.Output()
	if err != nil {
		return nil, errors.New(lastLine(errout.String(), err))
	}
	return parseReport(out)
}

// shorten cuts CRIU's list of what went wrong: it begins with the cause.
func shorten(err error) string {
	s := err.Error()
	return s[:min(len(s), 200)]
}

func lastLine(s string, err error) string {
	s = strings.TrimSpace(s)
	if s = s[strings.LastIndexByte(s, '\n')+1:]; s == "" {
		return err.Error()
	}
	return s
}
