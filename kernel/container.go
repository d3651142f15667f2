package kernel

import (
	"errors"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Container says which container a task is in. The kernel knows no containers: this
// is what engines leave in names of control groups and in mounts.
type Container struct {
	// Engine is who made it: "docker", "podman", "containerd", "cri-o", "lxc",
	// "systemd-nspawn", "runc", "crun", "buildkit", "libvirt-lxc"; "" if there is a
	// container of an engine that is not known.
	Engine string
	ID     string // as the engine calls it, mostly 64 hexadecimal digits
	Name   string // where it is not an ID but a name that says so
	Pod    string // UID of the Kubernetes pod, if it is part of one
}

// containerUnit is how an engine names the control group of a container. The first
// group of the expression is the ID.
type containerUnit struct {
	engine string
	named  bool // the ID is a name
	re     *regexp.Regexp
}

// The engines' patterns for the last part of a path that is theirs.
var containerUnits = []containerUnit{
	{"docker", false, regexp.MustCompile(`^docker-([0-9a-f]{64})\.scope$`)},
	{"podman", false, regexp.MustCompile(`^libpod-(?:payload-)?([0-9a-f]{64})(?:\.scope)?$`)},
	{"cri-o", false, regexp.MustCompile(`^crio-([0-9a-f]{64})(?:\.scope)?$`)},
	{"containerd", false, regexp.MustCompile(`^(?:cri-containerd|nerdctl)-([0-9a-f]{64})\.scope$`)},
	{"containerd", false, regexp.MustCompile(`:cri-containerd:([0-9a-f]{64})$`)},
	{"runc", true, regexp.MustCompile(`^runc-(.+)\.scope$`)},
	{"crun", true, regexp.MustCompile(`^crun-(.+)\.scope$`)},
	{"lxc", true, regexp.MustCompile(`^lxc\.payload\.(.+)$`)},
	{"systemd-nspawn", true, regexp.MustCompile(`^systemd-nspawn@(.+)\.service$`)},
	{"libvirt-lxc", true, regexp.MustCompile(`^machine-lxc\\x2d[0-9]+\\x2d(.+)\.scope$`)},
	{"systemd-nspawn", true, regexp.MustCompile(`^machine-(.+)\.scope$`)},
}

// Patterns for a part of a path together with the one above it.
var containerPairs = []containerUnit{
	{"docker", false, regexp.MustCompile(`^docker/([0-9a-f]{64})$`)},
	{"buildkit", false, regexp.MustCompile(`^buildkit/([0-9a-z]{25})$`)},
	{"docker", false, regexp.MustCompile(`^(?:[0-9a-f]{32}|[0-9a-f-]{36})/([0-9a-f]{64})$`)}, // Amazon ECS
	{"podman", false, regexp.MustCompile(`^libpod_parent/libpod-([0-9a-f]{64})$`)},
	{"lxc", true, regexp.MustCompile(`^lxc(?:\.payload)?/([^/]+)$`)},
	{"containerd", false, regexp.MustCompile(`^(?:default|k8s\.io|moby)/([0-9a-f]{64})$`)},
	{"", false, regexp.MustCompile(`^pod[0-9a-f_-]{32,36}/([0-9a-f]{64})$`)}, // the engine does not say
	{"", false, regexp.MustCompile(`^kubepods[^/]*-pod[0-9a-f_-]{32,36}\.slice/([0-9a-f]{64})$`)},
}

var (
	podPart    = regexp.MustCompile(`(?:^|-)pod([0-9a-f]{8}[_-]?[0-9a-f]{4}[_-]?[0-9a-f]{4}[_-]?[0-9a-f]{4}[_-]?[0-9a-f]{12})(?:\.slice|$|:)`)
	unitEscape = regexp.MustCompile(`\\x[0-9a-f]{2}`)
	// The files that engines put over those of an image name the container.
	bindDocker  = regexp.MustCompile(`/containers/([0-9a-f]{64})/(?:hostname|hosts|resolv\.conf)$`)
	bindStorage = regexp.MustCompile(`/overlay-containers/([0-9a-f]{64})/userdata/`)
	bindCRI     = regexp.MustCompile(`/io\.containerd\.grpc\.v1\.cri/sandboxes/[0-9a-f]{64}/`)
	bindPod     = regexp.MustCompile(`/pods/([0-9a-f-]{36})/(?:etc-hosts|containers/|volumes/)`)
)

// IdentifyContainer says which container a process is in, by the paths of its control
// groups (from the root of each hierarchy) and the mounts that it sees. Of nested
// containers it is the innermost. ok is false if nothing speaks of a container.
func IdentifyContainer(cgroups []string, mounts []*MountInfo) (c Container, ok bool) {
	for _, path := range cgroups {
		if found, k := containerOfPath(path); k && (!ok || c.Engine == "") {
			c, ok = found, true
		}
	}
	m, found := containerOfMounts(mounts)
	if !ok {
		return m, found
	}
	// The group is the more exact witness: containers of a pod share their mounts.
	if c.Engine == "" {
		c.Engine = m.Engine
	}
	if c.Pod == "" {
		c.Pod = m.Pod
	}
	return c, true
}

func containerOfPath(path string) (c Container, ok bool) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	for i := len(parts) - 1; i >= 0 && !ok; i-- {
		if strings.HasPrefix(parts[i], `machine-qemu\x2d`) {
			return c, false // a virtual machine
		}
		c, ok = matchUnit(containerUnits, parts[i])
		if !ok && i > 0 {
			c, ok = matchUnit(containerPairs, parts[i-1]+"/"+parts[i])
		}
	}
	for _, p := range parts {
		if m := podPart.FindStringSubmatch(p); ok && m != nil {
			c.Pod = strings.ReplaceAll(m[1], "_", "-")
		}
	}
	return c, ok
}

