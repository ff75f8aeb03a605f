package spec

import (
	"fmt"
	"math"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// setNamespaces: net, ipc and uts are always the pod's (its options rule, as the sandbox already made them), pid is
// the container's choice. A container's mount namespace is its own, and so is its cgroup namespace unless it is
// privileged: those are meant to see the node's tree, as with containerd and CRI-O.
func setNamespaces(in *Input, s *specs.Spec) error {
	pod := in.Pod.GetLinux().GetSecurityContext().GetNamespaceOptions()
	own := in.security().GetNamespaceOptions()
	ns := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	join := func(kind specs.LinuxNamespaceType, path string) error {
		if path == "" {
			return fmt.Errorf("the pod's %s namespace is gone: %w", kind, errdefs.ErrFailedPrecondition)
		}
		ns = append(ns, specs.LinuxNamespace{Type: kind, Path: path})
		return nil
	}
	if pod.GetNetwork() != runtimeapi.NamespaceMode_NODE {
		if err := join(specs.NetworkNamespace, in.Namespaces.Net); err != nil {
			return err
		}
		if err := join(specs.UTSNamespace, in.Namespaces.UTS); err != nil {
			return err
		}
	}
	if pod.GetIpc() != runtimeapi.NamespaceMode_NODE {
		if err := join(specs.IPCNamespace, in.Namespaces.IPC); err != nil {
			return err
		}
	}
	switch mode := own.GetPid(); mode {
	case runtimeapi.NamespaceMode_CONTAINER:
		ns = append(ns, specs.LinuxNamespace{Type: specs.PIDNamespace})
	case runtimeapi.NamespaceMode_POD:
		if pod.GetPid() == runtimeapi.NamespaceMode_NODE {
			break
		}
		if err := join(specs.PIDNamespace, in.Namespaces.PID); err != nil {
			return err
		}
	case runtimeapi.NamespaceMode_NODE:
		if pod.GetPid() != runtimeapi.NamespaceMode_NODE {
			return invalid("the container asks for the node's pid namespace, its pod sandbox does not have it")
		}
	case runtimeapi.NamespaceMode_TARGET:
		if own.GetTargetId() == "" {
			return invalid("pid namespace mode TARGET without a target_id")
		}
		if err := join(specs.PIDNamespace, in.Namespaces.PID); err != nil {
			return fmt.Errorf("target container %s: %w", own.GetTargetId(), err)
		}
	default:
		return invalid("unknown pid namespace mode %d", mode)
	}
	if !in.privileged() {
		ns = append(ns, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	uids, gids, err := userns(in.Host, pod.GetUsernsOptions())
	if err != nil {
		return err
	}
	if o := own.GetUsernsOptions(); o != nil && !sameUserns(o, pod.GetUsernsOptions()) {
		return invalid("the container's userns_options differ from its pod sandbox's")
	}
	if uids != nil {
		if err := join(specs.UserNamespace, in.Namespaces.User); err != nil {
			return err
		}
		s.Linux.UIDMappings, s.Linux.GIDMappings = uids, gids
	}
	s.Linux.Namespaces = ns
	return nil
}

// userns checks userns_options and returns the mappings; none means the node's user namespace. The proto allows
// exactly one range, from container id 0, the same for uids and gids.
func userns(h *Host, o *runtimeapi.UserNamespace) (uids, gids []specs.LinuxIDMapping, err error) {
	switch mode := o.GetMode(); {
	case o == nil:
		return nil, nil, nil
	case mode == runtimeapi.NamespaceMode_NODE:
		if len(o.GetUids()) > 0 || len(o.GetGids()) > 0 {
			return nil, nil, invalid("userns_options: mode NODE takes no mappings")
		}
		return nil, nil, nil
	case mode != runtimeapi.NamespaceMode_POD:
		return nil, nil, invalid("userns_options: mode %s is neither POD nor NODE", mode)
	}
	if len(o.GetUids()) != 1 || len(o.GetGids()) != 1 {
		return nil, nil, invalid("userns_options: exactly one uid and one gid mapping are needed, not %d and %d",
			len(o.GetUids()), len(o.GetGids()))
	}
	u, g := o.GetUids()[0], o.GetGids()[0]
	if u.GetContainerId() != 0 || u.GetLength() == 0 || uint64(u.GetHostId())+uint64(u.GetLength()) > math.MaxUint32 {
		return nil, nil, invalid("userns_options: the mapping %d→%d length %d must start at container id 0 and lie below 2^32",
			u.GetContainerId(), u.GetHostId(), u.GetLength())
	}
	if u.GetHostId() != g.GetHostId() || u.GetContainerId() != g.GetContainerId() || u.GetLength() != g.GetLength() {
		return nil, nil, invalid("userns_options: the uid and gid mappings differ")
	}
	if !h.UserNamespaces {
		return nil, nil, fmt.Errorf("userns_options: this kernel has no user namespaces (see sysctl user.max_user_namespaces): %w",
			errdefs.ErrNotImplemented)
	}
	return mappings(o.GetUids()), mappings(o.GetGids()), nil
}

func mappings(m []*runtimeapi.IDMapping) []specs.LinuxIDMapping {
	var all []specs.LinuxIDMapping
	for _, e := range m {
		all = append(all, specs.LinuxIDMapping{ContainerID: e.GetContainerId(), HostID: e.GetHostId(), Size: e.GetLength()})
	}
	return all
}

// sameUserns takes a nil pod option and mode NODE as the same.
func sameUserns(a, b *runtimeapi.UserNamespace) bool {
	if b == nil {
		return a.GetMode() == runtimeapi.NamespaceMode_NODE
	}
	if a.GetMode() != b.GetMode() || len(a.GetUids()) != len(b.GetUids()) || len(a.GetGids()) != len(b.GetGids()) {
		return false
	}
	same := func(x, y []*runtimeapi.IDMapping) bool {
		for i := range x {
			if x[i].GetHostId() != y[i].GetHostId() || x[i].GetContainerId() != y[i].GetContainerId() || x[i].GetLength() != y[i].GetLength() {
				return false
			}
		}
		return true
	}
	return same(a.GetUids(), b.GetUids()) && same(a.GetGids(), b.GetGids())
}
