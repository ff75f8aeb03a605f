package cri

import (
	"context"
	"fmt"
	"iter"
	"math"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
	"github.com/seed-9a14075a/cri-server/pkg/runtime"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/spec"
	"github.com/seed-9a14075a/cri-server/pkg/sandbox"
)

// CreateContainer creates a container in a ready sandbox.
func (s *Server) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	if err := validateContainer(r.GetConfig()); err != nil {
		return nil, err
	}
	sb, err := s.sandboxes.Get(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if sb.State != sandbox.Ready {
		return nil, fmt.Errorf("sandbox %s is not ready: %w", sb.ID, errdefs.ErrFailedPrecondition)
	}
	if r.GetConfig().GetLinux().GetSecurityContext().GetPrivileged() && !sb.Config.GetLinux().GetSecurityContext().GetPrivileged() {
		return nil, invalid("a privileged container in sandbox %s, which is not privileged", sb.ID)
	}
	// sb.Config, not the request's sandbox_config: kubelet makes that anew for each call.
	ctr, err := s.containers.Create(ctx, s.pod(sb), r.GetConfig())
	if err != nil {
		return nil, fmt.Errorf("create container %q in sandbox %s: %w", r.GetConfig().GetMetadata().GetName(), sb.ID, err)
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: ctr.ID}, nil
}

func (s *Server) pod(sb *sandbox.Sandbox) *runtime.Pod {
	return &runtime.Pod{
		ID: sb.ID, Config: sb.Config, Handler: sb.Handler, Pid: sb.Pid, NetNS: sb.NetNS, CgroupParent: sb.CgroupParent,
		Hostname: sb.Files.Hostname, Hosts: sb.Files.Hosts, ResolvConf: sb.Files.ResolvConf, Shm: sb.Files.Shm,
		UserNamespace: sb.UserNamespace(),
		Ready: func() bool {
			now, err := s.sandboxes.Get(sb.ID)
			return err == nil && now.State == sandbox.Ready
		},
	}
}

// StartContainer runs a created container's program.
func (s *Server) StartContainer(ctx context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	return &runtimeapi.StartContainerResponse{}, s.containers.Start(ctx, r.GetContainerId())
}

// StopContainer stops a container, with timeout seconds between its stop signal and SIGKILL. Idempotent.
func (s *Server) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	if r.GetContainerId() == "" {
		return nil, invalid("container_id is empty")
	}
	grace := timeout(r.GetTimeout())
	return &runtimeapi.StopContainerResponse{}, s.containers.Stop(ctx, r.GetContainerId(), grace)
}

// RemoveContainer removes a container, running or not. Idempotent.
func (s *Server) RemoveContainer(ctx context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	if r.GetContainerId() == "" {
		return nil, invalid("container_id is empty")
	}
	return &runtimeapi.RemoveContainerResponse{}, s.staged(ctx, "remove container "+r.GetContainerId(), func(ctx context.Context, _ *operation.Op) error {
		return s.containers.Remove(ctx, r.GetContainerId())
	})
}

// ListContainers lists the containers that the filter lets through.
func (s *Server) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: collect(s.eachContainer(r.GetFilter()))}, nil
}

func (s *Server) eachContainer(f *runtimeapi.ContainerFilter) iter.Seq[*runtimeapi.Container] {
	return func(yield func(*runtimeapi.Container) bool) {
		images := s.imagesOnce()
		for _, ctr := range s.containers.List() {
			if !matchID(f.GetId(), ctr.ID) || !matchID(f.GetPodSandboxId(), ctr.SandboxID) ||
				!matchLabels(f.GetLabelSelector(), ctr.Config.GetLabels()) ||
				f.GetState() != nil && f.GetState().GetState() != containerState(ctr) {
				continue
			}
			image, ref := imageNames(ctr, images)
			if !yield(&runtimeapi.Container{
				Id: ctr.ID, PodSandboxId: ctr.SandboxID, Metadata: containerMetadata(ctr), Image: image, ImageRef: ref,
				ImageId: ctr.ImageID, State: containerState(ctr), CreatedAt: max(1, nanos(ctr.CreatedAt)),
				Labels: ctr.Config.GetLabels(), Annotations: ctr.Config.GetAnnotations(),
			}) {
				return
			}
		}
	}
}

// timeout is a CRI timeout in seconds; a negative one is none, and what is beyond a Duration is the longest one.
func timeout(n int64) time.Duration {
	return time.Duration(min(max(n, 0), int64(math.MaxInt64/time.Second))) * time.Second
}

// unreadable stands for what a record that can't be read would tell.
const unreadable = "unreadable"

func containerMetadata(ctr *runtime.Container) *runtimeapi.ContainerMetadata {
	if m := ctr.Config.GetMetadata(); m != nil {
		return m
	}
	return &runtimeapi.ContainerMetadata{Name: unreadable + "-" + ctr.ID[:min(12, len(ctr.ID))]}
}

