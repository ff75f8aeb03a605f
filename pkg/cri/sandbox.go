package cri

import (
	"context"
	"fmt"
	"iter"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/operation"
	"github.com/seed-9a14075a/cri-server/pkg/sandbox"
)

// RunPodSandbox creates and starts a pod sandbox.
func (s *Server) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	if err := validateSandbox(r.GetConfig()); err != nil {
		return nil, err
	}
	sb, err := s.sandboxes.Run(ctx, r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, fmt.Errorf("run pod sandbox %s: %w", sandbox.Key(r.GetConfig().GetMetadata()), err)
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: sb.ID}, nil
}

// StopPodSandbox stops the sandbox and everything in it. Idempotent.
func (s *Server) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	if r.GetPodSandboxId() == "" {
		return nil, invalid("pod_sandbox_id is empty")
	}
	return &runtimeapi.StopPodSandboxResponse{}, s.staged(ctx, "stop pod sandbox "+r.GetPodSandboxId(), func(ctx context.Context, _ *operation.Op) error {
		return s.stopSandbox(ctx, r.GetPodSandboxId())
	})
}

// stopSandbox is the one way a sandbox goes down: no new containers, no containers, no sandbox. ctx's operation, if it has one,
// is told the stages.
func (s *Server) stopSandbox(ctx context.Context, id string) error {
	sb, err := s.sandboxes.Get(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	op := operation.FromContext(ctx)
	op.Stage("record the stop")
	if err := s.sandboxes.Retire(sb.ID); err != nil {
		return err
	}
	op.Stage("containers")
	if err := s.containers.StopSandbox(ctx, sb.ID); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", sb.ID, err)
	}
	op.Stage("sandbox")
	return s.sandboxes.Stop(ctx, sb.ID)
}

// RemovePodSandbox removes the sandbox and everything in it, running or not. Idempotent.
func (s *Server) RemovePodSandbox(ctx context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	if r.GetPodSandboxId() == "" {
		return nil, invalid("pod_sandbox_id is empty")
	}
	return &runtimeapi.RemovePodSandboxResponse{}, s.staged(ctx, "remove pod sandbox "+r.GetPodSandboxId(), func(ctx context.Context, op *operation.Op) error {
		return s.removeSandbox(ctx, op, r.GetPodSandboxId())
	})
}

func (s *Server) removeSandbox(ctx context.Context, op *operation.Op, id string) error {
	sb, err := s.sandboxes.Get(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.stopSandbox(ctx, sb.ID); err != nil {
		return err
	}
	op.Stage("remove containers")
	if err := s.containers.RemoveSandbox(ctx, sb.ID); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", sb.ID, err)
	}
	op.Stage("remove sandbox")
	return s.sandboxes.Remove(ctx, sb.ID)
}

// PodSandboxStatus tells the state of one sandbox.
func (s *Server) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	now := s.events.clock.now() // before looking: see clock
	sb, err := s.sandboxes.Get(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if sb.State == sandbox.Creating {
		return nil, fmt.Errorf("sandbox %s is still being created: %w", sb.ID, errdefs.ErrNotFound)
	}
	resp := &runtimeapi.PodSandboxStatusResponse{
		Status: sandboxStatus(sb), ContainersStatuses: s.containerStatuses(sb.ID), Timestamp: now,
	}
	if r.GetVerbose() {
		if resp.Info, err = s.sandboxInfo(sb); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

func sandboxState(sb *sandbox.Sandbox) runtimeapi.PodSandboxState {
	if sb.State == sandbox.Ready {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

func sandboxMetadata(sb *sandbox.Sandbox) *runtimeapi.PodSandboxMetadata {
	if m := sb.Config.GetMetadata(); m != nil {
		return m
	}
	// A sandbox whose record can't be read must still be listed, and kubelet wants all of these.
	return &runtimeapi.PodSandboxMetadata{Name: "unreadable-" + sb.ID[:min(12, len(sb.ID))], Namespace: "unknown", Uid: sb.ID}
}

func sandboxStatus(sb *sandbox.Sandbox) *runtimeapi.PodSandboxStatus {
	st := &runtimeapi.PodSandboxStatus{
		Id: sb.ID, Metadata: sandboxMetadata(sb), State: sandboxState(sb), CreatedAt: nanos(sb.CreatedAt),
		Labels: sb.Config.GetLabels(), Annotations: sb.Config.GetAnnotations(), RuntimeHandler: sb.Handler,
		Network: &runtimeapi.PodSandboxNetworkStatus{},
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{
			Options: sb.Config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
		}},
	}
	if st.Linux.Namespaces.Options == nil {
		st.Linux.Namespaces.Options = &runtimeapi.NamespaceOption{}
	}
	if st.CreatedAt <= 0 {
		st.CreatedAt = 1 // kubelet refuses 0
	}
	if sb.Network != nil && !sb.HostNetwork() {
		for i, ip := range sb.Network.IPs {
			if i == 0 {
				st.Network.Ip = ip.String()
				continue
			}
			st.Network.AdditionalIps = append(st.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip.String()})
		}
	}
	return st
}

// ListPodSandbox lists the sandboxes that the filter lets through.
func (s *Server) ListPodSandbox(_ context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: collect(s.eachSandbox(r.GetFilter()))}, nil
}

func (s *Server) eachSandbox(f *runtimeapi.PodSandboxFilter) iter.Seq[*runtimeapi.PodSandbox] {
	return func(yield func(*runtimeapi.PodSandbox) bool) {
		for _, sb := range s.sandboxes.List() {
			if !matchID(f.GetId(), sb.ID) || !matchLabels(f.GetLabelSelector(), sb.Config.GetLabels()) ||
				f.GetState() != nil && f.GetState().GetState() != sandboxState(sb) {
				continue
			}
			if !yield(&runtimeapi.PodSandbox{
				Id: sb.ID, Metadata: sandboxMetadata(sb), State: sandboxState(sb), CreatedAt: max(1, nanos(sb.CreatedAt)),
				Labels: sb.Config.GetLabels(), Annotations: sb.Config.GetAnnotations(), RuntimeHandler: sb.Handler,
			}) {
				return
			}
		}
	}
}
