package cri

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/runtime"
	"github.com/seed-9a14075a/cri-server/pkg/sandbox"
	"github.com/seed-9a14075a/cri-server/pkg/streaming"
)

// Exec prepares a session that runs a program in a container and returns its URL.
func (s *Server) Exec(_ context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	ctr, err := s.running(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	r.ContainerId = ctr.ID
	url, err := s.streaming.ExecURL(r)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecResponse{Url: url}, nil
}

// Attach prepares a session connected to a container's program and returns its URL.
func (s *Server) Attach(_ context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	ctr, err := s.running(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	r.ContainerId = ctr.ID
	url, err := s.streaming.AttachURL(r)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.AttachResponse{Url: url}, nil
}

func (s *Server) running(id string) (*runtime.Container, error) {
	ctr, err := s.containers.Get(id)
	if err != nil {
		return nil, err
	}
	if ctr.State != runtime.Running {
		return nil, fmt.Errorf("container %s is %s, not running: %w", ctr.ID, ctr.State, errdefs.ErrFailedPrecondition)
	}
	return ctr, nil
}

// PortForward prepares a session that reaches ports of a pod and returns its URL.
func (s *Server) PortForward(_ context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	sb, err := s.sandboxes.Get(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if sb.State != sandbox.Ready {
		return nil, fmt.Errorf("sandbox %s is not ready: %w", sb.ID, errdefs.ErrFailedPrecondition)
	}
	r.PodSandboxId = sb.ID
	url, err := s.streaming.PortForwardURL(r)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PortForwardResponse{Url: url}, nil
}

// streams is the streaming server's way to containers and pods.
type streams struct{ s *Server }

// Exec runs a program with the client's streams and returns its exit code.
func (t streams) Exec(ctx context.Context, id string, cmd []string, st streaming.Streams) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return t.s.containers.Exec(ctx, id, cmd, clientStreams(ctx, st))
}

// Attach connects the client's streams to a container's program.
func (t streams) Attach(ctx context.Context, id string, st streaming.Streams) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return t.s.containers.Attach(ctx, id, clientStreams(ctx, st))
}

// clientStreams wraps the client's streams; sizes are passed on until ctx ends.
func clientStreams(ctx context.Context, c streaming.Streams) runtime.Streams {
	sizes := make(chan runtime.Size)
	go func() {
		defer close(sizes)
		for {
			select {
			case size, ok := <-c.Resize:
				if !ok {
					return
				}
				select {
				case sizes <- runtime.Size{Width: size.Width, Height: size.Height}:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return runtime.Streams{Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr, TTY: c.TTY, Resize: sizes}
}

// PortForward copies between the client and a port of the pod.
func (t streams) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	sb, err := t.s.sandboxes.Get(id)
	if err != nil {
		return err
	}
	if sb.State != sandbox.Ready {
		return fmt.Errorf("sandbox %s is not ready: %w", sb.ID, errdefs.ErrFailedPrecondition)
	}
	return sandbox.Forward(ctx, sb, port, stream)
}