func containerState(ctr *runtime.Container) runtimeapi.ContainerState {
	switch ctr.State {
	case runtime.Created:
		return runtimeapi.ContainerState_CONTAINER_CREATED
	case runtime.Running:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	case runtime.Exited:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	default:
		return runtimeapi.ContainerState_CONTAINER_UNKNOWN
	}
}

// imagesOnce finds images for one list of containers, most of which are of few.
func (s *Server) imagesOnce() func(id string) (*imagestore.Image, error) {
	type found struct {
		image *imagestore.Image
		err   error
	}
	known := map[string]found{}
	return func(id string) (*imagestore.Image, error) {
		f, ok := known[id]
		if !ok {
			f.image, f.err = s.images.Get(id)
			known[id] = f
		}
		return f.image, f.err
	}
}

// imageNames are the user's name of a container's image and its repo digest, which kubelet shows as imageID.
func imageNames(ctr *runtime.Container, get func(id string) (*imagestore.Image, error)) (*runtimeapi.ImageSpec, string) {
	if ctr.Broken != "" { // kubelet refuses a status without image and reference, and with it the whole pod's
		return &runtimeapi.ImageSpec{Image: unreadable}, unreadable
	}
	name := &runtimeapi.ImageSpec{Image: ctr.Config.GetImage().GetImage(), UserSpecifiedImage: ctr.Config.GetImage().GetUserSpecifiedImage()}
	ref := ctr.ImageID
	if image, err := get(ctr.ImageID); err == nil && ctr.ImageID != "" {
		if len(image.RepoDigests) > 0 {
			ref = image.RepoDigests[0]
		}
		if name.Image == ctr.ImageID && len(image.RepoTags) > 0 {
			name.Image = image.RepoTags[0]
		}
	}
	if u := name.UserSpecifiedImage; u != "" {
		name.Image = u
	}
	return name, ref
}

// ContainerStatus tells the state of one container.
func (s *Server) ContainerStatus(_ context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	ctr, err := s.containers.Get(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if ctr.State == runtime.Creating {
		return nil, fmt.Errorf("container %s is still being created: %w", ctr.ID, errdefs.ErrNotFound)
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: s.containerStatus(ctr)}
	if r.GetVerbose() {
		if resp.Info, err = s.containerInfo(ctr); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

func (s *Server) containerStatus(ctr *runtime.Container) *runtimeapi.ContainerStatus {
	image, ref := imageNames(ctr, s.images.Get)
	st := &runtimeapi.ContainerStatus{
		Id: ctr.ID, Metadata: containerMetadata(ctr), State: containerState(ctr), CreatedAt: max(1, nanos(ctr.CreatedAt)),
		StartedAt: nanos(ctr.StartedAt), FinishedAt: nanos(ctr.FinishedAt), ExitCode: ctr.ExitCode, Image: image,
		ImageRef: ref, ImageId: ctr.ImageID, Reason: ctr.Reason, Message: ctr.Message, Labels: ctr.Config.GetLabels(),
		Annotations: ctr.Config.GetAnnotations(), Mounts: ctr.Config.GetMounts(), LogPath: ctr.LogPath,
		StopSignal: spec.SignalCRI(ctr.StopSignal),
	}
	if ctr.Broken != "" {
		st.Message = "the container's record can't be read: " + ctr.Broken
	}
	if ctr.Resources != nil {
		st.Resources = &runtimeapi.ContainerResources{Linux: ctr.Resources}
	}
	if p := ctr.Process; p != nil {
		u := &runtimeapi.LinuxContainerUser{Uid: int64(p.User.UID), Gid: int64(p.User.GID)}
		for _, g := range p.User.AdditionalGids {
			u.SupplementalGroups = append(u.SupplementalGroups, int64(g))
		}
		st.User = &runtimeapi.ContainerUser{Linux: u}
	}
	return st
}

// UpdateContainerResources changes a container's limits; zero and empty fields stay as they are.
func (s *Server) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	key := uniqueKey("update container", r.GetContainerId()) // each has limits of its own
	return &runtimeapi.UpdateContainerResourcesResponse{}, s.staged(ctx, key, func(ctx context.Context, _ *operation.Op) error {
		return s.containers.Update(ctx, r.GetContainerId(), r.GetLinux())
	})
}

// ReopenContainerLog opens a running container's log anew after it was renamed.
func (s *Server) ReopenContainerLog(ctx context.Context, r *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	return &runtimeapi.ReopenContainerLogResponse{}, s.containers.ReopenLog(ctx, r.GetContainerId())
}

// ExecSync runs a program in a container to its end; timeout is in seconds, 0 means none.
func (s *Server) ExecSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	if r.GetTimeout() < 0 {
		return nil, invalid("timeout is negative")
	}
	res, err := s.containers.ExecSync(ctx, r.GetContainerId(), r.GetCmd(), timeout(r.GetTimeout()))
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecSyncResponse{Stdout: res.Stdout, Stderr: res.Stderr, ExitCode: res.ExitCode}, nil
}
