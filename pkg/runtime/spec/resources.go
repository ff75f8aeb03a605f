package spec

import (
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func setResources(in *Input, s *specs.Spec) error {
	r, err := Resources(in.Host, in.Container.GetLinux().GetResources())
	if err != nil {
		return err
	}
	s.Linux.Resources = r
	return nil
}

// Resources translates CRI resources, for CreateContainer and UpdateContainerResources alike. Zero and empty fields
// stay unset. oom_score_adj is not among them: it belongs to the process.
func Resources(h *Host, r *runtimeapi.LinuxContainerResources) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	if r == nil {
		return out, nil
	}
	if r.GetCpuPeriod() < 0 || r.GetCpuShares() < 0 {
		return nil, invalid("cpu_period %d and cpu_shares %d must not be negative", r.GetCpuPeriod(), r.GetCpuShares())
	}
	cpu := &specs.LinuxCPU{
		Shares: set(uint64(r.GetCpuShares())), Period: set(uint64(r.GetCpuPeriod())), Quota: set(r.GetCpuQuota()),
		Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems(),
	}
	if *cpu != (specs.LinuxCPU{}) {
		out.CPU = cpu
	}
	// Without a swap limit of its own a container must not swap: swap here is memory+swap as in OCI, so equal limits
	// mean none. Unified memory.swap.max, which the kubelet sends on v2, is written after it and wins.
	memory := &specs.LinuxMemory{Limit: set(r.GetMemoryLimitInBytes()), Swap: set(r.GetMemorySwapLimitInBytes())}
	if memory.Swap == nil {
		memory.Swap = memory.Limit
	}
	if !h.Swap {
		memory.Swap = nil
	}
	if memory.Limit != nil || memory.Swap != nil {
		out.Memory = memory
	}
	for _, l := range r.GetHugepageLimits() {
		if slices.Contains(h.Hugetlb, l.GetPageSize()) {
			out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: l.GetPageSize(), Limit: l.GetLimit()})
		} else if l.GetLimit() != 0 {
			// The kubelet sends 0 for every page size it knows.
			return nil, fmt.Errorf("hugepage limit of %d for page size %q: the hugetlb controller does not have it on this node: %w",
				l.GetLimit(), l.GetPageSize(), errdefs.ErrNotImplemented)
		}
	}
	if len(r.GetUnified()) > 0 {
		if h.CgroupVersion != 2 {
			return nil, fmt.Errorf("unified resources need cgroup v2, this node has v1: %w", errdefs.ErrNotImplemented)
		}
		out.Unified = maps.Clone(r.GetUnified())
	}
	return out, nil
}

func set[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}
