package spec

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

type secctx = runtimeapi.LinuxContainerSecurityContext

func podOptions(in *Input) *runtimeapi.NamespaceOption {
	return in.Pod.Linux.SecurityContext.NamespaceOptions
}

func TestNamespaceOptions(t *testing.T) {
	get := func(s *specs.Spec) any {
		var all []string
		for _, n := range s.Linux.Namespaces {
			all = append(all, strings.TrimSuffix(string(n.Type)+":"+n.Path, ":"))
		}
		slices.Sort(all)
		return strings.Join(all, " ")
	}
	const (
		node, pod, container, target = runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_POD,
			runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_TARGET
		joined = "cgroup ipc:/n/ipc mount network:/n/net "
	)
	mapping := []*runtimeapi.IDMapping{{HostId: 1000, Length: 100000}}
	userns := func(mode runtimeapi.NamespaceMode, m []*runtimeapi.IDMapping) func(*Input, *secctx) {
		return func(in *Input, _ *secctx) {
			in.Namespaces.User = "/n/user"
			podOptions(in).UsernsOptions = &runtimeapi.UserNamespace{Mode: mode, Uids: m, Gids: m}
		}
	}
	run(t, []row{
		{"pid POD", nil, get, joined + "pid:/n/pid uts:/n/uts", nil},
		{"pid CONTAINER", func(_ *Input, c *secctx) { c.NamespaceOptions.Pid = container }, get, joined + "pid uts:/n/uts", nil},
		{"pid NODE", func(in *Input, c *secctx) { podOptions(in).Pid, c.NamespaceOptions.Pid = node, node }, get, joined + "uts:/n/uts", nil},
		{"pid POD in a pod with NODE", func(in *Input, _ *secctx) { podOptions(in).Pid = node }, get, joined + "uts:/n/uts", nil},
		{"pid NODE in a pod without", func(_ *Input, c *secctx) { c.NamespaceOptions.Pid = node }, nil, nil, errdefs.ErrInvalidArgument},
		{"pid TARGET", func(in *Input, c *secctx) {
			c.NamespaceOptions.Pid, c.NamespaceOptions.TargetId, in.Namespaces.PID = target, "c0", "/n/other"
		}, get, joined + "pid:/n/other uts:/n/uts", nil},
		{"pid TARGET without target_id", func(_ *Input, c *secctx) { c.NamespaceOptions.Pid = target }, nil, nil, errdefs.ErrInvalidArgument},
		{"network NODE shares uts too", func(in *Input, _ *secctx) { podOptions(in).Network = node }, get, "cgroup ipc:/n/ipc mount pid:/n/pid", nil},
		{"ipc NODE", func(in *Input, _ *secctx) { podOptions(in).Ipc = node }, get, "cgroup mount network:/n/net pid:/n/pid uts:/n/uts", nil},
		{"namespace is gone", func(in *Input, _ *secctx) { in.Namespaces.Net = "" }, nil, nil, errdefs.ErrFailedPrecondition},
		{"privileged sees the node's cgroups", func(in *Input, c *secctx) { privileged(in, c) }, get, "ipc:/n/ipc mount network:/n/net pid:/n/pid uts:/n/uts", nil},
		{"userns POD", userns(pod, mapping), get, joined + "pid:/n/pid user:/n/user uts:/n/uts", nil},
		{"userns mappings", userns(pod, mapping), func(s *specs.Spec) any { return append(s.Linux.UIDMappings, s.Linux.GIDMappings...) },
			[]specs.LinuxIDMapping{{HostID: 1000, Size: 100000}, {HostID: 1000, Size: 100000}}, nil},
		{"userns NODE", userns(node, nil), get, joined + "pid:/n/pid uts:/n/uts", nil},
		{"userns NODE with mappings", userns(node, mapping), nil, nil, errdefs.ErrInvalidArgument},
		{"userns CONTAINER", userns(container, mapping), nil, nil, errdefs.ErrInvalidArgument},
		{"userns without mappings", userns(pod, nil), nil, nil, errdefs.ErrInvalidArgument},
		{"userns with two", userns(pod, append(mapping, mapping...)), nil, nil, errdefs.ErrInvalidArgument},
		{"userns not from 0", userns(pod, []*runtimeapi.IDMapping{{ContainerId: 1, HostId: 1000, Length: 10}}), nil, nil, errdefs.ErrInvalidArgument},
		{"userns beyond 32 bits", userns(pod, []*runtimeapi.IDMapping{{HostId: 4294967295, Length: 65536}}), nil, nil, errdefs.ErrInvalidArgument},
		{"userns of length 0", userns(pod, []*runtimeapi.IDMapping{{HostId: 1}}), nil, nil, errdefs.ErrInvalidArgument},
		{"userns differs from the pod's", func(_ *Input, c *secctx) {
			c.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: pod, Uids: mapping, Gids: mapping}
		}, nil, nil, errdefs.ErrInvalidArgument},
		{"userns without kernel support", func(in *Input, c *secctx) { userns(pod, mapping)(in, c); in.Host.UserNamespaces = false }, nil, nil, errdefs.ErrNotImplemented},
	})
}

