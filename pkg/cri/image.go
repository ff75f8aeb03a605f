package cri

import (
	"context"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
)

// PullImage pulls an image. It always asks the registry, also for an image that is there: kubelet proves a pod's
// credentials that way.
func (s *Server) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	ref := r.GetImage().GetImage()
	if ref == "" {
		return nil, invalid("image is empty")
	}
	if _, err := s.handlers.Resolve(r.GetImage().GetRuntimeHandler()); err != nil {
		return nil, err
	}
	var auth *imagestore.Auth
	if a := r.GetAuth(); a != nil {
		auth = &imagestore.Auth{
			Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(), ServerAddress: a.GetServerAddress(),
			IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
		}
	}
	image, err := s.images.Pull(ctx, ref, auth)
	if err != nil {
		if errdefs.IsUnavailable(err) {
			return nil, fmt.Errorf("%w: pull %q: %w", crierrors.ErrRegistryUnavailable, ref, err)
		}
		return nil, fmt.Errorf("pull %q: %w", ref, err)
	}
	return &runtimeapi.PullImageResponse{ImageRef: image.ID}, nil
}

// ListImages lists the images that the filter lets through.
func (s *Server) ListImages(_ context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	images, err := s.filterImages(r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListImagesResponse{Images: collect(images)}, nil
}

// filterImages are all images, or the one that the filter names.
func (s *Server) filterImages(f *runtimeapi.ImageFilter) (iter.Seq[*runtimeapi.Image], error) {
	var list []*imagestore.Image
	if name := f.GetImage().GetImage(); name == "" {
		list = s.images.List()
	} else if image, err := s.images.Get(name); err == nil {
		list = append(list, image)
	} else if !errdefs.IsNotFound(err) {
		return nil, err
	}
	return func(yield func(*runtimeapi.Image) bool) {
		for _, image := range list {
			if !yield(criImage(image)) {
				return
			}
		}
	}, nil
}

func criImage(i *imagestore.Image) *runtimeapi.Image {
	out := &runtimeapi.Image{
		Id: i.ID, RepoTags: i.RepoTags, RepoDigests: i.RepoDigests, Size: i.Size, Pinned: i.Pinned,
		Spec: &runtimeapi.ImageSpec{Image: i.ID},
	}
	user, _, _ := strings.Cut(i.Config.Config.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		out.Uid = &runtimeapi.Int64Value{Value: uid}
	} else {
		out.Username = user
	}
	return out
}

// ImageStatus tells of one image; an unknown one is no error but an empty answer.
func (s *Server) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	if r.GetImage().GetImage() == "" {
		return nil, invalid("image is empty")
	}
	image, err := s.images.Get(r.GetImage().GetImage())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ImageStatusResponse{Image: criImage(image)}
	if r.GetVerbose() {
		resp.Info, err = infoJSON(map[string]any{"info": map[string]any{
			"imageSpec": image.Config, "manifest": image.Manifest, "pulledAt": image.PulledAt,
		}})
	}
	return resp, err
}

// RemoveImage removes an image with all its names. Idempotent.
func (s *Server) RemoveImage(ctx context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	if r.GetImage().GetImage() == "" {
		return nil, invalid("image is empty")
	}
	image, err := s.images.Get(r.GetImage().GetImage())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.RemoveImageResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	// One that was pulled again while the former is being removed is another.
	key := fmt.Sprintf("remove image %s, pulled %s", image.ID, image.PulledAt.Format(time.RFC3339Nano))
	return &runtimeapi.RemoveImageResponse{}, s.staged(ctx, key, func(ctx context.Context, op *operation.Op) error {
		op.Stage("image store")
		return s.images.Remove(ctx, image.ID)
	})
}

// ImageFsInfo tells how much the store uses.
func (s *Server) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	u := s.images.Usage()
	fs := &runtimeapi.FilesystemUsage{
		Timestamp: timestamp(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: u.Mountpoint},
		UsedBytes: &runtimeapi.UInt64Value{Value: u.Bytes}, InodesUsed: &runtimeapi.UInt64Value{Value: u.Inodes},
	}
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems: []*runtimeapi.FilesystemUsage{fs}, ContainerFilesystems: []*runtimeapi.FilesystemUsage{fs},
	}, nil
}
