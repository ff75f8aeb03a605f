package archive

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// annotationName is containerd's, docker's and nerdctl's key for the full reference; the OCI one may be just a tag.
const annotationName = "io.containerd.image.name"

// savedImage is an element of docker's manifest.json.
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// images finds the archive's images: by its index.json, or by manifest.json where there is none. Names in
// manifest.json count in both cases.
func (a *Archive) images() error {
	var saved []savedImage
	b, err := a.document("manifest.json")
	if err == nil && b != nil {
		err = json.Unmarshal(b, &saved)
	}
	if err != nil {
		return fmt.Errorf("manifest.json: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	b, err = a.document("index.json")
	switch {
	case err != nil:
		return fmt.Errorf("index.json: %w", err)
	case b != nil:
		if err := a.ociImages(b); err != nil {
			return err
		}
		a.nameSaved(saved)
		return nil
	case saved != nil:
		for i, s := range saved {
			if err := a.dockerImage(s); err != nil {
				return fmt.Errorf("manifest.json: image %d: %w", i, err)
			}
		}
		return nil
	}
	return fmt.Errorf("neither index.json nor manifest.json: this is no image archive: %w", errdefs.ErrInvalidArgument)
}

func (a *Archive) ociImages(b []byte) error {
	var idx ocispec.Index
	if err := json.Unmarshal(b, &idx); err != nil {
		return fmt.Errorf("index.json: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	unnamed := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, d := range idx.Manifests {
		name := nameOf(d)
		i := slices.IndexFunc(a.Images, func(im Image) bool { return im.Descriptor.Digest == d.Digest })
		switch {
		case i >= 0 && name != "":
			a.Images[i].Names = append(a.Images[i].Names, name)
		case i >= 0:
		case name == "" && d.Platform != nil && len(idx.Manifests) > 1:
			unnamed.Manifests = append(unnamed.Manifests, d)
		case name == "":
			a.Images = append(a.Images, Image{Descriptor: d, Original: true})
		default:
			a.Images = append(a.Images, Image{Names: []string{name}, Descriptor: d, Original: true})
		}
	}
	if len(unnamed.Manifests) > 0 { // one image for several platforms, spread out over index.json
		body, err := json.Marshal(unnamed)
		if err != nil {
			return err
		}
		a.Images = append(a.Images, Image{Descriptor: a.write(ocispec.MediaTypeImageIndex, body)})
	}
	if len(a.Images) == 0 {
		return fmt.Errorf("index.json names no image: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

func nameOf(d ocispec.Descriptor) string {
	if n := d.Annotations[annotationName]; n != "" {
		return n
	}
	if n := d.Annotations[ocispec.AnnotationRefName]; strings.ContainsAny(n, ":/@") {
		return n
	}
	return ""
}

func (a *Archive) write(mediaType string, body []byte) ocispec.Descriptor {
	d := digest.FromBytes(body)
	a.written[d] = body
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(body))}
}

// nameSaved gives the names of manifest.json to the images with the same config.
func (a *Archive) nameSaved(saved []savedImage) {
	for i := range a.Images {
		if len(a.Images[i].Names) > 0 {
			continue
		}
		_, b, err := a.Manifest(context.Background(), a.Images[i].Descriptor.Digest.String(), a.limits.Document)
		var m ocispec.Manifest
		if err != nil || json.Unmarshal(b, &m) != nil {
			continue
		}
		for _, s := range saved {
			if f, ok := a.file(s.Config); ok && f.digest == m.Config.Digest {
				a.Images[i].Names = append(a.Images[i].Names, s.RepoTags...)
			}
		}
	}
}

// dockerImage makes a manifest for an image of docker's old format.
func (a *Archive) dockerImage(s savedImage) error {
	cfg, ok := a.file(s.Config)
	if !ok {
		return fmt.Errorf("config %.200q is not in the archive: %w", s.Config, errdefs.ErrNotFound)
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: cfg.digest, Size: cfg.size},
		Layers: []ocispec.Descriptor{},
	}
	for _, l := range s.Layers {
		f, ok := a.file(l)
		if !ok {
			return fmt.Errorf("layer %.200q is not in the archive: %w", l, errdefs.ErrNotFound)
		}
		mt, err := layerType(f.path)
		if err != nil {
			return err
		}
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: mt, Digest: f.digest, Size: f.size})
	}
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	a.Images = append(a.Images, Image{Names: s.RepoTags, Descriptor: a.write(m.MediaType, body)})
	return nil
}

func layerType(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var head [4]byte
	n, _ := io.ReadFull(f, head[:])
	switch {
	case n >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		return ocispec.MediaTypeImageLayerGzip, nil
	case n == 4 && head == [4]byte{0x28, 0xb5, 0x2f, 0xfd}:
		return ocispec.MediaTypeImageLayerZstd, nil
	}
	return ocispec.MediaTypeImageLayer, nil
}
