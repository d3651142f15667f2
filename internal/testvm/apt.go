package testvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// keyring has the keys of all releases of Debian, past ones included.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// aptDir is a set of lists and caches of apt for one release and architecture, apart
// from the machine's own, which it takes the mirror and the proxy settings from.
type aptDir struct {
	dir     string
	options []string
}

func newAptDir(ctx context.Context, dir, release, arch string) (*aptDir, error) {
	mirror, err := debianMirror(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial", "preferences.d", "debs"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	line := fmt.Sprintf("deb [arch=%s target=Packages lang=none pdiffs=no signed-by=%s] %s %s main\n", arch, keyring, mirror, release)
	for name, content := range map[string]string{"sources.list": line, "status": "", "preferences": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return nil, err
		}
	}
	a := &aptDir{dir: dir}
	for _, o := range []string{
		"Dir::State::lists=" + filepath.Join(dir, "lists"),
		"Dir::State::status=" + filepath.Join(dir, "status"),
		"Dir::Cache=" + filepath.Join(dir, "cache"),
		"Dir::Etc::sourcelist=" + filepath.Join(dir, "sources.list"),
		"Dir::Etc::sourceparts=" + os.DevNull,
		"Dir::Etc::preferences=" + filepath.Join(dir, "preferences"),
		"Dir::Etc::preferencesparts=" + filepath.Join(dir, "preferences.d"),
		"APT::Architecture=" + arch, "APT::Architectures::=" + arch,
		"APT::Sandbox::User=root", // the cache may be where no other user can write
		"APT::Update::Error-Mode=any",
		"APT::Update::Post-Invoke=", "APT::Update::Post-Invoke-Success=",
		"Acquire::GzipIndexes=true",
		"Acquire::Retries=3",
	} {
		a.options = append(a.options, "-o", o)
	}
	cmd := exec.CommandContext(ctx, "apt-get", append(a.options, "-q", "update")...)
	if err := runQuiet(cmd); err != nil {
		return nil, err
	}
	return a, nil
}

// debianMirror asks apt for the mirror that this machine uses.
func debianMirror(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Created-By: Packages")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("which Debian mirror: apt-get indextargets: %w", err)
	}
	return pickMirror(string(out))
}

// pickMirror chooses among lines of mirror, release and component. Updates and fixes
// have mirrors of their own, or are parts of releases of longer names.
func pickMirror(targets string) (string, error) {
	for line := range strings.Lines(targets) {
		f := strings.Fields(line)
		if len(f) == 3 && f[2] == "main" && !strings.Contains(f[1], "-") {
			return f[0], nil
		}
	}
	return "", errors.New("apt on this machine has no Debian mirror among its sources")
}

// kernelPackage matches what the parts of a kernel are called, unlike linux-base.
var kernelPackage = regexp.MustCompile(`^linux-(image|binary|modules|base)-[0-9]`)

// download fetches the parts of the kernel that a package depends on.
func (a *aptDir) download(ctx context.Context, pkg string) (debs []string, err error) {
	cmd := exec.CommandContext(ctx, "apt-cache", append(a.options, "depends", "-i", "--recurse", pkg)...)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("what %s depends on: apt-cache: %w", pkg, err)
	}
	var parts []string
	for line := range strings.Lines(string(out)) {
		if name := strings.TrimSpace(line); kernelPackage.MatchString(line) {
			parts = append(parts, name)
		}
	}
	if parts == nil {
		return nil, fmt.Errorf("%s depends on no kernel", pkg)
	}
	cmd = exec.CommandContext(ctx, "apt-get", append(append(a.options, "-q", "download"), parts...)...)
	cmd.Dir = filepath.Join(a.dir, "debs")
	if err := runQuiet(cmd); err != nil {
		return nil, err
	}
	return filepath.Glob(filepath.Join(cmd.Dir, "*.deb"))
}
