package imagestore

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// platformManifest is a manifest and the bytes its digest is of.
type platformManifest struct {
	manifest ocispec.Manifest
	bytes    []byte
}

// anyManifest is what tells the kinds of documents apart, whatever media type they were sent with.
type anyManifest struct {
	specs.Versioned
	MediaType string               `json:"mediaType"`
	Manifests []ocispec.Descriptor `json:"manifests"`
	Config    *ocispec.Descriptor  `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
	FSLayers  []json.RawMessage    `json:"fsLayers"`
}

// choose follows indexes from body down to the manifest for the store's platform.
func (s *Disk) choose(ctx context.Context, src source, desc ocispec.Descriptor, body []byte) (ocispec.Descriptor, platformManifest, error) {
	for depth := 0; ; depth++ {
		var any anyManifest
		if err := json.Unmarshal(body, &any); err != nil {
			return desc, platformManifest{}, fmt.Errorf("manifest %s: %w: %w", desc.Digest, err, errdefs.ErrInvalidArgument)
		}
		if any.MediaType != "" {
			desc.MediaType = any.MediaType
		}
		switch {
		case any.SchemaVersion == 1 || strings.HasPrefix(desc.MediaType, schema1) || any.FSLayers != nil:
			return desc, platformManifest{}, fmt.Errorf("manifest %s is of docker's schema 1, which is no longer supported: push the image again with a current tool: %w", desc.Digest, errdefs.ErrNotImplemented)
		case any.Manifests != nil && any.Config != nil:
			// One digest that two programs read as two images, CVE-2021-41190.
			return desc, platformManifest{}, fmt.Errorf("manifest %s is both an index and a manifest: %w", desc.Digest, errdefs.ErrInvalidArgument)
		case any.Config != nil:
			m, err := s.parseManifest(body)
			desc.Size = int64(len(body))
			return desc, m, err
		case any.Manifests == nil:
			return desc, platformManifest{}, fmt.Errorf("manifest %s is neither an image nor an index: %w", desc.Digest, errdefs.ErrInvalidArgument)
		}
		l := s.cfg.Limits
		if len(any.Manifests) > l.IndexEntries {
			return desc, platformManifest{}, fmt.Errorf("index %s: %d entries, at most %d: %w", desc.Digest, len(any.Manifests), l.IndexEntries, errdefs.ErrResourceExhausted)
		}
		if depth >= l.IndexDepth {
			return desc, platformManifest{}, fmt.Errorf("index %s: nested deeper than %d: %w", desc.Digest, l.IndexDepth, errdefs.ErrResourceExhausted)
		}
		next, err := s.pick(any.Manifests)
		if err != nil {
			return desc, platformManifest{}, fmt.Errorf("index %s: %w", desc.Digest, err)
		}
		got, b, err := src.Manifest(ctx, next.Digest.String(), l.Manifest)
		if err != nil {
			return desc, platformManifest{}, err
		}
		if got.Size != next.Size && next.Size != 0 {
			return desc, platformManifest{}, fmt.Errorf("manifest %s has %d bytes, its index says %d: %w", next.Digest, got.Size, next.Size, errdefs.ErrDataLoss)
		}
		desc, body = ocispec.Descriptor{MediaType: next.MediaType, Digest: next.Digest, Size: got.Size}, b
	}
}

// usable descriptors are manifests that may be images: no attestations and artifacts.
func usable(d ocispec.Descriptor) bool {
	return d.Digest.Validate() == nil && d.Digest.Algorithm() == digest.SHA256 && isManifestType(d.MediaType) && d.Annotations["vnd.docker.reference.type"] == ""
}

// pick chooses the best descriptor for the platform. One without a platform comes last but for those of other platforms whose
// programs an interpreter runs.
func (s *Disk) pick(list []ocispec.Descriptor) (ocispec.Descriptor, error) {
	match := platforms.Only(*s.cfg.Platform)
	var best *ocispec.Descriptor
	var offered []string
	for i, d := range list {
		if !usable(d) {
			continue
		}
		if d.Platform == nil {
			if best == nil {
				best = &list[i]
			}
			continue
		}
		offered = append(offered, platforms.Format(*d.Platform))
		if !match.Match(*d.Platform) {
			continue
		}
		if best == nil || best.Platform == nil || match.Less(*d.Platform, *best.Platform) {
			best = &list[i]
		}
	}
	if best == nil {
		best = s.firstForeign(list)
	}
	if best == nil {
		slices.Sort(offered)
		if len(offered) > 20 {
			offered = append(offered[:20], "…")
		}
		return ocispec.Descriptor{}, fmt.Errorf("no image for %s among %s, nor one that an interpreter registered with binfmt_misc runs: %w", platforms.Format(*s.cfg.Platform), strings.Join(slices.Compact(offered), ", "), errdefs.ErrNotFound)
	}
	return *best, nil
}

func isManifestType(mt string) bool {
	switch mt {
	case "", ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, dockerList, dockerManifest:
		return true
	}
	return false
}

// parseManifest reads and checks an image manifest.
func (s *Disk) parseManifest(b []byte) (platformManifest, error) {
	m := platformManifest{bytes: b}
	if err := json.Unmarshal(b, &m.manifest); err != nil {
		return m, fmt.Errorf("manifest: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	l := s.cfg.Limits
	c := m.manifest.Config
	if c.MediaType != dockerConfig && c.MediaType != ocispec.MediaTypeImageConfig {
		return m, fmt.Errorf("manifest: config of type %q: this is no container image: %w", c.MediaType, errdefs.ErrNotImplemented)
	}
	if err := checkDescriptor(c, l.Config); err != nil {
		return m, fmt.Errorf("manifest: config: %w", err)
	}
	if n := len(m.manifest.Layers); n > l.Layers {
		return m, fmt.Errorf("manifest: %d layers, at most %d: %w", n, l.Layers, errdefs.ErrResourceExhausted)
	}
	for i, d := range m.manifest.Layers {
		if err := checkDescriptor(d, l.Layer); err != nil {
			return m, fmt.Errorf("manifest: layer %d: %w", i, err)
		}
		if err := checkLayerType(d.MediaType); err != nil {
			return m, fmt.Errorf("manifest: layer %d: %w", i, err)
		}
	}
	return m, nil
}

func checkDescriptor(d ocispec.Descriptor, limit int64) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %.100q: %w: %w", d.Digest, err, errdefs.ErrInvalidArgument)
	}
	if d.Digest.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest algorithm %s: %w", d.Digest.Algorithm(), errdefs.ErrNotImplemented)
	}
	if d.Size < 0 {
		return fmt.Errorf("size %d: %w", d.Size, errdefs.ErrInvalidArgument)
	}
	if d.Size > limit {
		return fmt.Errorf("%d bytes, at most %d: %w", d.Size, limit, errdefs.ErrResourceExhausted)
	}
	return nil
}

// parseConfig reads an image config and checks it against the manifest and the platform.
func (s *Disk) parseConfig(b []byte, m ocispec.Manifest) (ocispec.Image, error) {
	var c ocispec.Image
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("config: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if c.RootFS.Type != "layers" && len(m.Layers) > 0 {
		return c, fmt.Errorf("config: root file system of type %.100q: %w", c.RootFS.Type, errdefs.ErrNotImplemented)
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return c, fmt.Errorf("config: %d diff IDs for %d layers: %w", len(c.RootFS.DiffIDs), len(m.Layers), errdefs.ErrInvalidArgument)
	}
	for i, d := range c.RootFS.DiffIDs {
		if err := checkDescriptor(ocispec.Descriptor{Digest: d}, 0); err != nil {
			return c, fmt.Errorf("config: diff ID %d: %w", i, err)
		}
	}
	if err := s.runs(c.Platform); err != nil {
		return c, fmt.Errorf("config: %w", err)
	}
	return c, nil
}