func matchUnit(units []containerUnit, text string) (c Container, ok bool) {
	for _, u := range units {
		m := u.re.FindStringSubmatch(text)
		if m == nil {
			continue
		}
		c = Container{Engine: u.engine, ID: m[1]}
		if u.named {
			c.ID = unitEscape.ReplaceAllStringFunc(m[1], func(s string) string {
				b, _ := strconv.ParseUint(s[2:], 16, 8)
				return string([]byte{byte(b)})
			})
			c.Name = c.ID
		}
		return c, true
	}
	return c, false
}

func containerOfMounts(mounts []*MountInfo) (c Container, ok bool) {
	engine := func(name string) {
		if c.Engine == "" {
			c.Engine = name
		}
		ok = true
	}
	for _, m := range mounts {
		switch m.Name {
		case "/run/.containerenv":
			c.Engine, ok = "podman", true
		case "/run/host/os-release", "/run/host/incoming":
			engine("systemd-nspawn")
		case "/dev/.lxc", "/dev/.lxd-mounts", "/dev/.incus-mounts", "/dev/lxd", "/dev/incus":
			engine("lxc")
		}
		if !slices.Contains([]string{"/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/run/.containerenv", "/dev/shm"}, m.Name) {
			continue
		}
		if s := bindDocker.FindStringSubmatch(m.RootName); s != nil {
			engine("docker")
			c.ID = s[1]
		}
		if s := bindStorage.FindStringSubmatch(m.RootName); s != nil {
			ok = true // podman or cri-o; of a pod, it is the ID of its first container
			c.ID = s[1]
		}
		if bindCRI.MatchString(m.RootName) {
			engine("containerd")
		}
		if s := bindPod.FindStringSubmatch(m.RootName); s != nil {
			c.Pod, ok = s[1], true
		}
	}
	return c, ok
}

// Container says which container t is in; ok is false if there is no sign of one. See
// IdentifyContainer.
func (t *Task) Container() (c Container, ok bool, err error) {
	all, err := t.CgroupMemberships()
	if err != nil {
		return c, false, err
	}
	var paths []string
	for _, m := range all {
		paths = append(paths, m.Path)
	}
	var mounts []*MountInfo
	for m, err := range t.MountInfos() {
		if errors.Is(err, ErrNoNS) || errors.Is(err, ErrNoFS) {
			break // it has exited: its control group is left
		}
		if err != nil {
			return c, false, err
		}
		mounts = append(mounts, m)
	}
	c, ok = IdentifyContainer(paths, mounts)
	return c, ok, nil
}
