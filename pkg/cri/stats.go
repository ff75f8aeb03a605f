package cri

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/cgroupdriver"
	"github.com/seed-9a14075a/cri-server/pkg/network"
	"github.com/seed-9a14075a/cri-server/pkg/runtime"
	"github.com/seed-9a14075a/cri-server/pkg/sandbox"
)

// ContainerStats tells the resource usage of one container.
func (s *Server) ContainerStats(_ context.Context, r *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	ctr, err := s.containers.Get(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: s.containers.Stats(ctr)}, nil
}

// ListContainerStats tells the resource usage of the running containers that the filter lets through.
func (s *Server) ListContainerStats(_ context.Context, r *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	f := r.GetFilter()
	resp := &runtimeapi.ListContainerStatsResponse{Stats: []*runtimeapi.ContainerStats{}}
	for _, ctr := range s.containers.List() {
		if ctr.State != runtime.Running || !matchID(f.GetId(), ctr.ID) || !matchID(f.GetPodSandboxId(), ctr.SandboxID) ||
			!matchLabels(f.GetLabelSelector(), ctr.Config.GetLabels()) {
			continue
		}
		resp.Stats = append(resp.Stats, s.containers.Stats(ctr))
	}
	return resp, nil
}

// PodSandboxStats tells the resource usage of one pod. An unknown id, also the empty one that kubelet probes with, is
// NotFound: Unimplemented would make kubelet give up on these calls.
func (s *Server) PodSandboxStats(_ context.Context, r *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	sb, err := s.sandboxes.Get(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if sb.State != sandbox.Ready {
		return nil, fmt.Errorf("sandbox %s is not ready, it uses nothing: %w", sb.ID, errdefs.ErrNotFound)
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: s.podStats(sb)}, nil
}

// ListPodSandboxStats tells the resource usage of the ready pods that the filter lets through.
func (s *Server) ListPodSandboxStats(_ context.Context, r *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	f := r.GetFilter()
	resp := &runtimeapi.ListPodSandboxStatsResponse{Stats: []*runtimeapi.PodSandboxStats{}}
	for _, sb := range s.sandboxes.List() {
		if sb.State != sandbox.Ready || !matchID(f.GetId(), sb.ID) || !matchLabels(f.GetLabelSelector(), sb.Config.GetLabels()) {
			continue
		}
		resp.Stats = append(resp.Stats, s.podStats(sb))
	}
	return resp, nil
}

// podStats sums up a pod: what its cgroup says where kubelet has made one, else pause and the containers.
func (s *Server) podStats(sb *sandbox.Sandbox) *runtimeapi.PodSandboxStats {
	linux := &runtimeapi.LinuxPodSandboxStats{}
	out := &runtimeapi.PodSandboxStats{Linux: linux, Attributes: &runtimeapi.PodSandboxAttributes{
		Id: sb.ID, Metadata: sandboxMetadata(sb), Labels: sb.Config.GetLabels(), Annotations: sb.Config.GetAnnotations(),
	}}
	var processes uint64
	parts := []*cgroupdriver.Stats{}
	if st, err := s.cgroups.Stats(sb.CgroupPath); err == nil {
		parts = append(parts, st)
	}
	for _, ctr := range s.containers.OfSandbox(sb.ID) {
		if ctr.State != runtime.Running {
			continue
		}
		linux.Containers = append(linux.Containers, s.containers.Stats(ctr))
		if st, err := s.cgroups.Stats(ctr.CgroupPath); err == nil {
			parts = append(parts, st)
		}
	}
	for _, st := range parts {
		if st.Pids != nil {
			processes += st.Pids.Current
		}
	}
	whole := sum(parts)
	if sb.CgroupParent != "" {
		if st, err := s.cgroups.Stats(sb.CgroupParent); err == nil {
			whole = st
		}
	}
	now := timestamp()
	if whole != nil {
		linux.Cpu, linux.Memory, linux.Io = runtime.CPU(whole), runtime.Memory(whole), runtime.IO(whole)
		if linux.Cpu != nil {
			linux.Cpu.UsageNanoCores = &runtimeapi.UInt64Value{Value: s.containers.NanoCores(sb.ID, whole)}
		}
	}
	linux.Process = &runtimeapi.ProcessUsage{Timestamp: now, ProcessCount: &runtimeapi.UInt64Value{Value: processes}}
	linux.Network = networkUsage(sb, now)
	return out
}

// sum adds up what can be added; nil for nothing.
func sum(parts []*cgroupdriver.Stats) *cgroupdriver.Stats {
	if len(parts) == 0 {
		return nil
	}
	total := &cgroupdriver.Stats{Time: parts[0].Time, CPU: &cgroupdriver.CPUStats{}, Memory: &cgroupdriver.MemoryStats{}}
	for _, p := range parts {
		if p.CPU != nil {
			total.CPU.Usage += p.CPU.Usage
		}
		if m := p.Memory; m != nil {
			total.Memory.Usage += m.Usage
			total.Memory.WorkingSet += m.WorkingSet
			total.Memory.RSS += m.RSS
			total.Memory.PageFaults += m.PageFaults
			total.Memory.MajorPageFaults += m.MajorPageFaults
		}
	}
	return total
}

// networkUsage reads the counters of the pod's interfaces; nil with the host's network.
func networkUsage(sb *sandbox.Sandbox, now int64) *runtimeapi.NetworkUsage {
	if sb.NetNS == "" || sb.Network == nil {
		return nil
	}
	counters, err := network.Counters(sb.NetNS)
	if err != nil {
		return nil // the pod is going down
	}
	u64 := func(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }
	u := &runtimeapi.NetworkUsage{Timestamp: now}
	for _, c := range counters {
		i := &runtimeapi.NetworkInterfaceUsage{
			Name: c.Name, RxBytes: u64(c.RxBytes), RxErrors: u64(c.RxErrors), TxBytes: u64(c.TxBytes), TxErrors: u64(c.TxErrors),
		}
		switch {
		case c.Name == sb.Network.Interface:
			u.DefaultInterface = i
		case c.Name != "lo":
			u.Interfaces = append(u.Interfaces, i)
		}
	}
	return u
}
