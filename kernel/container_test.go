package kernel_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/kernel"
)

func TestIdentifyContainer(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	other := strings.Repeat("f", 64)
	const uid = "1234abcd-12ab-34cd-56ef-1234567890ab"
	systemdUID := strings.ReplaceAll(uid, "-", "_")
	bind := func(root, point string) *kernel.MountInfo { return &kernel.MountInfo{RootName: root, Name: point} }
	for _, c := range []struct {
		path   string
		mounts []*kernel.MountInfo
		want   kernel.Container
	}{
		// Docker, by its own cgroup driver and by systemd's; in itself.
		{path: "/docker/" + id, want: kernel.Container{Engine: "docker", ID: id}},
		{path: "/system.slice/docker-" + id + ".scope", want: kernel.Container{Engine: "docker", ID: id}},
		{path: "/docker/" + other + "/docker/" + id, want: kernel.Container{Engine: "docker", ID: id}},
		{path: "/docker/" + id + "/system.slice/nginx.service", want: kernel.Container{Engine: "docker", ID: id}},
		{path: "/docker/buildkit/abcdefghijklmnopqrstuvwxy", want: kernel.Container{Engine: "buildkit", ID: "abcdefghijklmnopqrstuvwxy"}},
		{path: "/ecs/0123456789abcdef0123456789abcdef/" + id, want: kernel.Container{Engine: "docker", ID: id}},
		// Podman, as root, rootless, by cgroupfs.
		{path: "/machine.slice/libpod-" + id + ".scope/container", want: kernel.Container{Engine: "podman", ID: id}},
		{
			path: "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope/container",
			want: kernel.Container{Engine: "podman", ID: id},
		},
		{path: "/libpod_parent/libpod-" + id, want: kernel.Container{Engine: "podman", ID: id}},
		{path: "/machine.slice/libpod-payload-" + id, want: kernel.Container{Engine: "podman", ID: id}},
		// Kubernetes.
		{
			path: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + systemdUID + ".slice/cri-containerd-" + id + ".scope",
			want: kernel.Container{Engine: "containerd", ID: id, Pod: uid},
		},
		{
			path: "/kubepods.slice/kubepods-pod" + systemdUID + ".slice/crio-" + id + ".scope",
			want: kernel.Container{Engine: "cri-o", ID: id, Pod: uid},
		},
		{
			path: "/system.slice/containerd.service/kubepods-besteffort-pod" + systemdUID + ".slice:cri-containerd:" + id,
			want: kernel.Container{Engine: "containerd", ID: id, Pod: uid},
		},
		{path: "/kubepods/besteffort/pod" + uid + "/" + id, want: kernel.Container{ID: id, Pod: uid}},
		{
			path: "/kubepods/besteffort/pod" + uid + "/" + id,
			mounts: []*kernel.MountInfo{
				bind("/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/"+other+"/hostname", "/etc/hostname"),
				bind("/var/lib/kubelet/pods/"+uid+"/etc-hosts", "/etc/hosts"),
			},
			want: kernel.Container{Engine: "containerd", ID: id, Pod: uid},
		},
		// containerd alone.
		{path: "/default/" + id, want: kernel.Container{Engine: "containerd", ID: id}},
		{path: "/system.slice/nerdctl-" + id + ".scope", want: kernel.Container{Engine: "containerd", ID: id}},
		// Those with names.
		{path: "/lxc/web", want: kernel.Container{Engine: "lxc", ID: "web", Name: "web"}},
		{path: "/lxc.payload.my-box/init.scope", want: kernel.Container{Engine: "lxc", ID: "my-box", Name: "my-box"}},
		{path: "/lxc.payload/old/system.slice/ssh.service", want: kernel.Container{Engine: "lxc", ID: "old", Name: "old"}},
		{
			path: "/machine.slice/systemd-nspawn@deb\\x2d12.service/payload/init.scope",
			want: kernel.Container{Engine: "systemd-nspawn", ID: "deb-12", Name: "deb-12"},
		},
		{
			path: "/machine.slice/machine-sid\\x2droot.scope",
			want: kernel.Container{Engine: "systemd-nspawn", ID: "sid-root", Name: "sid-root"},
		},
		{
			path: "/machine.slice/machine-lxc\\x2d4711\\x2dweb.scope",
			want: kernel.Container{Engine: "libvirt-lxc", ID: "web", Name: "web"},
		},
		{path: "/system.slice/runc-bundle1.scope", want: kernel.Container{Engine: "runc", ID: "bundle1", Name: "bundle1"}},
		{path: "/user.slice/crun-job.scope", want: kernel.Container{Engine: "crun", ID: "job", Name: "job"}},
		// No sign but in mounts.
		{
			path: "/", mounts: []*kernel.MountInfo{bind("/var/lib/docker/containers/"+id+"/hostname", "/etc/hostname")},
			want: kernel.Container{Engine: "docker", ID: id},
		},
		{
			path: "/", mounts: []*kernel.MountInfo{
				bind("/containers/storage/overlay-containers/"+id+"/userdata/.containerenv", "/run/.containerenv"),
			},
			want: kernel.Container{Engine: "podman", ID: id},
		},
		// No containers.
		{path: "/"},
		{path: "/init.scope"},
		{path: "/system.slice/docker.service"},
		{path: "/system.slice/containerd.service"},
		{path: "/user.slice/user-1000.slice/session-1.scope"},
		{path: "/machine.slice/machine-qemu\\x2d1\\x2dvm.scope"},
		{path: "/machine.slice/libpod-conmon-" + id + ".scope"},
		{path: "/lxc.monitor.web"},
		{path: "/docker"},
		{path: "/docker/" + id[1:]},
		{path: "/system.slice", mounts: []*kernel.MountInfo{bind("/etc/hostname", "/etc/hostname"), bind("/", "/")}},
	} {
		got, ok := kernel.IdentifyContainer([]string{c.path}, c.mounts)
		require.Equal(t, c.want, got, c.path)
		require.Equal(t, c.want != kernel.Container{}, ok, c.path)
	}
	// A v1 guest: one hierarchy says more than others.
	got, ok := kernel.IdentifyContainer([]string{"/", "/kubepods/pod" + uid + "/" + id, "/system.slice/docker-" + id + ".scope"}, nil)
	require.True(t, ok)
	require.Equal(t, "docker", got.Engine)
}
