package cri

import (
	"context"
	"iter"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// batchBytes is about how large one message of a list's stream becomes. Clients take 16 MiB at most; far below that,
// neither side has to hold much at once. A single item that is larger goes alone.
const batchBytes = 1 << 20

// sendBatches sends every item once, in messages of up to batchBytes; none for no items. It ends early with ctx.
func sendBatches[T proto.Message](ctx context.Context, items iter.Seq[T], send func([]T) error) error {
	var batch []T
	size := 0
	for item := range items {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := proto.Size(item)
		n = protowire.SizeTag(1) + protowire.SizeBytes(n) // as an element of the message's only field
		if len(batch) > 0 && size+n > batchBytes {
			if err := send(batch); err != nil {
				return err
			}
			// Not reused: the transport may keep a message after Send (grpc.ServerStream).
			batch, size = nil, 0
		}
		batch, size = append(batch, item), size+n
	}
	if len(batch) == 0 {
		return ctx.Err()
	}
	return send(batch)
}

// collect is the whole list at once.
func collect[T any](items iter.Seq[T]) []T {
	list := []T{}
	for item := range items {
		list = append(list, item)
	}
	return list
}

// StreamPodSandboxes is ListPodSandbox in batches.
func (s *Server) StreamPodSandboxes(r *runtimeapi.StreamPodSandboxesRequest, stream runtimeapi.RuntimeService_StreamPodSandboxesServer) error {
	return sendBatches(stream.Context(), s.eachSandbox(r.GetFilter()), func(batch []*runtimeapi.PodSandbox) error {
		return stream.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: batch})
	})
}

// StreamContainers is ListContainers in batches.
func (s *Server) StreamContainers(r *runtimeapi.StreamContainersRequest, stream runtimeapi.RuntimeService_StreamContainersServer) error {
	return sendBatches(stream.Context(), s.eachContainer(r.GetFilter()), func(batch []*runtimeapi.Container) error {
		return stream.Send(&runtimeapi.StreamContainersResponse{Containers: batch})
	})
}

// StreamContainerStats is ListContainerStats in batches; each container is measured when its turn comes.
func (s *Server) StreamContainerStats(r *runtimeapi.StreamContainerStatsRequest, stream runtimeapi.RuntimeService_StreamContainerStatsServer) error {
	ctx := stream.Context()
	return sendBatches(ctx, s.eachContainerStats(ctx, r.GetFilter()), func(batch []*runtimeapi.ContainerStats) error {
		return stream.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: batch})
	})
}

// StreamPodSandboxStats is ListPodSandboxStats in batches; each pod is measured when its turn comes.
func (s *Server) StreamPodSandboxStats(r *runtimeapi.StreamPodSandboxStatsRequest, stream runtimeapi.RuntimeService_StreamPodSandboxStatsServer) error {
	ctx := stream.Context()
	return sendBatches(ctx, s.eachPodStats(ctx, r.GetFilter()), func(batch []*runtimeapi.PodSandboxStats) error {
		return stream.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: batch})
	})
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in batches; each pod is measured when its turn comes.
func (s *Server) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, stream runtimeapi.RuntimeService_StreamPodSandboxMetricsServer) error {
	ctx := stream.Context()
	return sendBatches(ctx, s.eachPodMetrics(ctx), func(batch []*runtimeapi.PodSandboxMetrics) error {
		return stream.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: batch})
	})
}

// StreamImages is ListImages in batches.
func (s *Server) StreamImages(r *runtimeapi.StreamImagesRequest, stream runtimeapi.ImageService_StreamImagesServer) error {
	images, err := s.filterImages(r.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(stream.Context(), images, func(batch []*runtimeapi.Image) error {
		return stream.Send(&runtimeapi.StreamImagesResponse{Images: batch})
	})
}
