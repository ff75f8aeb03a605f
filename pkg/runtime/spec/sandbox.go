package spec

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pauseID is the user of pause where none is asked for: nobody, as in the pause images.
const pauseID = 65535

// SandboxInput is everything the spec of a pod's pause process depends on.
type SandboxInput struct {
	ID   string
	Host *Host
	Pod  *runtimeapi.PodSandboxConfig
	// NetNS is the pinned net namespace; unused with the node's network. Empty with a user namespace of the pod's own: a new one,
	// which that owns. UserNS is the user namespace that owns it,
	// for pods with user namespaces; empty: the engine makes a new one from the mappings.
	NetNS, UserNS string
	CgroupPath    string
}

// Sandbox makes the spec of pause. Its root file system holds /pause, and empty /proc and /dev. It gets no
// capability and no image; its namespaces are what the pod's containers join.
func Sandbox(in *SandboxInput) (*specs.Spec, error) {
	if in.Host == nil || in.Pod == nil {
		return nil, invalid("sandbox spec: host and pod must be given")
	}
	sc := in.Pod.GetLinux().GetSecurityContext()
	annotations := podAnnotations(in.ID, in.Pod)
	annotations["io.kubernetes.cri.container-type"] = "sandbox"
	annotations["io.kubernetes.cri.sandbox-log-directory"] = in.Pod.GetLogDirectory()
	shares := uint64(2) // the kernel's lowest: pause only waits
	s := &specs.Spec{
		Version:     ociVersion,
		Root:        &specs.Root{Path: "rootfs", Readonly: true},
		Annotations: annotations,
		Process: &specs.Process{
			Args: []string{"/pause"}, Cwd: "/", Env: []string{defaultPath}, NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=64k"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: in.CgroupPath,
			Resources: &specs.LinuxResources{
				CPU:     &specs.LinuxCPU{Shares: &shares},
				Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
			},
		},
	}
	var err error
	// Before everything else of the pod goes, pause must not: its namespaces would go with it.
	if s.Process.OOMScoreAdj, err = oomScoreAdj(in.Host, -998); err != nil {
		return nil, err
	}
	if err := sandboxNamespaces(in, s); err != nil {
		return nil, fmt.Errorf("namespaces: %w", err)
	}
	if s.Process.User, err = pauseUser(sc, s.Linux.UIDMappings); err != nil {
		return nil, fmt.Errorf("user: %w", err)
	}
	if s.Linux.Sysctl, err = sysctls(in.Host.Defaults.podSysctls(in.Pod, s.Linux.GIDMappings), s.Linux.Namespaces); err != nil {
		return nil, err
	}
	if err := sandboxSecurity(in, s); err != nil {
		return nil, err
	}
	return s, nil
}

func sandboxNamespaces(in *SandboxInput, s *specs.Spec) error {
	o := in.Pod.GetLinux().GetSecurityContext().GetNamespaceOptions()
	ns := []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}}
	switch mode := o.GetNetwork(); mode {
	case runtimeapi.NamespaceMode_NODE:
	case runtimeapi.NamespaceMode_POD:
		u := o.GetUsernsOptions()
		if in.NetNS == "" && (u == nil || u.GetMode() != runtimeapi.NamespaceMode_POD) {
			return fmt.Errorf("the pod has no net namespace: %w", errdefs.ErrFailedPrecondition)
		}
		ns = append(ns, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: in.NetNS}, specs.LinuxNamespace{Type: specs.UTSNamespace})
		s.Hostname = in.Pod.GetHostname()
	default:
		return invalid("network namespace mode %s is neither POD nor NODE", mode)
	}
	switch mode := o.GetIpc(); mode {
	case runtimeapi.NamespaceMode_NODE:
	case runtimeapi.NamespaceMode_POD:
		ns = append(ns, specs.LinuxNamespace{Type: specs.IPCNamespace})
	default:
		return invalid("ipc namespace mode %s is neither POD nor NODE", mode)
	}
	switch mode := o.GetPid(); mode {
	case runtimeapi.NamespaceMode_NODE:
	case runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER:
		ns = append(ns, specs.LinuxNamespace{Type: specs.PIDNamespace})
	default:
		return invalid("pid namespace mode %s is none of POD, CONTAINER and NODE", mode)
	}
	uids, gids, err := userns(in.Host, o.GetUsernsOptions())
	if err != nil {
		return err
	}
	if uids != nil {
		ns = append(ns, specs.LinuxNamespace{Type: specs.UserNamespace, Path: in.UserNS})
		s.Linux.UIDMappings, s.Linux.GIDMappings = uids, gids
	}
	s.Linux.Namespaces = ns
	return nil
}

// pauseUser: the image-less pause knows ids only.
func pauseUser(sc *runtimeapi.LinuxSandboxSecurityContext, mapped []specs.LinuxIDMapping) (specs.User, error) {
	name, err := userString("", sc.GetRunAsUser(), sc.GetRunAsGroup())
	if err != nil {
		return specs.User{}, err
	}
	u := &account{uid: pauseID, gid: pauseID}
	if len(mapped) > 0 && mapped[0].Size <= pauseID {
		u = &account{}
	}
	if name != "" {
		if u, err = (accounts{}).resolve(name); err != nil {
			return specs.User{}, err
		}
	}
	out := specs.User{UID: u.uid, GID: u.gid, AdditionalGids: []uint32{u.gid}}
	for _, g := range sc.GetSupplementalGroups() {
		gid, err := id(g)
		if err != nil {
			return specs.User{}, fmt.Errorf("supplemental group: %w", err)
		}
		if gid != u.gid {
			out.AdditionalGids = append(out.AdditionalGids, gid)
		}
	}
	return out, nil
}

// sandboxSecurity: pause runs under the pod's profile, and under the default one where none is named.
func sandboxSecurity(in *SandboxInput, s *specs.Spec) error {
	sc := in.Pod.GetLinux().GetSecurityContext()
	//lint:ignore SA1019 the CRI keeps the old field as a fallback
	p, err := profile(sc.GetSeccomp(), sc.GetSeccompProfilePath())
	if err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	if p == nil {
		p = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	}
	if !sc.GetPrivileged() {
		if s.Linux.Seccomp, err = seccompProfile(in.Host, p, nil); err != nil {
			return fmt.Errorf("seccomp: %w", err)
		}
	}
	c := &Input{Host: in.Host, Pod: in.Pod, Container: &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{
		SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			SelinuxOptions: sc.GetSelinuxOptions(), Apparmor: sc.GetApparmor(), Privileged: sc.GetPrivileged(),
		}}}}
	if err := setSELinux(c, s); err != nil {
		return fmt.Errorf("selinux: %w", err)
	}
	if err := setAppArmor(c, s); err != nil {
		return fmt.Errorf("apparmor: %w", err)
	}
	return nil
}
