package cri

import (
	"context"
	"fmt"
	"iter"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/cgroupdriver"
	"github.com/seed-9a14075a/cri-server/pkg/network"
	"github.com/seed-9a14075a/cri-server/pkg/runtime"
	"github.com/seed-9a14075a/cri-server/pkg/sandbox"
)

// ContainerStats tells the resource usage of one container.
func (s *Server) ContainerStats(ctx context.Context, r *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	ctr, err := s.containers.Get(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if ctr.State == runtime.Creating {
		return nil, fmt.Errorf("container %s is still being created: %w", ctr.ID, errdefs.ErrNotFound)
	}
	s.containers.MeasureLayers(ctx, ctr)
	stats, _ := s.containers.Stats(ctr)
	return &runtimeapi.ContainerStatsResponse{Stats: stats}, nil
}

// ListContainerStats tells the resource usage of the running containers that the filter lets through.
func (s *Server) ListContainerStats(ctx context.Context, r *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	list := collect(s.eachContainerStats(ctx, r.GetFilter()))
	return &runtimeapi.ListContainerStatsResponse{Stats: list}, ctx.Err()
}

func (s *Server) eachContainerStats(ctx context.Context, f *runtimeapi.ContainerStatsFilter) iter.Seq[*runtimeapi.ContainerStats] {
	return func(yield func(*runtimeapi.ContainerStats) bool) {
		var list []*runtime.Container
		for _, ctr := range s.containers.List() {
			if ctr.State == runtime.Running && matchID(f.GetId(), ctr.ID) && matchID(f.GetPodSandboxId(), ctr.SandboxID) &&
				matchLabels(f.GetLabelSelector(), ctr.Config.GetLabels()) {
				list = append(list, ctr)
			}
		}
		s.containers.MeasureLayers(ctx, list...)
		for stats := range measured(list, func(ctr *runtime.Container) *runtimeapi.ContainerStats {
			stats, _ := s.containers.Stats(ctr)
			return stats
		}) {
			if ctx.Err() != nil || !yield(stats) {
				return
			}
		}
	}
}

// PodSandboxStats tells the resource usage of one pod. An unknown id, also the empty one that kubelet probes with, is
// NotFound: Unimplemented would make kubelet give up on these calls.
func (s *Server) PodSandboxStats(ctx context.Context, r *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	sb, err := s.sandboxes.Get(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if sb.State != sandbox.Ready {
		return nil, fmt.Errorf("sandbox %s is not ready, it uses nothing: %w", sb.ID, errdefs.ErrNotFound)
	}
	running := runningIn(s.containers.OfSandbox(sb.ID))
	s.containers.MeasureLayers(ctx, running...)
	return &runtimeapi.PodSandboxStatsResponse{Stats: s.podStats(sb, running)}, nil
}

// ListPodSandboxStats tells the resource usage of the ready pods that the filter lets through.
func (s *Server) ListPodSandboxStats(ctx context.Context, r *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	list := collect(s.eachPodStats(ctx, r.GetFilter()))
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: list}, ctx.Err()
}

func (s *Server) eachPodStats(ctx context.Context, f *runtimeapi.PodSandboxStatsFilter) iter.Seq[*runtimeapi.PodSandboxStats] {
	return func(yield func(*runtimeapi.PodSandboxStats) bool) {
		running := bySandbox(runningIn(s.containers.List()))
		var pods []*sandbox.Sandbox
		var all []*runtime.Container
		for _, sb := range s.sandboxes.List() {
			if sb.State == sandbox.Ready && matchID(f.GetId(), sb.ID) && matchLabels(f.GetLabelSelector(), sb.Config.GetLabels()) {
				pods = append(pods, sb)
				all = append(all, running[sb.ID]...)
			}
		}
		s.containers.MeasureLayers(ctx, all...)
		for stats := range measured(pods, func(sb *sandbox.Sandbox) *runtimeapi.PodSandboxStats {
			return s.podStats(sb, running[sb.ID])
		}) {
			if ctx.Err() != nil || !yield(stats) {
				return
			}
		}
	}
}

func bySandbox(list []*runtime.Container) map[string][]*runtime.Container {
	m := map[string][]*runtime.Container{}
	for _, ctr := range list {
		m[ctr.SandboxID] = append(m[ctr.SandboxID], ctr)
	}
	return m
}

func runningIn(list []*runtime.Container) []*runtime.Container {
	var running []*runtime.Container
	for _, ctr := range list {
		if ctr.State == runtime.Running {
			running = append(running, ctr)
		}
	}
	return running
}

// podStats sums up a pod: what its cgroup says where kubelet has made one, else pause and the containers. Linux is never
// nil: kubelet 1.36 and 1.37 don't look.
func (s *Server) podStats(sb *sandbox.Sandbox, running []*runtime.Container) *runtimeapi.PodSandboxStats {
	linux := &runtimeapi.LinuxPodSandboxStats{}
	out := &runtimeapi.PodSandboxStats{Linux: linux, Attributes: &runtimeapi.PodSandboxAttributes{
		Id: sb.ID, Metadata: sandboxMetadata(sb), Labels: sb.Config.GetLabels(), Annotations: sb.Config.GetAnnotations(),
	}}
	var parts []*cgroupdriver.Stats
	for _, ctr := range running {
		stats, read := s.containers.Stats(ctr)
		linux.Containers = append(linux.Containers, stats)
		if read != nil {
			parts = append(parts, read)
		}
	}
	whole, tasks := s.podUsage(sb, running, parts)
	now := timestamp()
	linux.Network = networkUsage(sb, now)
	linux.Process = &runtimeapi.ProcessUsage{Timestamp: now, ProcessCount: &runtimeapi.UInt64Value{Value: tasks}}
	if whole == nil {
		return out // the pod is going down
	}
	linux.Cpu, linux.Memory, linux.Io = runtime.CPU(whole), runtime.Memory(whole), runtime.IO(whole)
	if linux.Cpu != nil {
		linux.Cpu.UsageNanoCores = &runtimeapi.UInt64Value{Value: s.containers.NanoCores(sb.ID, sb.CreatedAt, whole)}
	}
	return out
}

// podUsage reads the pod's cgroup; where it has none of its own it adds pause's up to parts, which are its containers'. The
// usage is nil for nothing.
func (s *Server) podUsage(sb *sandbox.Sandbox, running []*runtime.Container, parts []*cgroupdriver.Stats) (*cgroupdriver.Stats, uint64) {
	if sb.CgroupParent != "" {
		if whole, err := s.cgroups.Usage(sb.CgroupParent); err == nil {
			tasks, _ := s.cgroups.Tasks(sb.CgroupParent)
			return whole, tasks
		}
	}
	if read, err := s.cgroups.Usage(sb.CgroupPath); err == nil {
		parts = append(parts, read)
	}
	tasks, _ := s.cgroups.Tasks(sb.CgroupPath)
	for _, ctr := range running {
		n, _ := s.cgroups.Tasks(ctr.CgroupPath) // an error: it has ended this moment
		tasks += n
	}
	return sum(parts), tasks
}

// sum adds up what can be added; nil for nothing. Pressure can't be.
func sum(parts []*cgroupdriver.Stats) *cgroupdriver.Stats {
	if len(parts) == 0 {
		return nil
	}
	total := &cgroupdriver.Stats{
		Time: parts[0].Time, CPU: &cgroupdriver.CPUStats{}, Memory: &cgroupdriver.MemoryStats{},
	}
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
	counters, err := network.Counters(sb.NetNS, sb.Pid)
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