func privileged(in *Input, c *secctx) {
	c.Privileged, in.PrivilegedPod = true, true
	in.HostDevices = func() ([]specs.LinuxDevice, error) {
		return []specs.LinuxDevice{{Path: "/dev/x", Type: "c", Major: 9}}, nil
	}
}

func TestPrivileged(t *testing.T) {
	in := input(t)
	c := in.Container.Linux.SecurityContext
	c.Privileged = true
	if _, err := Container(in); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("in a pod that is not: %v", err)
	}
	privileged(in, c)
	c.MaskedPaths, c.ReadonlyPaths = []string{"/proc/kcore"}, []string{"/proc/sys"}
	c.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	c.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
	s, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	if s.Linux.MaskedPaths != nil || s.Linux.ReadonlyPaths != nil || s.Linux.Seccomp != nil {
		t.Error("masked, read-only paths or seccomp")
	}
	if len(s.Process.Capabilities.Bounding) != len(in.Host.Bounding) {
		t.Errorf("capabilities %v", s.Process.Capabilities.Bounding)
	}
	if diff := cmp.Diff([]specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}, s.Linux.Resources.Devices); diff != "" || len(s.Linux.Devices) != 1 {
		t.Error(diff, s.Linux.Devices)
	}
	for _, m := range s.Mounts {
		if (m.Type == "sysfs" || m.Type == "cgroup") && slices.Contains(m.Options, "ro") {
			t.Errorf("%s is read-only", m.Destination)
		}
	}
}

func mountOf(dest string) func(*specs.Spec) any {
	return func(s *specs.Spec) any {
		for _, m := range s.Mounts {
			if m.Destination == dest {
				return m.Source + " " + strings.Join(m.Options, ",")
			}
		}
		return ""
	}
}

