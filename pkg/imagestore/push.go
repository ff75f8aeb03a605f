package imagestore

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/registry"
)

// Push uploads the image that has the name ref, a tag, to that name's registry. Blobs that the registry has are not sent.
// ErrFailedPrecondition for an image whose layer blobs were discarded.
func (s *Disk) Push(ctx context.Context, ref string, auth *Auth) error {
	named, err := parseName(ref)
	if err != nil {
		return fmt.Errorf("push: %w", err)
	}
	tagged, ok := named.(reference.Tagged)
	if !ok {
		return fmt.Errorf("push %s: name a tag: %w", ref, errdefs.ErrInvalidArgument)
	}
	e, release, err := s.exported(ref)
	if err != nil {
		return fmt.Errorf("push: %w", err)
	}
	defer release()
	var creds registry.Credentials
	if auth != nil {
		creds = registry.Credentials(*auth)
	}
	repo, err := s.client.Repository(named, creds)
	if err != nil {
		return fmt.Errorf("push: %w", err)
	}
	body, err := s.readBlob(e.Descriptor)
	if err != nil {
		return fmt.Errorf("push: %w", err)
	}
	for _, d := range append([]ocispec.Descriptor{e.Manifest.Config}, e.Manifest.Layers...) {
		open := func() (io.ReadCloser, error) { return os.Open(s.blobPath(d.Digest)) }
		if err := repo.PushBlob(ctx, d, open); err != nil {
			return err
		}
	}
	mt := e.Descriptor.MediaType
	if mt == "" {
		mt = ocispec.MediaTypeImageManifest
	}
	return repo.PushManifest(ctx, tagged.Tag(), mt, body)
}
