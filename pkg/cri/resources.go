package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/inspect"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
)

// UpdatePodSandboxResources takes note of a pod's new size. kubelet takes any error but Unimplemented for a refusal of
// the resize, so only what makes no sense is refused.
func (s *Server) UpdatePodSandboxResources(ctx context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	for _, part := range []struct {
		name string
		res  *runtimeapi.LinuxContainerResources
	}{{"overhead", r.GetOverhead()}, {"resources", r.GetResources()}} {
		if part.res.GetCpuPeriod() < 0 || part.res.GetCpuShares() < 0 {
			return nil, invalid("%s: cpu_period %d and cpu_shares %d must not be negative", part.name, part.res.GetCpuPeriod(), part.res.GetCpuShares())
		}
	}
	key := uniqueKey("update pod sandbox", r.GetPodSandboxId()) // each has limits of its own
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, s.staged(ctx, key, func(ctx context.Context, _ *operation.Op) error {
		return s.sandboxes.UpdateResources(ctx, r.GetPodSandboxId(), r.GetOverhead(), r.GetResources())
	})
}

// podResources shows resources of a pod; nil for none.
func podResources(r *runtimeapi.LinuxContainerResources) *inspect.Resources {
	if r == nil {
		return nil
	}
	return &inspect.Resources{
		CPUPeriod: r.GetCpuPeriod(), CPUQuota: r.GetCpuQuota(), CPUShares: r.GetCpuShares(), Memory: r.GetMemoryLimitInBytes(),
		Unified: r.GetUnified(),
	}
}