func TestMounts(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(dir, dir+"-link"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir + "-link") })
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/sub", filepath.Join(dir, "abs")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../../../../../etc", filepath.Join(dir, "up")); err != nil {
		t.Fatal(err)
	}
	with := func(m *runtimeapi.Mount) func(*Input, *secctx) {
		return func(in *Input, _ *secctx) {
			if m.ContainerPath == "" {
				m.ContainerPath = "/data"
			}
			in.Container.Mounts = append(in.Container.Mounts, m)
		}
	}
	image := func(sub string) func(*Input, *secctx) {
		return func(in *Input, c *secctx) {
			with(&runtimeapi.Mount{Image: &runtimeapi.ImageSpec{Image: "i"}, ImageSubPath: sub})(in, c)
			in.ImageMount = func(*runtimeapi.Mount, string) (string, error) { return dir, nil }
		}
	}
	data := mountOf("/data")
	const slave, shared = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	run(t, []row{
		{"plain", with(&runtimeapi.Mount{HostPath: dir}), data, dir + " rbind,rprivate,rw", nil},
		{"host_path symlink", with(&runtimeapi.Mount{HostPath: dir + "-link"}), data, dir + " rbind,rprivate,rw", nil},
		{"host_path missing", with(&runtimeapi.Mount{HostPath: dir + "/none"}), nil, nil, errdefs.ErrNotFound},
		{"host_path relative", with(&runtimeapi.Mount{HostPath: "x"}), nil, nil, errdefs.ErrInvalidArgument},
		{"host_path empty", with(&runtimeapi.Mount{}), nil, nil, errdefs.ErrInvalidArgument},
		{"container_path root", with(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/../"}), nil, nil, errdefs.ErrInvalidArgument},
		{"readonly", with(&runtimeapi.Mount{HostPath: dir, Readonly: true}), data, dir + " rbind,rprivate,ro", nil},
		{"recursive_read_only", with(&runtimeapi.Mount{HostPath: dir, Readonly: true, RecursiveReadOnly: true}), data, dir + " rbind,rprivate,rro", nil},
		{"recursive_read_only without readonly", with(&runtimeapi.Mount{HostPath: dir, RecursiveReadOnly: true}), nil, nil, errdefs.ErrInvalidArgument},
		{"recursive_read_only unsupported", func(in *Input, c *secctx) {
			in.Host.RecursiveReadOnly = false
			with(&runtimeapi.Mount{HostPath: dir, Readonly: true, RecursiveReadOnly: true})(in, c)
		}, nil, nil, crierrors.ErrRROUnsupported},
		{"propagation unknown", with(&runtimeapi.Mount{HostPath: dir, Propagation: 9}), nil, nil, errdefs.ErrInvalidArgument},
		{"propagation rslave on a private mount", with(&runtimeapi.Mount{HostPath: dir, Propagation: slave}), nil, nil, errdefs.ErrFailedPrecondition},
		{"propagation rshared on a private mount", with(&runtimeapi.Mount{HostPath: dir, Propagation: shared}), nil, nil, errdefs.ErrFailedPrecondition},
		{"mount_options", with(&runtimeapi.Mount{HostPath: dir, MountOptions: []string{"noexec", "nosuid"}}), data, dir + " rbind,rprivate,rw,noexec,nosuid", nil},
		{"mount_options other", with(&runtimeapi.Mount{HostPath: dir, MountOptions: []string{"exec"}}), nil, nil, errdefs.ErrInvalidArgument},
		{"uidMappings", with(&runtimeapi.Mount{HostPath: dir, UidMappings: []*runtimeapi.IDMapping{{HostId: 5, Length: 7}}}),
			func(s *specs.Spec) any { return s.Mounts[len(s.Mounts)-1].UIDMappings }, []specs.LinuxIDMapping{{HostID: 5, Size: 7}}, nil},
		{"uidMappings unsupported", func(in *Input, c *secctx) {
			in.Host.IDMappedMounts = false
			with(&runtimeapi.Mount{HostPath: dir, UidMappings: []*runtimeapi.IDMapping{{Length: 7}}})(in, c)
		}, nil, nil, errdefs.ErrNotImplemented},
		{"image", image(""), data, dir + " rbind,rprivate,rro", nil},
		{"image_sub_path", image("sub"), data, dir + "/sub rbind,rprivate,rro", nil},
		{"image_sub_path by an absolute link", image("abs"), data, dir + "/sub rbind,rprivate,rro", nil},
		{"image_sub_path missing", image("none"), nil, nil, errdefs.ErrNotFound},
		{"image_sub_path error prefix", image("none"), nil, nil, crierrors.ErrImageVolumeMountFailed},
		{"image_sub_path escaping", image("../x"), nil, nil, errdefs.ErrInvalidArgument},
		{"image_sub_path absolute", image("/sub"), nil, nil, errdefs.ErrInvalidArgument},
		{"image_sub_path link that climbs stays inside", image("up"), nil, nil, errdefs.ErrNotFound},
		{"image and host_path", func(in *Input, c *secctx) { image("")(in, c); in.Container.Mounts[0].HostPath = dir }, nil, nil, errdefs.ErrInvalidArgument},
		{"image unsupported", with(&runtimeapi.Mount{Image: &runtimeapi.ImageSpec{}}), nil, nil, errdefs.ErrNotImplemented},
		{"image_sub_path without image", with(&runtimeapi.Mount{HostPath: dir, ImageSubPath: "x"}), data, dir + " rbind,rprivate,rw", nil},
		{"takes the place of a default", with(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/sys/"}), mountOf("/sys"), dir + " rbind,rprivate,rw", nil},
		{"a /dev of its own is whole", with(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/dev"}), mountOf("/dev/pts"), "", nil},
		{"sysfs", nil, mountOf("/sys"), "sysfs nosuid,noexec,nodev,ro", nil},
		{"cgroup", nil, mountOf("/sys/fs/cgroup"), "cgroup nosuid,noexec,nodev,relatime,ro", nil},
		{"masked_paths", func(_ *Input, c *secctx) { c.MaskedPaths = []string{"/proc/kcore"} }, func(s *specs.Spec) any { return s.Linux.MaskedPaths }, []string{"/proc/kcore"}, nil},
		{"readonly_paths empty", nil, func(s *specs.Spec) any { return s.Linux.ReadonlyPaths }, []string(nil), nil},
		{"readonly_rootfs", func(_ *Input, c *secctx) { c.ReadonlyRootfs = true }, func(s *specs.Spec) any { return s.Root.Readonly }, true, nil},
	})
}

func TestPodFiles(t *testing.T) {
	dir := t.TempDir()
	all := func(in *Input) { in.Hostname, in.Hosts, in.ResolvConf, in.Shm = dir, dir, dir, dir }
	run(t, []row{
		{"hostname", func(in *Input, _ *secctx) { all(in) }, mountOf("/etc/hostname"), dir + " rbind,rprivate,rw", nil},
		{"shm", func(in *Input, _ *secctx) { all(in) }, mountOf("/dev/shm"), dir + " rbind,rprivate,rw", nil},
		{"shm of the node", func(in *Input, _ *secctx) { all(in); podOptions(in).Ipc = runtimeapi.NamespaceMode_NODE }, mountOf("/dev/shm"), "/dev/shm rbind,rprivate,rw", nil},
		{"read-only with readonly_rootfs", func(in *Input, c *secctx) { all(in); c.ReadonlyRootfs = true }, mountOf("/etc/resolv.conf"), dir + " rbind,rprivate,ro", nil},
		{"none", nil, mountOf("/etc/hosts"), "", nil},
		{"the container's own counts", func(in *Input, _ *secctx) {
			all(in)
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/etc/hosts", HostPath: "/", Readonly: true}}
		}, mountOf("/etc/hosts"), "/ rbind,rprivate,ro", nil},
		{"sorted by depth", func(in *Input, _ *secctx) {
			for _, p := range []string{"/a/b/c", "/a", "/a/b"} {
				in.Container.Mounts = append(in.Container.Mounts, &runtimeapi.Mount{ContainerPath: p, HostPath: dir})
			}
		}, func(s *specs.Spec) any {
			var d []string
			for _, m := range s.Mounts[len(s.Mounts)-3:] {
				d = append(d, m.Destination)
			}
			return d
		}, []string{"/a", "/a/b", "/a/b/c"}, nil},
	})
}

func TestPropagation(t *testing.T) {
	testns.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	in := input(t)
	for _, c := range []struct {
		mode       runtimeapi.MountPropagation
		want, root string
	}{
		{runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, "rslave", "rslave"},
		{runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, "rshared", "rshared"},
	} {
		in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/m", HostPath: dir, Propagation: c.mode}}
		s, err := Container(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Mounts[len(s.Mounts)-1].Options[1]; got != c.want || s.Linux.RootfsPropagation != c.root {
			t.Errorf("%s: %s, root %s", c.mode, got, s.Linux.RootfsPropagation)
		}
	}
}
