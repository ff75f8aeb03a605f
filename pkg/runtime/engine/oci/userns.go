package oci

import (
	"fmt"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// userNamespace returns the path of the user namespace that the container joins ("" for none) and the host's ids of its
// root. A new one is refused: the root has to be mounted with its mapping before the runtime makes it.
func userNamespace(l *specs.Linux) (path string, uid, gid uint32, err error) {
	if l == nil {
		return "", 0, 0, nil
	}
	for _, n := range l.Namespaces {
		if n.Type != specs.UserNamespace {
			continue
		}
		if n.Path == "" {
			return "", 0, 0, fmt.Errorf("a new user namespace, where the pod's has to be joined by its path: %w", errdefs.ErrNotImplemented)
		}
		path = n.Path
	}
	if path == "" {
		return "", 0, 0, nil
	}
	uid, ok := hostID(l.UIDMappings)
	if !ok {
		return "", 0, 0, fmt.Errorf("linux.uidMappings don't map 0: %w", errdefs.ErrInvalidArgument)
	}
	gid, ok = hostID(l.GIDMappings)
	if !ok {
		return "", 0, 0, fmt.Errorf("linux.gidMappings don't map 0: %w", errdefs.ErrInvalidArgument)
	}
	return path, uid, gid, nil
}

func hostID(maps []specs.LinuxIDMapping) (uint32, bool) {
	for _, m := range maps {
		if m.ContainerID == 0 && m.Size > 0 {
			return m.HostID, true
		}
	}
	return 0, false
}
