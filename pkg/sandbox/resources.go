package sandbox

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/operation"
)

// UpdateResources records what kubelet says that the pod as a whole may use. It changes no cgroup: the pod's is kubelet's,
// which calls before it writes it, and calls again with the old values if that fails. nil leaves a part as it was.
// ErrNotFound, ErrFailedPrecondition for a sandbox that is not ready. ctx's operation, if it has one, is told the stage.
func (s *Sandboxes) UpdateResources(ctx context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) error {
	sb, err := s.Get(id)
	if err != nil {
		return err
	}
	if sb.State == Creating {
		return fmt.Errorf("sandbox %s is still being created: %w", sb.ID, errdefs.ErrNotFound)
	}
	unlock, err := s.locks.Lock(ctx, sb.ID)
	if err != nil {
		return fmt.Errorf("sandbox %s is busy: %w", sb.ID, err)
	}
	defer unlock()
	if sb, err = s.Get(sb.ID); err != nil {
		return err
	}
	if sb.State != Ready {
		return fmt.Errorf("sandbox %s is not ready, its resources can't be changed: %w", sb.ID, errdefs.ErrFailedPrecondition)
	}
	operation.FromContext(ctx).Stage("record")
	_, err = s.change(sb.ID, func(n *Sandbox) {
		if overhead != nil {
			n.Overhead = overhead
		}
		if resources != nil {
			n.Resources = resources
		}
	})
	return err
}
