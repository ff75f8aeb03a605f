// Package spec makes OCI runtime specs from CRI messages. It is the only place where a spec is made.
//
// Container makes a container's, Sandbox that of a pod's pause process. Both are functions of their input: what the
// node can do comes from Host (probed once), the image's users from Root (read beneath its own root, with bounded
// reads). What they read from the node besides is named by the CRI message itself: host paths of mounts and devices,
// seccomp profile files, CDI specs. The only thing they change is the SELinux label of a host path whose mount asks
// for it (selinux_relabel), and that only where SELinux is enabled.
//
// Errors are errdefs kinds: ErrInvalidArgument for a message that contradicts itself, ErrNotFound for a host path,
// user, profile or device that is not there, ErrNotImplemented for what this node can't do. Errors for which the
// kubelet looks by prefix wrap k8s.io/cri-api/pkg/errors' values; ask errors.Is.
package spec

import (
	"fmt"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ociVersion is the lowest version that describes what we emit, so that older OCI runtimes (crun before 1.9 refuses
// anything above 1.0) take it too.
const ociVersion = "1.0.2"

// Namespaces are the paths of the pod's namespaces to join (/proc/PID/ns/X or a pinned file). An empty path is right
// only where the CRI options ask for the host's or the container's own namespace; else it is an error.
type Namespaces struct {
	Net, IPC, UTS, User string
	// PID is the pod's, or with NamespaceMode_TARGET the target container's.
	PID string
}

// Input is everything a container's spec depends on. Nothing in it is changed or kept.
type Input struct {
	// ID and SandboxID are the container's and its pod's id.
	ID, SandboxID string
	Host          *Host
	// Pod is the stored config of the sandbox, Container the request's.
	Pod       *runtimeapi.PodSandboxConfig
	Container *runtimeapi.ContainerConfig
	// Image is the image's config, ImageName the name it is shown by (annotation only).
	Image     *ocispec.ImageConfig
	ImageName string
	// Files reads the image's etc/passwd and etc/group. Nil: as if neither file was there.
	Files      Files
	Namespaces Namespaces
	CgroupPath string
	// Hostname, Hosts, ResolvConf and Shm are the pod's files and directory on the host, bind mounted to
	// /etc/hostname, /etc/hosts, /etc/resolv.conf and /dev/shm unless the container mounts something there itself.
	// Empty: none. With the node's IPC namespace Shm is ignored and the host's /dev/shm is used.
	Hostname, Hosts, ResolvConf, Shm string
	// PrivilegedPod is whether the sandbox allows privileged containers.
	PrivilegedPod bool
	// ProcessLabel is the pod's SELinux label, whose level containers without options of their own share.
	ProcessLabel string
	// ImageMount returns the host path of the root of a mount's image, mounted read-only with an SELinux label ("" for
	// none) and the mount's id mappings, and kept until the container is built. Its files stay for as long as the
	// container lives. Nil: image mounts are refused.
	ImageMount func(m *runtimeapi.Mount, label string) (string, error)
	// HostDevices lists what a privileged container gets. Nil: every device node below /dev.
	HostDevices func() ([]specs.LinuxDevice, error)
	// CDI adds devices by their fully qualified names. Nil: the specs in /etc/cdi and /var/run/cdi.
	CDI func(s *specs.Spec, names []string) error
}

// Container makes the spec of a container. It may stat host paths, so it can hang where a network file system does.
func Container(in *Input) (*specs.Spec, error) {
	if in.Host == nil || in.Pod == nil || in.Container == nil {
		return nil, fmt.Errorf("container spec: host, pod and container must be given: %w", errdefs.ErrInvalidArgument)
	}
	if in.Image == nil {
		c := *in
		c.Image = &ocispec.ImageConfig{}
		in = &c
	}
	s := &specs.Spec{
		Version: ociVersion,
		Process: &specs.Process{},
		Root:    &specs.Root{Path: "rootfs", Readonly: in.security().GetReadonlyRootfs()},
		Linux: &specs.Linux{
			CgroupsPath: in.CgroupPath,
			Resources:   &specs.LinuxResources{},
		},
		Annotations: containerAnnotations(in),
	}
	if in.privileged() && !in.PrivilegedPod {
		return nil, fmt.Errorf("container %q: privileged, but its pod sandbox is not: %w",
			in.Container.GetMetadata().GetName(), errdefs.ErrInvalidArgument)
	}
	for _, step := range []struct {
		name string
		do   func(*Input, *specs.Spec) error
	}{
		{"process", setProcess},
		{"user", setUser},
		{"capabilities", setCapabilities},
		{"namespaces", setNamespaces},
		{"resources", setResources},
		{"selinux", setSELinux},
		{"mounts", setMounts},
		{"devices", setDevices},
		{"apparmor", setAppArmor},
		{"cdi", setCDI},
		{"seccomp", setSeccomp},
	} {
		if err := step.do(in, s); err != nil {
			selinux.ReleaseLabel(s.Process.SelinuxLabel)
			return nil, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return s, nil
}

func (in *Input) security() *runtimeapi.LinuxContainerSecurityContext {
	return in.Container.GetLinux().GetSecurityContext()
}

func (in *Input) privileged() bool { return in.security().GetPrivileged() }

func invalid(format string, a ...any) error {
	return fmt.Errorf(format+": %w", append(a, errdefs.ErrInvalidArgument)...)
}
