package imagestore

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/registry"
)

// source is where an image's content comes from: a registry's repository, or an archive.
type source interface {
	// Manifest returns a manifest or index by digest, checked.
	Manifest(ctx context.Context, ref string, limit int64) (ocispec.Descriptor, []byte, error)
	// Blob streams desc.Size bytes, unchecked.
	Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
}

// endPatience is how long a caller whose time is over waits for the end of the pull that he leaves: less than what a server
// keeps of a caller's time for the answer.
const endPatience = 40 * time.Millisecond

// Pull implements Store.
func (s *Disk) Pull(ctx context.Context, ref string, auth *Auth) (*Image, error) {
	named, err := parseName(ref)
	if err != nil {
		return nil, fmt.Errorf("pull: %w", err)
	}
	creds := registry.Credentials{}
	if auth != nil {
		creds = registry.Credentials(*auth)
	}
	key := fmt.Sprintf("%s %x", named, sha256.Sum256(fmt.Appendf(nil, "%q", creds)))
	img, _, err := s.pulls.do(ctx, s.life, &s.running, key, func(ctx context.Context) (*Image, error) {
		return s.pull(ctx, named, creds)
	})
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", named, err)
	}
	return img, nil
}

func (s *Disk) pull(ctx context.Context, named reference.Named, creds registry.Credentials) (*Image, error) {
	start := time.Now()
	at := stageOf(ctx)
	at.at("manifest")
	repo, err := s.client.Repository(named, creds)
	if err != nil {
		return nil, err
	}
	top, body, err := repo.Manifest(ctx, object(named), s.cfg.Limits.Manifest)
	if err != nil {
		return nil, err
	}
	byDigest, err := reference.WithDigest(reference.TrimNamed(named), top.Digest)
	if err != nil {
		return nil, err
	}
	names := []string{byDigest.String()}
	if _, ok := named.(reference.Tagged); ok {
		names = append(names, named.String())
	}
	if err := step("image.pull.manifest"); err != nil {
		return nil, err
	}
	desc, m, err := s.choose(ctx, repo, top, body)
	if err != nil {
		return nil, err
	}
	at.at("config")
	img, err := s.store(ctx, repo, desc, m, names, false)
	if err != nil {
		return nil, err
	}
	s.log.Info("image store: image pulled", "image", img.ID, "ref", named.String(), "bytes", img.Size, "layers", len(m.manifest.Layers), "took", time.Since(start))
	return img, nil
}

// store brings an image's content in, its layers packed or unpacked, and publishes it under names.
func (s *Disk) store(ctx context.Context, src source, desc ocispec.Descriptor, m platformManifest, names []string, packed bool) (*Image, error) {
	release := s.hold(append(digestsOf(m.manifest), desc.Digest)...)
	defer release()
	r, releaseLayers, err := s.assemble(ctx, src, desc, m, packed)
	if err != nil {
		return nil, err
	}
	defer releaseLayers()
	stageOf(ctx).at("table of images")
	return s.publish(r, names)
}

func digestsOf(m ocispec.Manifest) []digest.Digest {
	out := []digest.Digest{m.Config.Digest}
	for _, l := range m.Layers {
		out = append(out, l.Digest)
	}
	return out
}

const (
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeign  = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	schema1        = "application/vnd.docker.distribution.manifest.v1+"
)

// checkLayerType refuses what is no file system layer. How it is compressed its first bytes say.
func checkLayerType(mt string) error {
	base, _, _ := strings.Cut(mt, "+")
	base = strings.TrimSuffix(strings.TrimSuffix(base, ".gzip"), ".zstd")
	switch base {
	case ocispec.MediaTypeImageLayer, dockerLayer, dockerForeign,
		"application/vnd.oci.image.layer.nondistributable.v1.tar":
	default:
		return fmt.Errorf("media type %q is no file system layer: %w", mt, errdefs.ErrNotImplemented)
	}
	for suffix := range strings.SplitSeq(strings.TrimPrefix(mt, base), "+") {
		switch strings.TrimPrefix(suffix, ".") {
		case "", "gzip", "zstd":
		case "encrypted":
			return fmt.Errorf("media type %q: encrypted layers: %w", mt, errdefs.ErrNotImplemented)
		default:
			return fmt.Errorf("media type %q: compression %q: %w", mt, suffix, errdefs.ErrNotImplemented)
		}
	}
	return nil
}
