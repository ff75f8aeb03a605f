package oci

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// userNamespace returns the container's entry for a user namespace (nil for none) and the host's ids of its root.
func userNamespace(l *specs.Linux) (ns *specs.LinuxNamespace, uid, gid uint32, err error) {
	if l == nil {
		return nil, 0, 0, nil
	}
	i := slices.IndexFunc(l.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace })
	if i < 0 {
		return nil, 0, 0, nil
	}
	uid, ok := hostID(l.UIDMappings)
	if !ok {
		return nil, 0, 0, fmt.Errorf("linux.uidMappings don't map 0: %w", errdefs.ErrInvalidArgument)
	}
	gid, ok = hostID(l.GIDMappings)
	if !ok {
		return nil, 0, 0, fmt.Errorf("linux.gidMappings don't map 0: %w", errdefs.ErrInvalidArgument)
	}
	return &l.Namespaces[i], uid, gid, nil
}

// makeUserNS makes the user namespace where a new one is asked for, and returns cfg with its path: the root has to be
// mounted with the namespace's mapping before the runtime would make it. Until done is called the path is valid.
func (e *Engine) makeUserNS(ctx context.Context, cfg *engine.Config) (_ *engine.Config, done func(), err error) {
	ns, _, _, err := userNamespace(cfg.Spec.Linux)
	if err != nil || ns == nil || ns.Path != "" {
		return cfg, func() {}, err
	}
	if e.userNS == nil {
		return nil, nil, fmt.Errorf("a new user namespace: %w", errdefs.ErrNotImplemented)
	}
	path, release, err := e.userNS(ctx, cfg.Spec.Linux.UIDMappings, cfg.Spec.Linux.GIDMappings)
	if err != nil {
		return nil, nil, err
	}
	joins, spec, linux := *cfg, *cfg.Spec, *cfg.Spec.Linux
	linux.Namespaces = slices.Clone(linux.Namespaces)
	for i := range linux.Namespaces {
		if linux.Namespaces[i].Type == specs.UserNamespace {
			linux.Namespaces[i].Path = path
		}
	}
	spec.Linux, joins.Spec = &linux, &spec
	return &joins, release, nil
}

func hostID(maps []specs.LinuxIDMapping) (uint32, bool) {
	for _, m := range maps {
		if m.ContainerID == 0 && m.Size > 0 {
			return m.HostID, true
		}
	}
	return 0, false
}
